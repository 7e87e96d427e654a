"""Penalties that make codes sparse."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from visae.ops import share
from visae.sae.penalties.base import Pass, Penalty
from visae.sae.thresholds import JumpReLU


def ramp(progress: float, warmup: float | None) -> float:
    """Rises linearly from 0 to 1 over the first `warmup` of training: a full penalty at once would kill latents."""
    return min(1.0, progress / warmup) if warmup else 1.0


def _norms(run: Pass) -> Tensor | None:
    """Lengths `[F]` of the atoms; None where they are 1."""
    return None if run.sae.decoder.unit else torch.linalg.vector_norm(run.sae.decoder.atoms(), dim=1)


class L1(Penalty):
    """`coefficient * mean_n sum_j |z_j| |d_j| / sqrt(d)`, rising linearly over the first `warmup` of training.

    Codes grow with the root of d (inputs have `|u|^2 = d`), hence the division: the coefficient has no unit.

    Args:
        coefficient: weight beside a reconstruction loss that is a ratio.
        warmup: share of the training budget; a full penalty at the start would kill latents.
    """

    name = "l1"
    shards = True

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        size = share().latents.plus(run.codes.l1(_norms(run)))
        return ramp(run.progress, self.warmup) * self.coefficient * size / run.u.shape[1] ** 0.5


class Tanh(Penalty):
    """`coefficient * mean_n sum_j tanh(slope |z_j| |d_j|) / sqrt(d)`: near a count, with a gradient near zero only.

    Large codes are hardly pushed, so they shrink less than under L1 (Anthropic, circuits updates of 2024 and 2025).

    Args:
        coefficient: weight beside a reconstruction loss that is a ratio.
        slope: 4 there, at inputs of the same scale as here.
        warmup: share of the training budget.
    """

    name = "tanh"
    shards = True

    def __init__(self, coefficient: float, slope: float = 4.0, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.slope, self.warmup = coefficient, slope, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        squashed = run.codes.map(lambda z: torch.tanh(self.slope * z.abs()), _norms(run))
        size = share().latents.plus(squashed.l1())
        return ramp(run.progress, self.warmup) * self.coefficient * size / run.u.shape[1] ** 0.5


class PAnneal(Penalty):
    """`alpha * mean_n sum_j |z_j|^p`, with p falling from 1 to `p_end` (Karvonen et al. 2024, "p-annealing").

    Whenever p moves, alpha is multiplied by the ratio of the penalty before and after on the batch at hand, so the
    pressure stays what it was and only its shape changes.

    Args:
        coefficient: as of `L1`; alpha at the start.
        p_end: p after the last step of annealing; 0 would count.
        start: share of training at p = 1.
        stop: share of training after which p stays.
        warmup: share of training over which the penalty rises.
    """

    name = "p_anneal"
    shards = True
    alpha: Tensor
    p: Tensor

    def __init__(
        self, coefficient: float, p_end: float = 0.2, start: float = 0.15, stop: float = 0.9, warmup: float = 0.05
    ):
        super().__init__()
        if not 0 < p_end <= 1:
            raise ValueError(f"p falls from 1 to p_end, which must lie in (0, 1]; got {p_end}")
        if not 0 <= start < stop <= 1:
            raise ValueError(f"annealing runs from `start` to `stop`, shares of training; got {start} and {stop}")
        self.coefficient, self.p_end, self.start, self.stop, self.warmup = coefficient, p_end, start, stop, warmup
        self.register_buffer("alpha", torch.tensor(1.0))
        self.register_buffer("p", torch.tensor(1.0))

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        along = min(1.0, max(0.0, (run.progress - self.start) / (self.stop - self.start)))
        before, now = self.p, self.p.new_tensor(1.0 + (self.p_end - 1.0) * along)
        with torch.no_grad():
            sizes = share().rows.mean(torch.stack([self._size(run, before), self._size(run, now)]))
            moved = sizes[0] / sizes[1].clamp_min(torch.finfo(self.p.dtype).tiny)
            if run.sae.training:
                self.alpha *= torch.where(torch.isfinite(moved) & (moved > 0), moved, torch.ones_like(moved))
                self.p.copy_(now)
        weight = ramp(run.progress, self.warmup) * self.coefficient * self.alpha / run.u.shape[1] ** 0.5
        return weight * self._size(run, self.p)

    @staticmethod
    def _size(run: Pass, p: Tensor) -> Tensor:
        """`mean_n sum_j |z_j|^p`; zero codes count nothing and get no gradient."""
        exponent = p.to(run.u.dtype)

        def power(z: Tensor) -> Tensor:
            size = z.abs()
            return torch.where(size > 0, torch.where(size > 0, size, torch.ones_like(size)) ** exponent, size)

        return share().latents.plus(run.codes.map(power, _norms(run)).l1())


class TargetL0(Penalty):
    """`coefficient * (L0 / k - 1)^2` with the activation's k; L0 counts by a step function.

    Only the thresholds feel it, through the straight-through estimate of the step (Rajamanoharan et al. 2024).

    Args:
        coefficient: weight beside a reconstruction loss that is a ratio.
        warmup: share of the training budget.
    """

    name = "target_l0"
    shards = True

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        activation = cast(JumpReLU, run.sae.activation)
        count = share().rows.mean(share().latents.plus(activation.count(run.entries()).row_sum()))
        return ramp(run.progress, self.warmup) * self.coefficient * (count / activation.now - 1).square()


class L0(Penalty):
    """`coefficient * L0 / d`; L0 counts by a step function, and only the thresholds feel it (see `TargetL0`).

    Args:
        coefficient: what one code for each dimension of a token costs, beside a reconstruction loss that is a ratio.
        warmup: share of the training budget.
    """

    name = "l0"

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        count = cast(JumpReLU, run.sae.activation).count(run.entries()).row_sum()
        return ramp(run.progress, self.warmup) * self.coefficient * count / run.u.shape[1]


class GateL1(Penalty):
    """`coefficient * mean_n sum_j ReLU(gate_j) |d_j| / sqrt(d)`: a gated dictionary's gates alone are made sparse."""

    name = "gate_l1"
    shards = True

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        size = share().latents.plus(run.entries().map(torch.relu).l1(_norms(run)))
        return ramp(run.progress, self.warmup) * self.coefficient * size / run.u.shape[1] ** 0.5


