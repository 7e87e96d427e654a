"""Kind `gated`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import GateL1, GateRecon
from visae.sae.registry import register_kind
from visae.sae.thresholds import Gate


@register_kind(
    "gated",
    formula="z = 1[a > 0] ReLU(exp(r) a + b); + l1 sum ReLU(a) + FVU of ReLU(a)",
    paper="Rajamanoharan et al. 2024",
)
def gated(d: int, n_latents: int, l1: float = 0.5, l1_warmup: float = 0.05) -> Dictionary:
    """Gated SAE: the L1 penalty acts on the gates alone, so magnitudes do not shrink.

    Args:
        d: length of a token.
        n_latents: width F.
        l1: coefficient of the penalty on the gates; larger is sparser.
        l1_warmup: share of training over which it rises.
    """
    return Dictionary(
        "gated",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=Gate(n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[GateL1(l1, l1_warmup), GateRecon()],
    )
