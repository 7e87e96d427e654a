"""Processes that train one dictionary together, and sums, extremes and rows over all of them.

A batch may be split over processes by its rows, and a dictionary by its latents. Whatever is computed from a whole
batch (a threshold, a variance, a count) asks `share()` for the processes that hold the rest of it; a process alone
gets its own values back. No statistic of a batch may be taken without it: `tests/train/test_train_processes.py`
compares every kind of dictionary on one process and on two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Group:
    """Processes that exchange tensors of equal shapes, all in the same order of calls. One alone exchanges nothing.

    Args:
        handle: torch's process group; None for a process alone.
    """

    def __init__(self, handle: Any = None):
        self.handle = handle
        self.size = 1 if handle is None else torch.distributed.get_world_size(handle)
        self.rank = 0 if handle is None else torch.distributed.get_rank(handle)
        backend = "" if handle is None else torch.distributed.get_backend(handle)
        self.device = torch.device("cuda" if "nccl" in backend else "cpu")

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the processes; without a gradient where there are several."""
        return self._reduced(x, "SUM")

    def min(self, x: Tensor) -> Tensor:
        """Smallest over the processes, entry by entry; likewise."""
        return self._reduced(x, "MIN")

    def max(self, x: Tensor) -> Tensor:
        """Largest over the processes, entry by entry; likewise."""
        return self._reduced(x, "MAX")

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the processes, with the gradient of this process's own x.

        The trainer averages gradients over the processes, which makes it the gradient of the mean, in whatever
        function of it.
        """
        return x if self.size == 1 else x + (self.sum(x) / self.size - x.detach())

    def plus(self, x: Tensor) -> Tensor:
        """Sum over the processes, with the gradient of this process's own x: for losses of slices of the latents."""
        return x if self.size == 1 else x + (self.sum(x) - x.detach())

    def variance(self, x: Tensor) -> Tensor:
        """Variance `[d]` of the rows `[n, d]` of all processes, without a gradient; n is the same on each."""
        if self.size == 1:
            return x.detach().var(0, correction=0)
        mean = self.sum(x.mean(0)) / self.size
        return self.sum((x - mean).square().mean(0)) / self.size

    def total(self, n: int) -> int:
        """Sum of a number over the processes."""
        return int(self.sum(torch.tensor(n, device=self.device)))

    def gather(self, x: Tensor) -> Tensor:
        """`[size, *shape]`: x of every process, in their order; shapes are equal, and there is no gradient."""
        x = x.detach().contiguous()
        if self.size == 1:
            return x[None]
        parts = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x, group=self.handle)
        return torch.stack(parts)

    def cat(self, x: Tensor) -> Tensor:
        """Rows `[n, ...]` of every process one after the other; n may differ, which costs a look at the device."""
        if self.size == 1:
            return x.detach()
        counts = self.gather(torch.tensor([x.shape[0]], device=x.device))[:, 0].tolist()
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: x.shape[0]] = x.detach()
        return torch.cat([part[:n] for part, n in zip(self.gather(padded), counts, strict=True)])

    def spread(self, x: Tensor) -> None:
        """Copies x of the first process into x of all, in place."""
        if self.size > 1:
            torch.distributed.broadcast(x, torch.distributed.get_global_rank(self.handle, 0), group=self.handle)

    def _reduced(self, x: Tensor, how: str) -> Tensor:
        if self.size == 1:
            return x
        out = x.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(out, getattr(torch.distributed.ReduceOp, how), group=self.handle)
        return out


ALONE = Group()


@dataclass(frozen=True)
class Share:
    """Which part of a step this process does.

    Attributes:
        rows: processes that split the rows of a batch, each holding as many, with the same latents.
        latents: processes that split the latents of the dictionary, with the same rows.
        all: both.
    """

    rows: Group = ALONE
    latents: Group = ALONE
    all: Group = ALONE


_SHARE: ContextVar[Share] = ContextVar("share", default=Share())  # noqa: B039 (it is frozen)


def share() -> Share:
    """What is shared now; outside of `sharing`, nothing."""
    return _SHARE.get()


@contextmanager
def sharing(part: Share) -> Iterator[None]:
    """In this context `share()` is `part`; all its processes must do the same things in it."""
    token = _SHARE.set(part)
    try:
        yield
    finally:
        _SHARE.reset(token)


def randn_like(x: Tensor) -> Tensor:
    """Normal noise of the shape of the rows x `[n, ...]`, different on every process that holds other rows.

    Each draws the noise of all rows and takes its own: generators stay in step, and results do not depend on the
    number of processes.
    """
    rows, n = share().rows, x.shape[0]
    drawn = torch.randn(rows.size * n, *x.shape[1:], dtype=x.dtype, device=x.device)
    return drawn[rows.rank * n : (rows.rank + 1) * n]
