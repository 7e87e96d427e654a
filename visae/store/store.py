"""Rows on disk: in order, shuffled, or of one sample; everything checked before it is served."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae.data.sample import FactorTable, Labels
from visae.store.batches import Note
from visae.store.errors import DamagedShard, StoreError
from visae.store.forward import as_torch
from visae.store.index import Index, Skipped
from visae.store.loader import Loader, StoreLoader
from visae.store.meta import StoreMeta
from visae.store.shard import Shard, stored_dtype
from visae.tokens import KINDS, Tokens

_MAPS = 32


@dataclass(frozen=True)
class Chunk:
    """Rows of whole items, in order.

    Attributes:
        rows: `[n, d]` activations in the storage dtype.
        item: `[n]` int64 place of the sample in its data set.
        index: `[n]` int64 place in the site's token sequence.
        kind: `[n]` uint8 code into `visae.tokens.KINDS`.
        y: `[n]` int64 row on the token grid, -1 for tokens without a place.
        x: `[n]` int64 column on the token grid, likewise.
        region: `[n]` int64 region under the token, 0 for none; None where the data set has no masks.
        step: `[n]` int16 place among the timesteps of a pipeline's run, None for models that see images.
        sigma: `[n]` float32 noise level, likewise; NaN for text encoders.
        branch: `[n]` int8 branch of the guidance, a number of `visae.clock.CODES`, likewise.
    """

    rows: Tensor
    item: Tensor
    index: Tensor
    kind: Tensor
    y: Tensor
    x: Tensor
    region: Tensor | None
    step: Tensor | None = None
    sigma: Tensor | None = None
    branch: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]


class Places:
    """What is known of every place in a site's token sequence, and of every step and branch of a sample's rows."""

    def __init__(self, meta: StoreMeta):
        site = meta.site
        first, width = len(site.prefix), site.grid[1] if site.grid else 1
        patch = np.arange(site.n_tokens) - first
        inside = patch >= 0 if site.grid else np.zeros(site.n_tokens, bool)
        self.kind = torch.tensor([KINDS.index(kind) for kind in site.token_kinds], dtype=torch.uint8)
        self.y = torch.from_numpy(np.where(inside, patch // width, -1))
        self.x = torch.from_numpy(np.where(inside, patch % width, -1))
        columns = {name: meta.column(name) for name in ("step", "sigma", "branch")}
        self.columns = {name: torch.from_numpy(values) for name, values in columns.items() if values is not None}

    def chunk(self, rows: Tensor, item: np.ndarray, index: np.ndarray, region: np.ndarray | None) -> Chunk:
        """A chunk from rows `[n, t, d]`, items `[n]`, places `[n, t]` and regions `[n, t]`."""
        at = torch.from_numpy(index.reshape(-1).astype(np.int64))
        under = None if region is None else torch.from_numpy(region.reshape(-1).astype(np.int64))
        items = torch.from_numpy(item.astype(np.int64)).repeat_interleave(index.shape[1])
        columns = {name: values.repeat(len(item)) for name, values in self.columns.items()}
        return Chunk(rows.reshape(len(at), -1), items, at, self.kind[at], self.y[at], self.x[at], under, **columns)


class Store:
    """A folder of shards, opened for reading.

    Args:
        path: the folder.
        check: compare every block with its checksum when it is first read; False trusts the disk.
        partial: open a store whose extraction has not finished.

    Attributes:
        meta: what made the rows.
        n_rows: rows stored.
        d: length of a row.
        n_items: samples of the data set; `item` of any row is below it, unreadable samples have no rows.
        skipped: samples without rows.

    Raises:
        StoreError: if there is no store, or it is not complete.
        DamagedShard: if a shard is missing, truncated or has a damaged header.
    """

    def __init__(self, path: str | Path, *, check: bool = True, partial: bool = False):
        self.path = Path(path)
        index = Index.load(self.path)
        if index.missing and not partial:
            raise StoreError(
                f"{self.path} is not complete: {len(index.shards)} of {index.n_shards} shards are there. Run the "
                "same extract again to go on, or open_store(..., partial=True) to read what is there"
            )
        self.meta = index.meta
        self.block_items = index.block_items
        self.shards = [Shard(self.path, index.shards[n], index.block_items, check) for n in sorted(index.shards)]
        self.skipped: list[Skipped] = [index.skipped[item] for item in sorted(index.skipped)]
        self.n_items, self.d = self.meta.n_items, self.meta.d
        self._first_item = np.cumsum([0, *(shard.entry.n_items for shard in self.shards)])
        self.n_rows = int(self._first_item[-1]) * self.meta.tokens_per_item
        self._maps: OrderedDict[int, tuple[mmap, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._places = Places(self.meta)

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}: {self.n_rows:,} rows of {self.d} {self.meta.dtype} values, {self.meta.model} "
            f"{self.meta.site.name}, {self.meta.data})"
        )

    def loader(
        self,
        batch: int,
        *,
        seed: int = 0,
        passes: int | None = None,
        pin: bool = False,
        buffer_bytes: int | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> Loader:
        """Shuffled `[batch, d]` tensors in the storage dtype.

        Args:
            batch: rows at a time; without `passes` every batch has this length (one may span two passes).
            seed: of the order.
            passes: stop after so many passes (the last batch may be short); None never stops.
            pin: batches in page-locked memory, for quick copies to a GPU.
            buffer_bytes: memory in which rows are mixed (twice as much is held); 32 MiB or 96 blocks by default.
            rank: which of several processes this is.
            processes: how many share the rows. Their batches, one after the other, are those of one process with
                `processes * batch` rows at a time; with `passes` they leave out a last part that is shorter.

        Raises:
            ValueError: if the batch is not positive, the rank not below `processes`, or the store has no rows.
        """
        return StoreLoader(self, batch, seed, passes, pin, buffer_bytes, rank, processes)

    def chunks(self, rows: int = 65536) -> Iterator[Chunk]:
        """Every row once, in order, whole items together, about `rows` at a time."""
        for number, shard in enumerate(self.shards):
            step = max(1, rows // (self.meta.tokens_per_item * self.block_items)) * self.block_items
            for first in range(0, shard.entry.n_items, step):
                yield self._chunk(number, first, min(first + step, shard.entry.n_items))

    def item(self, item: int) -> Tokens:
        """All rows of one sample, by its place in the data set.

        Raises:
            KeyError: if it has none; the message says why.
        """
        number, at = self._where(item)
        first = at // self.block_items * self.block_items
        chunk = self._chunk(number, first, min(first + self.block_items, self.shards[number].entry.n_items))
        t = self.meta.tokens_per_item
        mine = slice((at - first) * t, (at - first + 1) * t)
        where = [x[mine] for x in (chunk.index.int(), chunk.kind, chunk.y.int(), chunk.x.int())]
        told = {name: getattr(chunk, name)[mine] for name in self._places.columns}
        return Tokens(chunk.rows[mine], chunk.item[mine], *where, **told)

    def verify(self, progress: bool = True) -> None:
        """Reads every byte and compares it with its checksum.

        Raises:
            DamagedShard: naming every damaged shard.
        """
        wrong = []
        for shard in tqdm(self.shards, desc="verify", unit="shard", disable=not progress):
            try:
                shard.verify()
            except DamagedShard as error:
                wrong.append(str(error))
        if wrong:
            raise DamagedShard("\n".join(wrong))

    @property
    def factors(self) -> FactorTable:
        """Factor -> values, in the data set's order."""
        return self.meta.factors

    @property
    def has_regions(self) -> bool:
        """Whether rows know the region under them."""
        return any(shard.has_regions for shard in self.shards)

    @cached_property
    def notes(self) -> list[Note]:
        """What is known of every sample, by place; only the key of those without rows."""
        found = [Note("", (0, 0), {})] * self.n_items
        for one in self.skipped:
            found[one.item] = Note(one.key, (0, 0), {})
        for shard in self.shards:
            for item, note in zip(shard.small("item"), shard.notes(), strict=True):
                found[item] = Note.from_dict(note)
        return found

    @cached_property
    def stored(self) -> np.ndarray:
        """Samples that have rows: `[n_items]` bool."""
        mask = np.zeros(self.n_items, dtype=bool)
        mask[np.concatenate([np.empty(0, np.int64), *(shard.small("item") for shard in self.shards)])] = True
        return mask

    @property
    def keys(self) -> list[str]:
        """Name of every sample, by place."""
        return [note.key for note in self.notes]

    @property
    def item_labels(self) -> list[Labels]:
        """Factor -> values present, of every sample by place; empty for those without rows."""
        return [note.labels for note in self.notes]

    @property
    def region_labels(self) -> list[tuple[dict[str, str], ...]]:
        """Labels of every sample's regions by place; entry j - 1 belongs to region j."""
        return [note.regions for note in self.notes]

    @property
    def groups(self) -> list[str | None]:
        """What must not be split over train and test, of every sample by place."""
        return [note.group for note in self.notes]

    def row_items(self, rows: np.ndarray) -> np.ndarray:
        """Sample `[n]` of every row number `[n]` (rows are numbered in the order of `chunks`)."""
        order = np.concatenate([shard.small("item") for shard in self.shards])
        return order[np.asarray(rows) // self.meta.tokens_per_item]

    @contextmanager
    def blocks(self, number: int) -> Iterator[Callable[..., np.ndarray]]:
        """A function from a block of shard `number` to its checked rows `[items, t, d]`; copy them in the context.

        With `check=False` it returns them unchecked, see `Shard.block`.
        """
        shard, mapped = self.shards[number], self._mapped(number)
        try:
            yield partial(shard.block, mapped)
        finally:
            shard.forget(mapped)

    def _mapped(self, number: int) -> tuple[mmap, np.ndarray]:
        """The map of a shard; only the last few stay open."""
        with self._lock:
            if number not in self._maps:
                self._maps[number] = self.shards[number].map()
                while len(self._maps) > _MAPS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(number)
            return self._maps[number]

    def _chunk(self, number: int, first: int, stop: int) -> Chunk:
        """Items `first` (the start of a block) to `stop` of a shard."""
        shard, meta = self.shards[number], self.meta
        rows = np.empty((stop - first, meta.tokens_per_item, meta.d), stored_dtype(meta.dtype))
        with self.blocks(number) as block:
            for start in range(first, stop, self.block_items):
                part = block(start // self.block_items)[: stop - start]
                rows[start - first :][: len(part)] = part
        region = None
        if self.has_regions:
            shape = stop - first, meta.tokens_per_item
            region = shard.small("region")[first:stop] if shard.has_regions else np.zeros(shape, np.uint8)
        return self._places.chunk(
            as_torch(rows, meta.dtype), shard.small("item")[first:stop], shard.small("index")[first:stop], region
        )

    def _where(self, item: int) -> tuple[int, int]:
        """Shard and place in it of a sample."""
        for number, shard in enumerate(self.shards):
            items = shard.small("item")
            at = int(np.searchsorted(items, item))
            if at < len(items) and items[at] == item:
                return number, at
        why = next(
            (one.reason for one in self.skipped if one.item == item), f"the store has items 0 to {self.n_items - 1}"
        )
        raise KeyError(f"no rows of item {item} in {self.path}: {why}")


def open_store(path: str | Path, *, check: bool = True, partial: bool = False) -> Store:
    """Opens a store for reading; see `Store`."""
    return Store(path, check=check, partial=partial)
