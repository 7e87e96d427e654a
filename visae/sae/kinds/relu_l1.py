"""Kind `relu_l1`."""

from visae.sae.activations import ReLU
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import L1
from visae.sae.registry import KINDS


@KINDS.register("relu_l1")
def relu_l1(d: int, n_latents: int, l1: float = 0.1, l1_warmup: float = 0.05) -> Dictionary:
    """ReLU with an L1 penalty (Cunningham et al. 2023; Bricken et al. 2023).

    The penalty also shrinks the codes that stay: see `shrinkage` in `visae.evaluate`.

    Args:
        d: length of a token.
        n_latents: width F.
        l1: coefficient, see `visae.sae.penalties.L1`; larger is sparser.
        l1_warmup: share of training over which it rises.
    """
    return Dictionary(
        "relu_l1",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=ReLU(),
        decoder=UnitNorm(d, n_latents),
        penalties=[L1(l1, l1_warmup)],
    )
