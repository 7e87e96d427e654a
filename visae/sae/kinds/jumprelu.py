"""Kind `jumprelu`."""

from typing import Literal

from visae.registry import UnknownName
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import L0, AuxK, TargetL0
from visae.sae.registry import register_kind
from visae.sae.thresholds import JumpReLU


@register_kind(
    "jumprelu",
    formula="z = a 1[a > theta]; + l0 (L0 / k - 1)^2, or + l0 L0 / d",
    paper="Rajamanoharan et al. 2024",
)
def jumprelu(
    d: int,
    n_latents: int,
    k: float = 32,
    l0: float | None = None,
    penalty: Literal["target", "l0"] = "target",
    eps: float = 0.5,
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """JumpReLU with a target for the number of codes, or a price; see `visae.sae.thresholds.JumpReLU`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token to aim at; with the penalty `l0` only where training starts.
        l0: coefficient of the squared relative miss of the target (None: 0.3), or what one code per dimension of a
            token costs (None: 0.1), which alone decides how many codes are left.
        penalty: `target`, which holds k, or `l0`: its coefficient has to be tuned for the L0 that is wanted.
        eps: width of the straight-through rectangle, as a share of the threshold at the start.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    if penalty not in ("target", "l0"):
        raise UnknownName("penalty", penalty, ("target", "l0"))
    sparsity = TargetL0(0.3 if l0 is None else l0) if penalty == "target" else L0(0.1 if l0 is None else l0)
    return Dictionary(
        "jumprelu",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=JumpReLU(n_latents, k, eps, aims=penalty == "target"),
        decoder=UnitNorm(d, n_latents),
        penalties=[sparsity, AuxK(aux, k_aux)],
    )
