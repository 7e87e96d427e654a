"""Activation parts with a threshold per latent: JumpReLU, the gate, feature choice."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae import ops
from visae.ops import Coded, Dense, Pattern, Rule
from visae.sae.activations import Activation, check_k, cut
from visae.sae.elementwise import Elementwise


class _Jump(torch.autograd.Function):
    """`a 1[a > theta]` with the straight-through estimate for theta: a rectangle of width eps."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(pre, theta, width)
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        pre, theta, width = ctx.saved_tensors
        near = (pre - theta).abs() < width / 2
        return grad * (pre > theta), -(grad * near).sum_to_size(theta.shape) * theta / width, None


class _Step(torch.autograd.Function):
    """`1[a > theta]`, which moves theta alone, by the same estimate."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(pre, theta, width)
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        pre, theta, width = ctx.saved_tensors
        return None, -(grad * ((pre - theta).abs() < width / 2)).sum_to_size(theta.shape) / width, None


class JumpReLU(Elementwise):
    """`z = a 1[a > theta]`, theta learnt per latent (Rajamanoharan et al. 2024, "Jumping ahead").

    `dz/dtheta = -(theta / eps) K((a - theta) / eps)` and `dL0/dtheta = -(1 / eps) K(.)`, K the rectangle of width 1.
    Theta is learnt itself, not its logarithm (which hardly moves under Adam), in units of the value that k codes per
    token exceed at the start: so one learning rate and one eps fit every site. `calibrate` multiplies all thresholds
    by the one factor at which held-out tokens keep k codes.

    Args:
        n_latents: width F.
        k: codes per token aimed at.
        eps: width of the rectangle, in the same units.
        aims: whether inference keeps k codes; else k is only where training starts.
    """

    shards = True

    threshold: nn.Parameter
    unit: Tensor

    def __init__(self, n_latents: int, k: float, eps: float, aims: bool = True):
        super().__init__()
        check_k(k, n_latents)
        self.n_latents, self.eps, self.aims = n_latents, eps, aims
        self.k = k if aims else None
        self.train_k = self.now = k
        self.threshold = nn.Parameter(torch.ones(n_latents))
        self.register_buffer("unit", torch.tensor(1.0))

    @property
    def calibrates(self) -> bool:
        """See `Activation.calibrates`."""
        return self.aims

    @property
    def anneals(self) -> bool:
        """See `Activation.anneals`."""
        return self.aims

    @property
    def theta(self) -> Tensor:
        """`[F]` thresholds on pre-activations."""
        return self.threshold * self.unit

    def rule(self) -> Rule | None:
        """See `Activation.rule`; dense while training, for the gradient of theta."""
        return None if self.training else ops.Threshold(self.theta.detach())

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        return _Jump.apply(pre, self.theta, self.eps * self.unit)  # type: ignore[no-any-return]

    def reach(self) -> ops.Above:
        """See `Elementwise.reach`: above the lower end of the rectangle."""
        return ops.Above((self.theta - self.eps * self.unit / 2).detach())

    def at(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Elementwise.at`."""
        return _Jump.apply(values, self.theta[columns], self.eps * self.unit)  # type: ignore[no-any-return]

    def anneal(self, k: float) -> None:
        """See `Activation.anneal`: moves the target of `visae.sae.penalties.TargetL0`."""
        check_k(k, self.n_latents)
        self.now = k

    def count(self, entries: Coded) -> Coded:
        """1 for each of these pre-activations that exceeds its threshold, else 0."""
        theta = self.theta if isinstance(entries, Dense) else self.theta[entries.pattern.columns]
        return entries.map(lambda pre: _Step.apply(pre, theta, self.eps * self.unit))

    @torch.no_grad()
    def start(self, pre: Tensor) -> None:
        """See `Activation.start`."""
        self.threshold.fill_(1.0)
        self.unit.copy_(cut([pre], self.train_k).clamp_min(torch.finfo(self.unit.dtype).tiny))

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Activation.rescale`."""
        self.unit.mul_(factor)

    @torch.no_grad()
    def restart(self, latents: Tensor, size: Tensor) -> None:
        """See `Activation.restart`: they fire on their own token, at half of what they read there or lower."""
        self.threshold[latents] = torch.minimum(self.threshold[latents], size / 2 / self.unit)

    @torch.no_grad()
    def observe(self, _codes: Coded) -> None:
        """Keeps thresholds above 0."""
        self.threshold.clamp_(min=1e-3)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """See the class."""
        self.unit.mul_(cut((pre / self.theta for pre in batches), self.train_k))

    @torch.no_grad()
    def scaled(self, gain: Tensor) -> "JumpReLU":
        """See `Activation.scaled`."""
        made = copy.deepcopy(self)
        made.threshold.copy_(self.theta * gain)
        made.unit.fill_(1.0)
        return made


class Gate(Elementwise):
    """`z = 1[a > 0] ReLU(exp(r) a + b)`: whether a latent fires and how much are learnt apart.

    In the paper (Rajamanoharan et al. 2024) magnitudes are `x (W exp(r)) + b_mag`; with `b = b_mag - exp(r) b_gate`
    that is `exp(r) a + b`.
    """

    shards = True

    def __init__(self, n_latents: int):
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(n_latents))
        self.bias = nn.Parameter(torch.zeros(n_latents))

    @torch.no_grad()
    def restart(self, latents: Tensor, size: Tensor) -> None:
        """See `Activation.restart`."""
        self.log_gain[latents] = 0.0
        self.bias[latents] = 0.0

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        return (pre > 0) * (self.log_gain.exp() * pre + self.bias).relu()

    def at(self, values: Tensor, columns: Tensor) -> Tensor:
        """See `Elementwise.at`."""
        return (values > 0) * (self.log_gain[columns].exp() * values + self.bias[columns]).relu()

    @torch.no_grad()
    def scaled(self, gain: Tensor) -> "Gate":
        """See `Activation.scaled`."""
        made = copy.deepcopy(self)
        made.bias.mul_(gain)
        return made


class FeatureChoice(Activation):
    """Latent j keeps its `m_j` largest entries of a batch of n (Ayonrinde 2024).

    `m_j = n k w_j / sum w` with the Zipf weights `w_j = (j + 1)^-zipf`; latents are alike at the start, so their places
    serve as ranks. 0 lets all fire equally often. ReLU leaves nothing of negative entries: a latent with fewer
    positive ones than `m_j` keeps those, and the others share the rest. Inference keeps what exceeds a threshold per
    latent: `calibrate` sets them so that each fires as often on held-out tokens as in training.

    Args:
        k: mean codes per token.
        n_latents: width F.
        zipf: exponent of the law.
    """

    threshold: Tensor
    weights: Tensor

    def __init__(self, k: float, n_latents: int, zipf: float = 0.0):
        super().__init__()
        check_k(k, n_latents)
        if zipf < 0:
            raise ValueError(f"frequencies fall with the rank: zipf is at least 0, got {zipf}")
        self.n_latents = n_latents
        self.k = self.train_k = self.now = k
        ranks = torch.arange(1, n_latents + 1, dtype=torch.float64) ** -zipf
        self.register_buffer("threshold", torch.zeros(n_latents))
        self.register_buffer("weights", (ranks / ranks.sum()).float())

    def rule(self) -> Rule:
        """See `Activation.rule`."""
        return Chosen(self.weights, self.now) if self.training else ops.Threshold(self.threshold)

    def anneal(self, k: float) -> None:
        """See `Activation.anneal`."""
        check_k(k, self.n_latents)
        self.now = k

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets thresholds that each latent exceeds on its share of these tokens.

        Raises:
            ValueError: if no batch comes.
        """
        k, group = float(self.k or 1), ops.share().rows
        highest, rows, positive = [], 0, torch.zeros_like(self.weights, dtype=torch.int64)
        for pre in batches:
            rows += pre.shape[0]
            positive += (pre > 0).sum(0)
            most = int(4 * float(Chosen(self.weights, k).shares(pre, ops.ALONE).max()) * pre.shape[0]) + 8
            highest.append(pre.topk(min(pre.shape[0], most), dim=0).values)
        if not highest:
            raise ValueError("calibrating the thresholds needs at least one batch of held-out tokens, got none")
        values, rows = group.cat(torch.cat(highest)), group.total(rows)
        shares = filled(self.weights.double(), k, group.sum(positive).double() / rows)
        wanted = (shares * rows).round().long().clamp(1, values.shape[0] - 1)
        ordered = values.sort(dim=0, descending=True).values
        between = ordered.gather(0, wanted[None] - 1) + ordered.gather(0, wanted[None])
        self.threshold.copy_((between[0] / 2).relu())

    @torch.no_grad()
    def scaled(self, gain: Tensor) -> "FeatureChoice":
        """See `Activation.scaled`."""
        made = copy.deepcopy(self)
        made.threshold.mul_(gain)
        return made


@dataclass(frozen=True)
class Chosen:
    """`ops.feature_choice` with shares as in `FeatureChoice`: none above that of the positive entries of its column.

    Attributes:
        weights: `[F]` which shares are proportional to.
        k: their sum.
    """

    weights: Tensor
    k: float
    signed = False

    def shares(self, pre: Tensor, group: ops.Group) -> Tensor:
        """`[F]` share of the rows, those `[n, F]` of all processes of a group, that each latent keeps."""
        positive = group.sum((pre > 0).sum(0)).double() / (group.size * max(1, pre.shape[0]))
        return filled(self.weights.double(), self.k, positive)

    def _rule(self, pre: Tensor) -> Rule:
        return ops.feature_choice(self.shares(pre, ops.share().rows))

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        return self._rule(pre).mask(pre)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return self._rule(pre).pick(pre)


def filled(weights: Tensor, total: float, limits: Tensor | float = 1.0) -> Tensor:
    """Shares proportional to weights `[F]` above 0, none above its limit, that sum to `total`, or to all limits.

    They are `min(limit_j, level w_j)`. With the i latents at their limits that reach them first, the level would be
    `(total - sum of these limits) / sum of the other weights`; the right one is the largest of these.
    """
    limits = torch.as_tensor(limits, dtype=weights.dtype, device=weights.device).expand_as(weights)
    order = (limits / weights).argsort()
    first, rest = limits[order], weights[order]
    level = (total - (first.cumsum(0) - first)) / rest.flip(0).cumsum(0).flip(0)
    return torch.minimum(limits, level.amax() * weights)