class GateRecon(Penalty):
    """`sum |u - (ReLU(gate) D + b)|^2 / (n d)` with D and b held fixed: the gates learn to reconstruct by themselves.

    Held fixed as in the paper (Rajamanoharan et al. 2024): else atoms would serve gates rather than codes.
    """

    name = "gate_recon"
    shards = True

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        decoder = run.sae.decoder
        guess = run.ops.decode(run.entries().map(torch.relu), decoder.atoms().detach(), decoder.bias.detach())
        return functional.mse_loss(guess, run.u)


class KL(Penalty):
    """`coefficient / d * mean_n 1/2 sum_j a_j^2`: how far `N(a, sigma^2)` is from `N(0, sigma^2)`, times sigma^2."""

    name = "kl"

    def __init__(self, coefficient: float, warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        size = 0.5 * run.dense_pre().square().sum(1).mean()
        return ramp(run.progress, self.warmup) * self.coefficient * size / run.u.shape[1]


class SameLength(Penalty):
    """`coefficient / d * mean_n (|z_n| - |u_n - b|)^2`: codes as long as their inputs (top-AFA)."""

    name = "afa"

    def __init__(self, coefficient: float):
        super().__init__()
        self.coefficient = coefficient

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        lengths = run.codes.to_dense().square().sum(1).clamp_min(1e-12).sqrt()
        wanted = torch.linalg.vector_norm(run.u - run.sae.decoder.bias, dim=1)
        return self.coefficient * (lengths - wanted).square().mean() / run.u.shape[1]
