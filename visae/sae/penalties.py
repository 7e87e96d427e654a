"""Penalties: further terms of the loss, each a function of one training pass."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from visae import ops as kernels
from visae.ops import Coded, Ops

if TYPE_CHECKING:
    from visae.sae.dictionary import Dictionary


@dataclass
class Pass:
    """What one training pass leaves for the penalties.

    Attributes:
        sae: the dictionary.
        u: `[n, d]` normalised inputs.
        pre: `[n, F]` pre-activations where they exist as a tensor of the graph (dense kinds, other encoders).
        codes: the codes.
        recon: `[n, d]` reconstruction in the space of `u`.
        dead: `[m]` int64 dead latents; None where there are none.
        progress: share of the training budget spent, 0 to 1.
        ops: the kernels in use.
    """

    sae: "Dictionary"
    u: Tensor
    pre: Tensor | None
    codes: Coded
    recon: Tensor
    dead: Tensor | None
    progress: float
    ops: Ops


class Penalty(nn.Module, ABC):
    """Base of the penalties: `name` in the logs, and a value that already has its coefficient."""

    name: str

    @abstractmethod
    def forward(self, run: Pass) -> Tensor | None:
        """The weighted term, a scalar; None where it does not apply in this step."""


class L1(Penalty):
    """`coefficient * mean_n sum_j |z_j| |d_j| / sqrt(d)`, rising linearly over the first `warmup` of training.

    Codes grow with the root of d (inputs have `|u|^2 = d`), hence the division: the coefficient has no unit.

    Args:
        coefficient: weight beside a reconstruction loss that is a ratio.
        warmup: share of the training budget; a full penalty at the start would kill latents.
    """

    name = "l1"

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        rise = min(1.0, run.progress / self.warmup) if self.warmup else 1.0
        norms = None if run.sae.decoder.unit else torch.linalg.vector_norm(run.sae.decoder.atoms(), dim=1)
        return rise * self.coefficient * run.codes.l1(norms) / run.u.shape[1] ** 0.5


class AuxK(Penalty):
    """Dead latents learn to explain the error (Gao et al. 2024, appendix A.2).

    `e = u - r`, detached; `e' = sum of ReLU(a_j) d_j` over the `k_aux` largest pre-activations of dead latents,
    WITHOUT the decoder's bias; the term is `coefficient * sum |e - e'|^2 / sum |e - mean e|^2`. Published code has
    the sign of e reversed, adds the bias to e', or lets no gradient reach the encoder; `tests/sae/test_auxk.py`
    holds us to the formula.

    Args:
        coefficient: 1/32 in the paper.
        k_aux: codes per token; None takes `min(d / 2, 512)`.
    """

    name = "auxk"

    def __init__(self, coefficient: float = 1 / 32, k_aux: int | None = None):
        super().__init__()
        self.coefficient, self.k_aux = coefficient, k_aux

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if run.dead is None or self.coefficient == 0:
            return None
        error = (run.u - run.recon).detach()
        k_aux = self.k_aux or max(1, min(run.u.shape[1] // 2, 512))
        rule = kernels.TopK(min(k_aux, run.dead.shape[0]), signed=False)
        codes = run.sae.select(run.u, rule, run.ops, pre=run.pre, among=run.dead)
        guess = run.ops.decode(codes, run.sae.decoder.atoms(), None)
        spread = error.var(0, correction=0).mean().clamp_min(torch.finfo(error.dtype).tiny)
        return self.coefficient * functional.mse_loss(guess, error) / spread
