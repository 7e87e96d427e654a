"""Kind `hierarchical_topk`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind
from visae.sae.schemes import NestedK


@register_kind(
    "hierarchical_topk",
    formula="topk; FVU averaged over the 1, 2, ..., k largest codes",
    paper="Balagansky et al. 2025",
    experimental="serves no single number better: FVU 0.146 at 16 codes where topk leaves 0.130 (visae bench quality)",
)
def hierarchical_topk(d: int, n_latents: int, k: int = 32, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """One dictionary for every number of codes up to k; see `visae.sae.schemes.NestedK`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token, the largest number.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "hierarchical_topk",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        scheme=NestedK(range(1, k + 1)),
        penalties=[AuxK(aux, k_aux)],
    )
