"""Kind `relu_l1`."""

from typing import Literal

from visae.registry import UnknownName
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.elementwise import ReLU
from visae.sae.encoders import Linear
from visae.sae.penalties import L1, Tanh
from visae.sae.registry import register_kind

_PENALTIES = {"l1": L1, "tanh": Tanh}


@register_kind("relu_l1", formula="z = ReLU(a); + l1 sum |z|", paper="Cunningham et al. 2023; Bricken et al. 2023")
def relu_l1(
    d: int, n_latents: int, l1: float = 0.1, l1_warmup: float = 0.05, penalty: Literal["l1", "tanh"] = "l1"
) -> Dictionary:
    """ReLU with an L1 penalty (Cunningham et al. 2023; Bricken et al. 2023).

    The penalty also shrinks the codes that stay: see `shrinkage` in `visae.evaluate`.

    Args:
        d: length of a token.
        n_latents: width F.
        l1: coefficient, see `visae.sae.penalties.L1`; larger is sparser.
        l1_warmup: share of training over which it rises.
        penalty: `l1`, or `tanh`, which hardly shrinks large codes, see `visae.sae.penalties.Tanh`.

    Raises:
        UnknownName: for another penalty.
    """
    if penalty not in _PENALTIES:
        raise UnknownName("penalty", penalty, _PENALTIES)
    return Dictionary(
        "relu_l1",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=ReLU(),
        decoder=UnitNorm(d, n_latents),
        penalties=[_PENALTIES[penalty](l1, warmup=l1_warmup)],
    )
