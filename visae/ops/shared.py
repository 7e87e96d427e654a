"""Rules over batches and dictionaries that several processes hold together; they exchange values, never rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from visae.ops.group import Group, share
from visae.ops.rules import BatchTopK, FeatureChoice, Rule, TopK, largest, per_column, top
from visae.ops.sparse import Pattern


def batch_topk(k: float, signed: bool = False) -> Rule:
    """`BatchTopK` over the rows of all processes that share the batch now."""
    now = share()
    return BatchTopK(k, signed) if now.all.size == 1 else SharedBatchTopK(k, now.all, now.rows.size, signed)


def feature_choice(part: float | Tensor, signed: bool = False) -> Rule:
    """`FeatureChoice` over the rows of all processes that share the batch now."""
    rows = share().rows
    return FeatureChoice(part, signed) if rows.size == 1 else SharedFeatureChoice(part, rows, signed)


def _last(every: Tensor, count: int | Tensor) -> Tensor:
    """The `count`-th largest `[*]` of the values `[processes, m, *]` of all processes; one count, or `[*]`."""
    if isinstance(count, Tensor):
        return every.flatten(0, 1).sort(dim=0, descending=True).values.gather(0, count[None] - 1)[0]
    return every.flatten(0, 1).topk(count, dim=0, sorted=False).values.amin(0)


def _kept(own: Tensor, every: Tensor, last: Tensor, count: int | Tensor, rank: int) -> Tensor:
    """Which of this process's candidates are among the `count` largest of all processes.

    Of equal values the first processes keep theirs, and of one process's the first along dimension 0.

    Args:
        own: `[m, *]` candidates.
        every: `[processes, m, *]` those of all.
        last: see `_last`.
        count: how many are kept in all, at most `processes * m`.
        rank: of this process in `every`.

    Returns:
        `[m, *]` bool.
    """
    ties = (every == last).sum(1)
    room = count - (every > last).sum((0, 1)) - ties[:rank].sum(0)
    tie = own == last
    return (own > last) | (tie & (tie.cumsum(0) <= room))


def _key(pre: Tensor, signed: bool) -> Tensor:
    """What is ranked, in a dtype that every backend of torch can exchange."""
    return (pre.abs() if signed else pre).to(torch.promote_types(pre.dtype, torch.float32))


@dataclass(frozen=True)
class SharedBatchTopK:
    """The `n * k` largest of a batch whose n rows, and perhaps latents, lie on several processes.

    Attributes:
        k: mean codes per row.
        group: the processes.
        parts: how many of them hold other rows.
        signed: see `Rule`.
    """

    k: float
    group: Group
    parts: int
    signed: bool = False

    def _count(self, pre: Tensor) -> int:
        return min(max(1, int(self.k * pre.shape[0] * self.parts)), pre.numel() * self.group.size)

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        own, count = _key(pre, self.signed).reshape(-1), self._count(pre)
        every = self.group.gather(own)
        return _kept(own, every, _last(every, count), count, self.group.rank).view(pre.shape)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`. A process sends a little more than its share of values; if that was too little, twice as many."""
        key, count = (pre.abs() if self.signed else pre).reshape(-1), self._count(pre)
        held = int(1.25 * count / self.group.size) + 64
        while True:
            places = largest(key, min(held, key.numel()))
            own = _key(key[places], signed=False)
            every = self.group.gather(own)
            last = _last(every, count)
            if held >= key.numel() or bool((every.amin(1) < last).all()):
                return Pattern.of_places(places[_kept(own, every, last, count, self.group.rank)], *pre.shape)
            held *= 2


@dataclass(frozen=True)
class SharedFeatureChoice:
    """In each column the `share` of the rows of all processes with the largest entries.

    Attributes:
        share: of the rows.
        group: processes that split them.
        signed: see `Rule`.
    """

    share: float | Tensor
    group: Group
    signed: bool = False

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        key = _key(pre, self.signed)
        count = per_column(self.share, key.shape[0] * self.group.size, key)
        own, places = key.sort(dim=0, descending=True, stable=True)
        every = self.group.gather(own)
        kept = _kept(own, every, _last(every, count), count, self.group.rank)
        return torch.zeros_like(key, dtype=torch.bool).scatter_(0, places, kept)

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`."""
        return Pattern.of_mask(self.mask(pre))


@dataclass(frozen=True)
class ShardedTopK:
    """The k largest of each row of `[n, F]` whose columns lie on several processes.

    Attributes:
        k: codes per row.
        group: processes that split the columns.
        signed: see `Rule`.
    """

    k: int
    group: Group
    signed: bool = False

    @classmethod
    def of(cls, rule: TopK, group: Group) -> "ShardedTopK":
        """The rule over the columns of all processes."""
        return cls(rule.k, group, rule.signed)

    def mask(self, pre: Tensor) -> Tensor:
        """See `Rule`."""
        pattern, mask = self.pick(pre), torch.zeros_like(pre, dtype=torch.bool)
        mask[pattern.rows, pattern.columns] = True
        return mask

    def pick(self, pre: Tensor) -> Pattern:
        """See `Rule`. Widths may differ between processes, and be 0."""
        key = pre.abs() if self.signed else pre
        n, width = key.shape
        columns = top(key, self.k).sort(1).values.T if width else torch.empty((0, n), dtype=torch.int64).to(key.device)
        own = _key(key.new_full((self.k, n), -torch.inf), signed=False)
        own[: columns.shape[0]] = key.T.gather(0, columns).to(own.dtype)
        every = self.group.gather(own)
        kept = _kept(own, every, _last(every, self.k), self.k, self.group.rank) & torch.isfinite(own)
        kept = kept[: columns.shape[0]].T
        offsets = torch.zeros(n + 1, dtype=torch.int64, device=pre.device)
        torch.cumsum(kept.sum(1), 0, out=offsets[1:])
        return Pattern(columns.T[kept], offsets, width)
