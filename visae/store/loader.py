"""Shuffled rows: random blocks fill a buffer, its rows are served in a random order, every row once per pass.

Several processes serve the same order of rows: of every `processes * batch` rows, each takes its own `batch`. So a run
on two processes sees the batches of one with twice the batch, and may go on with any other number.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visae.sae.side import Rows
from visae.store.forward import as_torch
from visae.store.meta import StoreMeta
from visae.store.shard import stored_dtype

if TYPE_CHECKING:
    from visae.store.store import Store

BUFFER_BYTES = 32 * 2**20
_UNUSED = 3
"""References to a buffer that nobody uses: from the list, the loop over it, and the call that counts."""

_BLOCKS = 96
"""Blocks mixed at least, unless less memory is asked for: with few, neighbouring rows often share their samples."""


class Loader(Protocol):
    """Shuffled `[b, d]` rows with an exact resume; of pipelines they come as `Rows`, with their noise levels.

    A batch lies in memory that is used again once nobody holds it; it may be changed in place.

    Attributes:
        items: `[b]` int64 sample of every row of the latest batch.
    """

    @property
    def items(self) -> np.ndarray:
        """Sample of every row of the latest batch."""
        ...

    def __iter__(self) -> Iterator[Tensor | Rows]: ...

    def __next__(self) -> Tensor | Rows: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, for JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the batch that was served last when the state was taken."""
        ...

    def load_states(self, states: list[dict[str, Any]]) -> str:
        """Goes on after another number of processes, one state from each; returns what is not exact about it."""
        ...


@dataclass(frozen=True)
class _Group:
    """Blocks that are mixed together: rows `start` to `stop` of all that are ever served, pass after pass.

    Attributes:
        start: first row.
        stop: one past the last.
        served: `[m]` which of them are this process's, rising.
        rows: `[m, d]` those.
        numbers: `[m]` row number in the store of each.
    """

    start: int
    stop: int
    served: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray


