"""Kind `abs_topk`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "abs_topk",
    formula="z = a on the k largest |a| of a token",
    paper="Zhu et al. 2025",
)
def abs_topk(d: int, n_latents: int, k: int = 32, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """TopK on absolute values: codes have signs, so one latent serves both ends of an axis.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "abs_topk",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopK(k, n_latents, signed=True),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
