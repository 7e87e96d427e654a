"""Kind `atm`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.masking import MaskedTopK
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "atm",
    formula="batch_topk among latents that stay with probability exp(-mask (theta - I_j) / theta); all at inference",
    paper="Li and Ren 2025 (adaptive temporal masking)",
)
def atm(
    d: int,
    n_latents: int,
    k: float = 32,
    mask: float = 0.3,
    spread: float = 1.0,
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """BatchTopK that has to do without its less important latents now and then; see `visae.sae.masking.MaskedTopK`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        mask: how often; 0 is batch_topk.
        spread: standard deviations above the mean importance from which on a latent always takes part.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "atm",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=MaskedTopK(k, n_latents, spread, mask),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
