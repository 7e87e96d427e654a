"""Kind `matryoshka`."""

from visae.sae.activations import BatchTopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind
from visae.sae.schemes import Prefixes


@register_kind(
    "matryoshka",
    formula="batch_topk; FVU averaged over prefixes of the dictionary",
    paper="Bussmann et al. 2025",
    experimental="nesting has a price off hierarchies: FVU 0.145 where topk leaves 0.129 (visae bench quality)",
)
def matryoshka(
    d: int,
    n_latents: int,
    k: float = 32,
    groups: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
    sampled: int = 0,
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """Nested prefixes of one dictionary, over BatchTopK; see `visae.sae.schemes.Prefixes`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        groups: sizes of the nested groups as shares of F.
        sampled: 0, or how many prefix lengths are drawn in each step instead.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "matryoshka",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=BatchTopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        scheme=Prefixes(n_latents, groups, sampled),
        penalties=[AuxK(aux, k_aux)],
    )
