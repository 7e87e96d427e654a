"""Decode schemes: which reconstructions the loss compares with the inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visae.ops import Nesting, share


class Plain(nn.Module):
    """One reconstruction from all codes.

    A loss is `sum |u - r|^2 / (n d)`. By default inputs are scaled to `E|u|^2 = d`, so it is the fraction of variance
    unexplained, with the variance of the statistics taken before training: coefficients and learning rates keep their
    meaning from one site to the next.
    """

    shards = True

    def nesting(self) -> Nesting | None:
        """The reconstructions of this step; None means one, from all codes."""
        return None


class Prefixes(Plain):
    """Nested prefixes of the dictionary: the first latents alone should reconstruct, too (Bussmann et al. 2025).

    `L = mean over m of FVU(b + sum over j < F_m of z_j d_j)`, with `F_1 < F_2 < ... = F`.

    Args:
        n_latents: width F.
        shares: sizes of the groups as shares of F, first group first; they sum to 1.
        sampled: 0, or how many prefix lengths are drawn anew in each training step beside F itself, with
            `P(length > m) ~ m^-1/2`, so that no group border is built in; `shares` then serves outside of training.
    """

    shards = True

    def __init__(self, n_latents: int, shares: Sequence[float], sampled: int = 0):
        super().__init__()
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares of the groups are positive and sum to 1, got {list(shares)}")
        ends = torch.tensor(list(shares)).cumsum(0).mul(n_latents).round().long().tolist()
        self.ends = [*sorted({end for end in ends[:-1] if 0 < end < n_latents}), n_latents]
        self.sampled = sampled

    def _cuts(self) -> list[int]:
        width = self.ends[-1]
        if not (self.sampled and self.training):
            return self.ends
        lengths = torch.arange(1, width, dtype=torch.float64)
        drawn = torch.multinomial(lengths**-1.5, min(self.sampled, width - 1)) + 1
        return [*sorted(drawn.tolist()), width]

    def nesting(self) -> Nesting:
        """See `Plain.nesting`."""
        ends = tuple(self._cuts())
        return Nesting("latent", ends, (1.0,) * len(ends))


class NestedK(Plain):
    """Nested numbers of codes: the largest k_1, k_2, ... codes of a token should each reconstruct.

    `L = sum_i w_i FVU(b + sum over the k_i largest z_j of z_j d_j) / sum_i w_i`.

    Args:
        ks: rising numbers of codes; the last one is the k of the dictionary.
        weights: one per entry; None takes 1 for all.
    """

    def __init__(self, ks: Sequence[int], weights: Sequence[float] | None = None):
        super().__init__()
        self.ks = tuple(ks)
        self.weights = (1.0,) * len(self.ks) if weights is None else tuple(weights)

    def nesting(self) -> Nesting:
        """See `Plain.nesting`."""
        return Nesting("rank", self.ks, self.weights)


def tilted_mean(losses: Tensor, tilt: float) -> Tensor:
    """`(1 / t) log mean_n exp(t l_n)` of losses `[n]`: their mean for t -> 0, their maximum for t -> infinity.

    Tilted empirical risk (Li, Beirami, Sanjabi and Smith 2021): token n weighs `softmax(t l)_n` in the gradient, so
    t > 0 turns to the tokens that are explained worst and t < 0 away from them. Exact for any t, because
    `m + log(1 + mean(exp(t (l - m)) - 1)) / t` holds for every m, and the extreme m = max l (min l for t < 0) leaves no
    exponent above 0.

    Args:
        losses: one per token, as ratios (1 is the mean loss of predicting the mean).
        tilt: t; 0 takes the mean.
    """
    if tilt == 0:
        return losses.mean()
    rows = share().rows
    extreme = (rows.max(losses.amax()) if tilt > 0 else rows.min(losses.amin())).detach()
    return extreme + torch.log1p(rows.mean(torch.expm1(tilt * (losses - extreme)).mean())) / tilt


def halvings(k: int, levels: int) -> list[int]:
    """`k / 2^(levels - 1), ..., k / 2, k`, whole numbers, each once."""
    return sorted({max(1, k >> level) for level in range(levels)})
