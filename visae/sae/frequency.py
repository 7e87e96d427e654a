"""Activation part that is steered by how often latents fire, not by a penalty."""

import copy

import torch
from torch import Tensor, nn

from visae.ops import Coded, share
from visae.sae.activations import Activation

FIRINGS = 32
"""Firings of a latent of the last group, at its target, that a frequency is taken from where no interval is given."""
PRESSING, MOST = 5.0, 20.0
"""How many times `rate` biases move where a frequency is e times its target, or 1/e; and the limit to that."""


class GroupBias(Activation):
    """`z = g ReLU(a + b)`; the biases b have no gradient but follow target frequencies.

    Group bias adaptation (Chen et al. 2025): latents are dealt into groups with targets `p_1 > ... > p_G` in geometric
    progression. Every so many steps, with the frequency `f_j` and the largest pre-code `r_j = max ReLU(a_j + b_j)` of
    the tokens since the last time: where `f_j` is above its group's target, `b_j` falls by `rate r_j`; where `f_j` is
    below `low` times that, it rises by `rate` times the mean positive `r` of its group; b stays between minus the
    length of an input and 0. The gains g are learnt. No number of codes and no penalty is chosen: L0 is the sum of the
    frequencies.

    In the paper biases start at 0, with rate and interval fixed, 0.01 and 50: thousands of steps go by before
    frequencies are near their targets. Here they start where the first tokens meet the targets, and moves are
    `5 |ln(f_j / target)|` times as large, at least once and at most 20 times.

    Args:
        d: length of an input; normalised ones have length `sqrt(d)` on average.
        n_latents: width F.
        groups: number of groups G.
        highest: target of the first group.
        lowest: target of the last.
        every: steps between adaptations, 50 in the paper; None waits for as many tokens as the last group needs to fire
            32 times at its target.
        rate: 0.01 in the paper.
        low: share of its target below which a latent is helped up. The paper helps only the silent (1e-6): most then
            end far below their targets.

    Raises:
        ValueError: for targets that do not fall, or more groups than latents.
    """

    bias: Tensor
    target: Tensor
    group: Tensor
    fired: Tensor
    peak: Tensor
    rows: Tensor
    steps: Tensor

    def __init__(
        self,
        d: int,
        n_latents: int,
        groups: int = 10,
        highest: float = 0.1,
        lowest: float = 0.005,
        every: int | None = None,
        rate: float = 0.01,
        low: float = 0.9,
    ):
        super().__init__()
        if not 0 < lowest <= highest < 1:
            raise ValueError(f"target frequencies fall from highest to lowest within (0, 1); got {highest}, {lowest}")
        if not 1 <= groups <= n_latents:
            raise ValueError(f"groups must be between 1 and n_latents = {n_latents}, got {groups}")
        self.every, self.rate, self.low, self.floor = every, rate, low, d**0.5
        self.gain = nn.Parameter(torch.ones(n_latents))
        targets = torch.logspace(0, 1, groups, base=lowest / highest) * highest
        self.register_buffer("group", torch.arange(n_latents) * groups // n_latents)
        self.register_buffer("target", targets[self.group])
        self.register_buffer("bias", torch.zeros(n_latents))
        self.register_buffer("fired", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("peak", torch.zeros(n_latents))
        self.register_buffer("rows", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int64))

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        return self.gain * (pre + self.bias).relu()

    @torch.no_grad()
    def start(self, pre: Tensor) -> None:
        """See `Activation.start`: latents fire as often as they should on these."""
        ordered = pre.sort(dim=0, descending=True).values
        at = (self.target * pre.shape[0]).round().long().clamp(max=pre.shape[0] - 1)[None]
        between = ordered.gather(0, at) + ordered.gather(0, (at - 1).clamp_min(0))  # of two, so that none is at a kink
        self.bias.copy_((-between[0] / 2).clamp(-self.floor, 0.0))

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Activation.rescale`: the tied encoder keeps its length, the gains take the scale."""
        self.gain.mul_(factor)

    @torch.no_grad()
    def scaled(self, gain: Tensor) -> "GroupBias":
        """See `Activation.scaled`."""
        made = copy.deepcopy(self)
        made.bias.mul_(gain)
        return made

    @torch.no_grad()
    def observe(self, codes: Coded) -> None:
        """Counts, and every so many steps moves the biases."""
        z, group = codes.to_dense(), share().rows
        self.fired += group.sum((z != 0).sum(0))
        self.rows += z.shape[0] * group.size
        sizes = group.max((z / torch.where(self.gain == 0, 1.0, self.gain)).amax(0))
        self.peak.copy_(torch.maximum(self.peak, sizes.to(self.peak)))
        self.steps += 1
        due = self.rows * self.target.amin() >= FIRINGS if self.every is None else self.steps % self.every == 0
        if bool(due):
            self._adapt()

    def _adapt(self) -> None:
        frequency = self.fired / self.rows
        helped = torch.zeros_like(self.target)
        for number in self.group.unique():
            mine = self.group == number
            positive = self.peak[mine & (self.peak > 0)]
            helped[mine] = positive.mean() if positive.numel() else 0.0
        move = torch.where(
            frequency > self.target, -self.peak, torch.where(frequency < self.low * self.target, helped, 0.0)
        )
        pressing = (PRESSING * (frequency / self.target).log().abs()).clamp(1.0, MOST)
        self.bias.add_(self.rate * pressing * move).clamp_(-self.floor, 0.0)
        self.fired.zero_()
        self.peak.zero_()
        self.rows.zero_()
