"""Kind `batch_topk`."""

from visae.sae.activations import BatchTopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "batch_topk",
    formula="z = ReLU(a) on the n k largest a of a batch; a > threshold at inference",
    paper="Bussmann et al. 2024; as mutual choice Ayonrinde 2024",
)
def batch_topk(d: int, n_latents: int, k: float = 32, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """BatchTopK, also called mutual choice: k codes per token on average, more where the token needs them.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "batch_topk",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=BatchTopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
