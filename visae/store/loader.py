"""Shuffled rows: random blocks fill a buffer, its rows are served in a random order, every row once per pass."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visae.store.forward import as_numpy
from visae.store.shard import stored_dtype

if TYPE_CHECKING:
    from visae.store.store import Store

BUFFER_BYTES = 128 * 2**20
_FEWEST = 64
"""Blocks mixed at least; with fewer, neighbouring rows would come from the same samples too often."""


class Loader(Protocol):
    """Shuffled `[b, d]` rows with an exact resume.

    Attributes:
        items: `[b]` int64 sample of every row of the latest batch.
    """

    @property
    def items(self) -> np.ndarray: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __next__(self) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class _Group:
    """Blocks that are mixed together: rows `start` to `stop` of a pass.

    Attributes:
        start: first row of the pass that it serves.
        stop: one past the last.
        rows: `[stop - start, d]` buffer, in block order.
        numbers: `[stop - start]` row number in the store of each buffer row.
        order: `[stop - start]` in which they are served.
    """

    start: int
    stop: int
    rows: np.ndarray
    numbers: np.ndarray
    order: np.ndarray


class StoreLoader:
    """Loader over a store; made by `Store.loader`."""

    def __init__(self, store: "Store", batch: int, seed: int, passes: int | None, pin: bool, buffer_bytes: int):
        if batch < 1:
            raise ValueError(f"a batch needs at least one row, got {batch}")
        if store.n_rows == 0:
            raise ValueError(f"{store.path} has no rows: none of its images could be read")
        self._store, self._batch, self._passes, self._pin = store, batch, passes, pin
        self._seed, self._epoch, self._position = seed, 0, 0
        self._blocks = self._table()
        block_bytes = store.block_items * store.meta.bytes_per_item
        per_group = max(_FEWEST, buffer_bytes // block_bytes)
        self._n_groups = -(-len(self._blocks) // per_group)
        self._rooms: list[np.ndarray] = []
        self._filled = 0
        self._plans: dict[int, list[np.ndarray]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="visae-load")
        self._group: tuple[tuple[int, int], _Group] | None = None
        self._coming: tuple[tuple[int, int], Future[_Group]] | None = None
        self._served = np.empty(0, np.int64)

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
    def items(self) -> np.ndarray:
        """Sample `[b]` of every row of the latest batch."""
        return self._store.row_items(self._served)

    @property
    def rows(self) -> np.ndarray:
        """Row number `[b]` in the store of every row of the latest batch."""
        return self._served

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: two integers, beside the seed that they belong to."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the batch that was served last when the state was taken.

        Raises:
            ValueError: if the state belongs to a store of another size.
        """
        if not 0 <= state["position"] <= self._store.n_rows:
            raise ValueError(f"the state stands at row {state['position']} but {self._store.path} has {self._store.n_rows} rows: "
                             "it belongs to another store")
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        if self._coming is not None:
            self._coming[1].exception()  # its buffer is reused, so it must have ended
        self._group = self._coming = None
        self._plans.clear()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        meta = self._store.meta
        out = torch.empty((self._batch, meta.d), dtype=meta.torch_dtype, pin_memory=self._pin)
        view, numbers, filled = as_numpy(out), [], 0
        while filled < self._batch:
            if self._position == self._store.n_rows:
                self._epoch, self._position = self._epoch + 1, 0
            if self._passes is not None and self._epoch >= self._passes:
                break
            group = self._current()
            take = min(self._batch - filled, group.stop - self._position)
            picks = group.order[self._position - group.start :][:take]
            group.rows.take(picks, axis=0, out=view[filled : filled + take], mode="clip")  # "raise" would buffer
            numbers.append(group.numbers[picks])
            filled += take
            self._position += take
        if not filled:
            raise StopIteration
        self._served = np.concatenate(numbers)
        return out[:filled]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Blocks of each group of a pass."""
        if epoch not in self._plans:
            self._plans = {known: plan for known, plan in self._plans.items() if known >= self._epoch}
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
            self._plans[epoch] = np.array_split(order, self._n_groups)
        return self._plans[epoch]

    def _current(self) -> _Group:
        """The group that holds the position; the next one starts loading."""
        if self._group is not None and self._group[0][0] == self._epoch and self._position < self._group[1].stop:
            return self._group[1]
        t = self._store.meta.tokens_per_item
        stops = np.cumsum([self._blocks[blocks, 2].sum() * t for blocks in self._plan(self._epoch)])
        at = self._epoch, int(np.searchsorted(stops, self._position, side="right"))
        if self._coming is None or self._coming[0] != at:
            self._coming = at, self._submit(at)
        self._group = at, self._coming[1].result()
        following = (at[0], at[1] + 1) if at[1] + 1 < self._n_groups else (at[0] + 1, 0)
        last = self._passes is not None and following[0] >= self._passes
        self._coming = None if last else (following, self._submit(following))
        return self._group[1]

    def _submit(self, at: tuple[int, int]) -> Future[_Group]:
        """Starts filling the buffer that the group before the current one used."""
        self._filled += 1
        return self._thread.submit(self._load, at, self._plan(at[0]), self._filled % 2)

    def _load(self, at: tuple[int, int], plan: list[np.ndarray], room: int) -> _Group:
        """Reads the blocks of a group, in the order in which they lie on disk."""
        store, t = self._store, self._store.meta.tokens_per_item
        start = int(sum(self._blocks[blocks, 2].sum() for blocks in plan[: at[1]])) * t
        table = self._blocks[np.sort(plan[at[1]])]
        buffer = self._room(room)
        filled = 0
        for number, block, items, _ in table.tolist():
            store.read_block(number, block, buffer[filled : filled + items])
            filled += items
        n = filled * t
        numbers = np.repeat(table[:, 3], table[:, 2] * t) + _within(table[:, 2] * t)
        order = np.random.default_rng([self._seed, *at]).permutation(n)
        return _Group(start, start + n, buffer[:filled].reshape(n, -1), numbers, order)

    def _room(self, which: int) -> np.ndarray:
        """One of the two buffers, made when first needed."""
        while len(self._rooms) <= which:
            meta = self._store.meta
            most = -(-len(self._blocks) // self._n_groups) * self._store.block_items
            self._rooms.append(np.empty((most, meta.tokens_per_item, meta.d), stored_dtype(meta.dtype)))
        return self._rooms[which]


def _within(lengths: np.ndarray) -> np.ndarray:
    """`0 .. l - 1` for every length l, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