class StoreLoader:
    """Loader over a store; made by `Store.loader`."""

    def __init__(
        self,
        store: "Store",
        batch: int,
        seed: int,
        passes: int | None,
        pin: bool,
        buffer_bytes: int | None,
        rank: int,
        processes: int,
    ):
        check_part(batch, rank, processes)
        if store.n_rows == 0:
            raise ValueError(f"{store.path} has no rows: none of its images could be read")
        self._store, self._batch, self._passes, self._pin = store, batch, passes, pin
        self._rank, self._processes = rank, processes
        self._seed, self._epoch, self._position = seed, 0, 0
        self._origin = 0  # row of all served where this process began to count batches
        self._blocks = self._table()
        block_bytes = store.block_items * store.meta.bytes_per_item
        per_group = max(_BLOCKS, BUFFER_BYTES // block_bytes) if buffer_bytes is None else buffer_bytes // block_bytes
        self._n_groups = -(-len(self._blocks) // max(1, per_group))
        self._rooms: list[np.ndarray] = []
        self._plans: dict[int, list[np.ndarray]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="visae-load")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="visae-check")
        self._group: tuple[tuple[int, int], _Group] | None = None
        self._coming: tuple[tuple[int, int], Future[_Group]] | None = None
        self._served = np.empty(0, np.int64)
        self._sigmas = sigmas(store.meta)

    def _table(self) -> np.ndarray:
        """Every block: shard, block in it, items in it, number of its first row `[m, 4]`."""
        store, found, row = self._store, [], 0
        for number, shard in enumerate(store.shards):
            for block, first in enumerate(range(0, shard.entry.n_items, store.block_items)):
                items = min(store.block_items, shard.entry.n_items - first)
                found.append((number, block, items, row))
                row += items * store.meta.tokens_per_item
        return np.array(found, dtype=np.int64)

    @property
    def n_rows(self) -> int:
        """Rows of one pass, of all processes together."""
        return self._store.n_rows

    @property
    def items(self) -> np.ndarray:
        """Sample `[b]` of every row of the latest batch."""
        return self._store.row_items(self._served)

    @property
    def rows(self) -> np.ndarray:
        """Row number `[b]` in the store of every row of the latest batch."""
        return self._served

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: two integers, beside the seed that they belong to; the same on every process."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the batch that was served last when the state was taken.

        Raises:
            ValueError: if the state belongs to a store of another size.
        """
        if not 0 <= state["position"] <= self._store.n_rows:
            raise ValueError(
                f"the state stands at row {state['position']} but {self._store.path} has {self._store.n_rows} rows: "
                "it belongs to another store"
            )
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._origin = self._epoch * self._store.n_rows + self._position
        if self._coming is not None:
            self._coming[1].exception()  # waits: two loads at a time would share a buffer
        self._group = self._coming = None
        self._plans.clear()

    def load_states(self, states: list[dict[str, Any]]) -> str:
        """Goes on where another number of processes stood with these states, exactly: the order is the same.

        Returns:
            What is not exact about it: nothing.
        """
        self.load_state_dict(states[0])
        return ""

    def __iter__(self) -> Iterator[Tensor | Rows]:
        return self

    def __next__(self) -> Tensor | Rows:
        n = self._store.n_rows
        window = self._epoch * n + self._position
        end = window + self._batch * self._processes
        if self._passes is not None and end > (whole := self._passes * n):
            if window >= whole or self._processes > 1:  # processes stop together, before a batch that is not whole
                raise StopIteration
            end = whole
        first = window + self._rank * self._batch
        last, parts, numbers = min(first + self._batch, end), [], []
        while first < last:
            group = self._current(first)
            at = int(np.searchsorted(group.served, first))
            take = slice(at, at + min(last, group.stop) - first)
            parts.append(group.rows[take])
            numbers.append(group.numbers[take])
            first += len(parts[-1])
        self._epoch, self._position = (end - 1) // n, (end - 1) % n + 1
        self._served = np.concatenate(numbers)
        rows = as_torch(parts[0] if len(parts) == 1 else np.concatenate(parts), self._store.meta.dtype)
        return with_sigma(rows.pin_memory() if self._pin else rows, self._served, self._sigmas)

    def _own(self, row: int) -> int:
        """The first row of this process at or after a row of all served."""
        batch = (row - self._origin) // self._batch
        ahead = (self._rank - batch) % self._processes
        return row if ahead == 0 else self._origin + (batch + ahead) * self._batch

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Blocks of each group of a pass."""
        if epoch not in self._plans:
            self._plans = {known: plan for known, plan in self._plans.items() if known >= self._epoch}
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
            self._plans[epoch] = np.array_split(order, self._n_groups)
        return self._plans[epoch]

    def _current(self, row: int) -> _Group:
        """The group that holds a row of all served; the next one that this process needs starts loading."""
        if self._group is not None and self._group[1].start <= row < self._group[1].stop:
            return self._group[1]
        at = self._at(row)
        if self._coming is None or self._coming[0] != at:
            if self._coming is not None:
                self._coming[1].exception()  # waits: two loads at a time would share a buffer
            self._coming = at, self._submit(at)
        self._group = at, self._coming[1].result()
        following = self._own(self._group[1].stop)
        last = self._passes is not None and following >= self._passes * self._store.n_rows
        self._coming = None if last else (self._at(following), self._submit(self._at(following)))
        return self._group[1]

    def _at(self, row: int) -> tuple[int, int]:
        """Pass and group of a row of all served."""
        epoch, position = divmod(row, self._store.n_rows)
        t = self._store.meta.tokens_per_item
        stops = np.cumsum([self._blocks[blocks, 2].sum() * t for blocks in self._plan(epoch)])
        return epoch, int(np.searchsorted(stops, position, side="right"))

    def _submit(self, at: tuple[int, int]) -> Future[_Group]:
        """Starts reading a group in the thread."""
        return self._thread.submit(self._load, at, self._plan(at[0]))

    def _load(self, at: tuple[int, int], plan: list[np.ndarray]) -> _Group:
        """Reads the blocks of a group in their order on disk, each row to its place in the served order."""
        store, t = self._store, self._store.meta.tokens_per_item
        start = at[0] * store.n_rows + int(sum(self._blocks[blocks, 2].sum() for blocks in plan[: at[1]])) * t
        table = self._blocks[np.sort(plan[at[1]])]
        n = int(table[:, 2].sum()) * t
        to = np.random.default_rng([self._seed, *at]).permutation(n)
        mine = (np.arange(start, start + n) - self._origin) // self._batch % self._processes == self._rank
        to = np.where(mine, np.cumsum(mine) - 1, -1)[to]  # -1: another process's row
        rows = self._room()[: int(mine.sum())]
        whole_rows, filled = _as_units(rows), 0
        for number, here in groupby(table.tolist(), key=itemgetter(0)):
            blocks = [(which, items * t) for _, which, items, _ in here]
            with store.blocks(number) as block:
                # Sums and copies go side by side; nothing is served before the sums are known to be right.
                checked = self._checker.submit(lambda: [block(which) for which, _ in blocks])  # noqa: B023 (waited for)
                try:
                    for which, count in blocks:
                        place = to[filled : filled + count]
                        units = _as_units(block(which, check=False).reshape(-1, store.d))
                        if self._processes > 1:
                            units, place = units[place >= 0], place[place >= 0]
                        whole_rows[place] = units
                        filled += count
                finally:
                    checked.result()
        numbers = np.repeat(table[:, 3], table[:, 2] * t) + _within(table[:, 2] * t)
        in_order = np.empty(len(rows), np.int64)
        in_order[to[to >= 0]] = numbers[to >= 0]
        return _Group(start, start + n, start + np.flatnonzero(mine), rows, in_order)

    def _room(self) -> np.ndarray:
        """A buffer `[rows, d]` for a group: one that no served batch refers to any more, or a new one."""
        for room in self._rooms:
            if sys.getrefcount(room) <= _UNUSED:
                return room
        meta = self._store.meta
        most = -(-len(self._blocks) // self._n_groups) * self._store.block_items * meta.tokens_per_item
        own = (most // (self._batch * self._processes) + 1) * self._batch
        room = np.empty((min(most, own), meta.d), stored_dtype(meta.dtype))
        self._rooms = [*self._rooms[-1:], room]
        return room


def sigmas(meta: StoreMeta) -> np.ndarray | None:
    """Noise level of every row of a sample, `[t]`; None where there is none."""
    return meta.column("sigma") if meta.collected is not None and meta.collected.timed else None


def with_sigma(rows: Tensor, numbers: np.ndarray, levels: np.ndarray | None) -> Tensor | Rows:
    """A batch with the noise level of every row.

    Args:
        rows: `[b, d]`.
        numbers: `[b]` row numbers, counted through whole samples.
        levels: from `sigmas`; None leaves the batch as it is.
    """
    if levels is None:
        return rows
    return Rows(rows, {"sigma": torch.from_numpy(levels[numbers % len(levels)])})


def check_part(batch: int, rank: int, processes: int) -> None:
    """Refuses a batch without rows, or a part that is none of so many.

    Raises:
        ValueError: with the numbers.
    """
    if batch < 1:
        raise ValueError(f"a batch needs at least one row, got {batch}")
    if not 0 <= rank < processes:
        raise ValueError(f"rank must be between 0 and processes - 1 = {processes - 1}, got {rank}")


def _as_units(rows: np.ndarray) -> np.ndarray:
    """Rows `[n, d]` as `[n]` opaque units, which numpy moves whole."""
    return rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0]


def _within(lengths: np.ndarray) -> np.ndarray:
    """`0 .. l - 1` for every length l, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
