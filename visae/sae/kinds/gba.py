"""Kind `gba`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Tied
from visae.sae.frequency import GroupBias
from visae.sae.registry import register_kind


@register_kind(
    "gba",
    formula="z = g ReLU((u - b) D^T + bias); biases follow the target frequency of their group, without a gradient",
    paper="Chen et al. 2025",
    experimental="finds planted features, but reconstructs them far worse than topk at equal L0",
)
def gba(
    d: int,
    n_latents: int,
    groups: int = 10,
    highest: float = 0.1,
    lowest: float = 0.005,
    every: int | None = None,
    rate: float = 0.01,
) -> Dictionary:
    """Group bias adaptation: no penalty and no k, only how often latents should fire; see `GroupBias`.

    Args:
        d: length of a token.
        n_latents: width F.
        groups: number of groups of latents.
        highest: target frequency of the first group.
        lowest: target frequency of the last one; between them a geometric progression.
        every: steps between adaptations; None adapts as soon as the last group should have fired 32 times.
        rate: how far biases move at each, as a share of the largest pre-code; up to 20 times as far where frequencies
            are far from their targets.
    """
    decoder = UnitNorm(d, n_latents, bias=False)
    return Dictionary(
        "gba",
        d,
        n_latents,
        encoder=Tied(decoder, n_latents, bias=False),
        activation=GroupBias(d, n_latents, groups, highest, lowest, every, rate),
        decoder=decoder,
    )
