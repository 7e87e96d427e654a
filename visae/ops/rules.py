"""Which pre-activations become codes. Each rule has a plain definition (`mask`) and a fast twin that must equal it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from visae.ops.sparse import Pattern

GROUP = 16
"""Columns per group in the two-stage top-k; measured best for 2 048 to 12 288 latents on a CPU."""
SAMPLE = 512
"""Entries above the guessed threshold that the sample of `largest` should hold."""


class Rule(Protocol):
    """How a batch of pre-activations `[n, F]` is thinned out."""

    @property
    def signed(self) -> bool:
        """Whether codes keep their sign; else negative ones become 0."""
        ...

    def mask(self, pre: Tensor) -> Tensor:
        """`[n, F]` bool of the entries kept: the definition."""
        ...

    def pick(self, pre: Tensor) -> Pattern:
        """The same entries, found faster and without a tensor of the size of `pre`."""
        ...


def top(x: Tensor, k: int) -> Tensor:
    """Columns `[n, k]` of the k largest entries of each row of `[n, F]`, in no order.

    On a CPU in two stages: the k largest of a row lie in the k groups of columns with the largest maxima (an entry
    outside them is beaten by k maxima), so only those groups are searched. Equal up to ties.
    """
    n, width = x.shape
    groups = width // GROUP
    if x.device.type != "cpu" or width % GROUP or groups < 4 * k:
        return x.topk(min(k, width), dim=1, sorted=False).indices
    best = x.view(n, GROUP, groups).amax(1).topk(k, dim=1, sorted=False).indices
    stride = torch.arange(GROUP, device=x.device) * groups
    candidates = (best[:, None, :] + stride[None, :, None]).flatten(1)
    return candidates.gather(1, x.gather(1, candidates).topk(k, dim=1, sorted=False).indices)


def largest(key: Tensor, count: int) -> Tensor:
    """Places of the `count` largest entries of `[m]`, in order; on a CPU without sorting all of them."""
    flat = _candidates(key, count) if key.device.type == "cpu" else None
    return key.topk(count, sorted=False).indices.sort().values if flat is None else flat


def _candidates(key: Tensor, count: int) -> Tensor | None:
    """What `largest` returns, through a threshold guessed from a sample; None if the guess was too high."""
    share = count / key.numel()
    step = max(1, int(key.numel() * share / SAMPLE)) | 1  # odd, so that it does not stay on the same columns
    sample = key[::step].float()
    wanted = min(int(1.3 * share * sample.numel()) + 8, sample.numel())
    guess = sample.kthvalue(sample.numel() - wanted + 1).values
    places = (key >= guess.to(key.dtype)).nonzero()[:, 0]
    if places.numel() < count:
        return None
    found = key[places]
    last = found.kthvalue(found.numel() - count + 1).values
    above, ties = places[found > last], places[found == last]
    if above.numel() + ties.numel() == count:
        return places[found >= last]
    return torch.cat([above, ties[: count - above.numel()]]).sort().values


@dataclass(frozen=True)
class TopK:
    """The k largest of each row; by absolute value where `signed`."""

    k: int
    signed: bool = False

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        key = pre.abs() if self.signed else pre
        chosen = key.topk(min(self.k, key.shape[1]), dim=1).indices
        return torch.zeros_like(key, dtype=torch.bool).scatter_(1, chosen, True)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.rectangular(top(pre.abs() if self.signed else pre, self.k), pre.shape[1])


@dataclass(frozen=True)
class BatchTopK:
    """The `n * k` largest of the whole batch `[n, F]` (BatchTopK, Bussmann et al. 2024; the same as Mutual Choice)."""

    k: float
    signed: bool = False

    def count(self, pre: Tensor) -> int:
        """Entries kept of pre-activations `[n, F]`."""
        return min(max(1, int(self.k * pre.shape[0])), pre.numel())

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        key = (pre.abs() if self.signed else pre).reshape(-1)
        chosen = key.topk(self.count(pre)).indices
        return torch.zeros_like(key, dtype=torch.bool).index_fill_(0, chosen, True).view(pre.shape)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        key = (pre.abs() if self.signed else pre).reshape(-1)
        return Pattern.of_places(largest(key, self.count(pre)), *pre.shape)


@dataclass(frozen=True)
class GroupMax:
    """The largest entry of each row in each group of columns; column j belongs to group `j mod groups`."""

    groups: int
    signed: bool = False

    def _best(self, pre: Tensor) -> Tensor:
        key = functional.pad(pre.abs() if self.signed else pre, (0, -pre.shape[1] % self.groups), value=-torch.inf)
        best = key.view(len(pre), key.shape[1] // self.groups, self.groups).argmax(1)
        return best * self.groups + torch.arange(self.groups, device=pre.device)

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(1, self._best(pre), True)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.rectangular(self._best(pre), pre.shape[1])


@dataclass(frozen=True)
class FeatureChoice:
    """In each column the `share` of the rows with the largest entries: latents choose how often they fire.

    Attributes:
        share: one for all latents, or `[F]`.
        signed: see `Rule`.
    """

    share: float | Tensor
    signed: bool = False

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        key = pre.abs() if self.signed else pre
        counts = per_column(self.share, key.shape[0], key)
        order = key.argsort(dim=0, descending=True, stable=True)
        ranks = torch.arange(key.shape[0], device=key.device)[:, None].expand_as(order)
        return torch.zeros_like(key, dtype=torch.bool).scatter_(0, order, ranks < counts)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.of_mask(self.mask(pre))


def per_column(share: float | Tensor, n: int, like: Tensor) -> Tensor:
    """`[F]` int64: how many of n rows each column keeps, at least one; `like` `[*, F]` gives F and the device.

    Sums of neighbours are rounded, not each by itself: where no column is lifted to one, all keep `n sum share`.
    """
    shares = torch.as_tensor(share, dtype=torch.float64, device=like.device).expand(like.shape[1])
    ends = (shares * n).cumsum(0).round().long()
    return ends.diff(prepend=ends.new_zeros(1)).clamp(1, n)


@dataclass(frozen=True)
class Threshold:
    """Every entry above a threshold, a scalar or `[F]`: how batch rules and JumpReLU work at inference."""

    threshold: Tensor
    signed: bool = False

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        return (pre.abs() if self.signed else pre) > self.threshold

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.of_mask(self.mask(pre))


@dataclass(frozen=True)
class Above:
    """Every entry above a threshold, a scalar or `[F]`, negative ones too: where an elementwise part can vary."""

    threshold: Tensor
    signed: bool = True

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        return pre > self.threshold

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.of_mask(self.mask(pre))
