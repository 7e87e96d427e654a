"""Penalties for pairs of tokens: what both have in common, and what sets them apart."""

import torch
from torch import Tensor
from torch.nn import functional

from visae.ops import overlap
from visae.sae.penalties.base import Pass, Penalty
from visae.sae.penalties.sparsity import ramp


class Other(Penalty):
    """FVU of the other token of each pair, by the same rule as the first one's. `Contrast` comes after it."""

    name = "other"
    needs = ("other",)

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        sae = run.sae
        u = sae.normalise(run.side["other"])
        run.partner, _ = sae.code(u, run.ops)
        return functional.mse_loss(run.ops.decode(run.partner, sae.decoder.atoms(), sae.decoder.bias), u)


class Contrast(Penalty):
    """`common mean_n sum_j |c_j - c'_j| / sqrt(d) + apart mean_n sum_j d_j d'_j / d` (CSAE, Poupart 2024).

    The codes of a pair are `[c; d]` and `[c'; d']`: what the two share should be in c, what sets them apart in d. The
    paper adds a probe that tells the two sides of a pair by d; pairs here have no sides.

    Args:
        first: latents of c, the first ones.
        common: coefficient of the difference of c.
        apart: coefficient of the product of d.
        warmup: share of the training budget over which both rise.
    """

    name = "contrast"
    needs = ("other",)

    def __init__(self, first: int, common: float, apart: float, warmup: float = 0.05):
        super().__init__()
        self.first, self.common, self.apart, self.warmup = first, common, apart, warmup

    def forward(self, run: Pass) -> Tensor:
        """See `Penalty.forward`."""
        assert run.partner is not None
        mine, theirs, latents = overlap(run.codes, run.partner)
        n, d, shared = run.u.shape[0], run.u.shape[1], latents < self.first
        # codes are not negative: |a - b| = a + b - 2 min(a, b), and only the minimum needs both
        both = 2 * torch.minimum(mine, theirs)[shared].sum() / n
        ends = (0, self.first)
        difference = run.codes.among(*ends).l1() + run.partner.among(*ends).l1() - both
        product = (mine * theirs)[~shared].sum() / n
        return ramp(run.progress, self.warmup) * (self.common * difference / d**0.5 + self.apart * product / d)
