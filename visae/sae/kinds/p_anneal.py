"""Kind `p_anneal`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.elementwise import ReLU
from visae.sae.encoders import Linear
from visae.sae.penalties import PAnneal
from visae.sae.registry import register_kind


@register_kind(
    "p_anneal",
    formula="z = ReLU(a); + alpha sum |z|^p, p from 1 to p_end",
    paper="Karvonen et al. 2024",
)
def p_anneal(d: int, n_latents: int, l1: float = 0.1, p_end: float = 0.2, l1_warmup: float = 0.05) -> Dictionary:
    """ReLU under a penalty that turns from L1 towards a count; see `visae.sae.penalties.PAnneal`.

    Args:
        d: length of a token.
        n_latents: width F.
        l1: coefficient at p = 1; larger is sparser.
        p_end: p at the end.
        l1_warmup: share of training over which the penalty rises.
    """
    return Dictionary(
        "p_anneal",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=ReLU(),
        decoder=UnitNorm(d, n_latents),
        penalties=[PAnneal(l1, p_end, warmup=l1_warmup)],
    )
