"""Rows straight from the model, never stored: the same interface as a store."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visae.data.images import UnreadableImage
from visae.data.sample import FactorTable, ImageData, Labels, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae.side import Rows
from visae.sites import Site
from visae.store.batches import Batch, Note, split_into
from visae.store.forward import as_numpy, as_torch
from visae.store.index import Skipped
from visae.store.loader import BUFFER_BYTES, Loader, check_part, sigmas, with_sigma
from visae.store.making import making
from visae.store.sampling import Collection, Sampling
from visae.store.store import Chunk, Places
from visae.tokens import TokenPolicy


class Stream:
    """Rows of a site, computed when they are asked for.

    Args:
        model: the model, or a pipeline.
        site: alias, module path or `Site`.
        data: the samples, or prompts; unreadable ones are skipped and listed.
        policy: which tokens are kept (of every step and branch of a pipeline); the patches by default.
        dtype: of the rows, as in a store.
        batch: images per forward pass, or made at a time.
        workers: threads that read and frame images; 0 reads in the calling thread.
        sampling: how a pipeline runs, and what of it is collected.

    Attributes:
        meta: what makes the rows.
        sites: where they are read.
        n_rows: rows of one pass if every image can be read.
        d: length of a row.
        n_items: samples.
    """

    def __init__(
        self,
        model: AdaptedModel | AdaptedPipeline,
        site: str | Site,
        data: ImageData | PromptData,
        policy: TokenPolicy | None = None,
        *,
        dtype: str | torch.dtype = "float16",
        batch: int = 32,
        workers: int = 2,
        sampling: Sampling | Collection | None = None,
    ):
        self.model, self.data = model, data
        self.making = making(model, [site], data, policy, dtype, sampling)
        self.meta, self.sites, self.site = self.making.meta, self.making.sites, self.making.sites[0]
        self.batch, self.workers = batch, workers
        self.n_items, self.d = self.meta.n_items, self.meta.d
        self.n_rows = self.n_items * self.meta.tokens_per_item
        self._skipped: dict[int, Skipped] = {}

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"Stream({self.meta.model} {self.site.name}, {self.meta.data}: {self.n_rows:,} rows of {self.d} values)"

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
        """Shuffled `[batch, d]` tensors; see `Store.loader`. A mixing buffer is filled, half of it served, and so on.

        Of several processes each sends its own share of the images through the model, every `processes`-th of a pass;
        so the order of rows depends on their number, unlike a store's.

        Raises:
            ValueError: if the batch is not positive, the rank not below `processes`, or there are fewer images.
        """
        return StreamLoader(self, batch, seed, passes, pin, buffer_bytes, rank, processes)

    def chunks(self, rows: int = 65536) -> Iterator[Chunk]:
        """Every row once, in order, whole items together, one forward pass at a time (`rows` is but a wish)."""
        size = max(1, min(self.batch, rows // self.meta.tokens_per_item))
        places = Places(self.meta)
        for batch, rows_in in self.extracted(split_into(range(self.n_items), size)):
            if batch.notes:
                regions = batch.regions
                if regions is None and self.has_regions:
                    regions = np.zeros(batch.places.shape, np.int64)
                yield places.chunk(as_torch(rows_in, self.meta.dtype), batch.items, batch.places, regions)

    def extracted(self, parts: Iterator[Any]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches of the data set's places in `parts` with their rows `[n, t, d]` (bfloat16 as uint16)."""
        for batch in self.making.reader.batches(parts, self.workers):
            self._skipped |= {one.item: one for one in batch.skipped}
            rows = np.empty((0, self.meta.tokens_per_item, self.d), np.float32)
            if batch.notes:
                with self.making.start() as forward:  # no hook stays while others train
                    rows = forward(batch).wait()
            yield batch, rows

    @property
    def skipped(self) -> list[Skipped]:
        """Samples that could not be read, as far as they have been met."""
        return [self._skipped[item] for item in sorted(self._skipped)]

    @property
    def factors(self) -> FactorTable:
        """Factor -> values, in the data set's order."""
        return self.meta.factors

    @cached_property
    def has_regions(self) -> bool:
        """Whether rows know the region under them; told by the first sample that can be read."""
        if self.site.grid is None:
            return False
        for item in range(self.n_items):
            try:
                return getattr(self.data[item], "regions", None) is not None
            except UnreadableImage:
                continue
        return False

    @cached_property
    def notes(self) -> list[Note]:
        """What is known of every sample, by place; reads the whole data set once, without the model."""
        found = []
        for item in range(self.n_items):
            try:
                found.append(self.making.reader.note(item))
            except UnreadableImage as error:
                found.append(Note(error.key, (0, 0), {}))
                self._skipped[item] = Skipped(item, error.key, error.reason)
        return found

    @property
    def stored(self) -> np.ndarray:
        """Samples that have rows: `[n_items]` bool."""
        return np.array([note.hw != (0, 0) for note in self.notes])

    @property
    def keys(self) -> list[str]:
        """Name of every sample, by place."""
        return [note.key for note in self.notes]

    @property
    def item_labels(self) -> list[Labels]:
        """Factor -> values present, of every sample by place; empty for those that cannot be read."""
        return [note.labels for note in self.notes]

    @property
    def region_labels(self) -> list[tuple[dict[str, str], ...]]:
        """Labels of every sample's regions by place; entry j - 1 belongs to region j."""
        return [note.regions for note in self.notes]

    @property
    def groups(self) -> list[str | None]:
        """What must not be split over train and test, of every sample by place."""
        return [note.group for note in self.notes]


class StreamLoader:
    """Loader over a stream; made by `Stream.loader`.

    Samples pass in an order drawn from (seed, epoch). The buffer is filled with the rows of whole forward passes and
    shuffled; its first half is served, the rest stays and is filled up. At the end of a pass all is served. The
    shuffles depend on (seed, epoch, refill) alone, so a resume replays them on row numbers and computes only the
    forward passes of which rows are still in the buffer.
    """

    def __init__(
        self,
        stream: Stream,
        batch: int,
        seed: int,
        passes: int | None,
        pin: bool,
        buffer_bytes: int | None,
        rank: int,
        processes: int,
    ):
        check_part(batch, rank, processes)
        if processes > stream.n_items:
            raise ValueError(f"{stream.n_items} images cannot be shared by {processes} processes: start fewer")
        self._rank, self._processes = rank, processes
        self._stream, self._batch, self._passes, self._pin = stream, batch, passes, pin
        self._seed, self._epoch, self._position, self._skip = seed, 0, 0, 0
        t = stream.meta.tokens_per_item
        self._capacity = max(2 * stream.batch * t, (buffer_bytes or BUFFER_BYTES) // (stream.meta.bytes_per_item // t))
        self._served = np.empty(0, np.int64)
        self._sigmas = sigmas(stream.meta)
        self._at: int
        self._stop: int
        self._rows: np.ndarray
        self._origin: np.ndarray
        self._begin()

    @property
    def items(self) -> np.ndarray:
        """Sample `[b]` of every row of the latest batch."""
        return self._served

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is; `unreadable` lists samples met so far that gave no rows, which the replay must know."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._seed,
            "skip": self._skip,
            "unreadable": [one.item for one in self._stream.skipped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the batch that was served last when the state was taken.

        Raises:
            ValueError: if the state belongs to another data set.
        """
        if not 0 <= state["position"] <= self._stream.n_rows:
            raise ValueError(
                f"the state stands at row {state['position']} but this stream has {self._stream.n_rows} rows in a "
                "pass: it belongs to another data set or policy"
            )
        self._seed, self._epoch, self._skip = state["seed"], state["epoch"], state["skip"]
        self._begin()
        self._replay(state["position"], set(state["unreadable"]))

    def load_states(self, states: list[dict[str, Any]]) -> str:
        """Goes on, as near as can be, where another number of processes stood with these states.

        Images pass in the same order whatever the number of processes; so this pass goes on after as many of them as
        there were rows served. What lay in mixing buffers is served again or not at all.

        Returns:
            What is not exact about it.
        """
        t, first = self._stream.meta.tokens_per_item, states[0]
        self._seed, self._epoch = first["seed"], max(state["epoch"] for state in states)
        now = [state for state in states if state["epoch"] == self._epoch]
        self._skip = first["skip"] + sum(state["position"] for state in now) // t
        if len(states) - len(now) or self._stream.n_items - self._skip < self._processes:
            self._epoch, self._skip = self._epoch + 1, 0
        self._begin()
        held = len(states) * self._capacity
        return (
            f"a stream's order depends on the number of processes: up to {held} rows of pass {self._epoch} that "
            f"{len(states)} processes held in their buffers are served again or not at all"
        )

    def __iter__(self) -> Iterator[Tensor | Rows]:
        return self

    def __next__(self) -> Tensor | Rows:
        meta = self._stream.meta
        out = torch.empty((self._batch, self._stream.d), dtype=meta.torch_dtype, pin_memory=self._pin)
        view, origin, filled, idle = as_numpy(out), [], 0, 0
        while filled < self._batch and (self._passes is None or self._epoch < self._passes):
            if self._at == self._stop and not self._refill():
                idle = idle + 1 if self._position == 0 else 0
                if idle > 1:
                    raise ValueError(f"none of the images of {meta.data} can be read: there are no rows to serve")
                self._epoch, self._skip = self._epoch + 1, 0
                self._begin()
                continue
            take = min(self._batch - filled, self._stop - self._at)
            view[filled : filled + take] = self._rows[self._at : self._at + take]
            origin.append(self._origin[self._at : self._at + take])
            filled, self._at, self._position = filled + take, self._at + take, self._position + take
        if not filled:
            raise StopIteration
        served = np.concatenate(origin)
        self._served = served[:, 0]
        return with_sigma(out[:filled], served[:, 2], self._sigmas)

    def _begin(self) -> None:
        """Stands at the start of a pass."""
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._stream.n_items)
        mine = order[self._skip + self._rank :: self._processes]
        self._parts = list(split_into(mine.tolist(), self._stream.batch))
        self._source: Iterator[tuple[Batch, np.ndarray]] | None = None
        self._next, self._refills, self._position = 0, 0, 0
        self._at, self._stop = 0, 0
        meta = self._stream.meta
        self._rows = np.empty((0, self._stream.d), as_numpy(torch.empty(0, dtype=meta.torch_dtype)).dtype)
        self._origin = np.empty((0, 3), np.int64)

    def _refill(self) -> bool:
        """Fills the buffer up and shuffles it; False at the end of a pass."""
        if self._source is None:
            self._source = self._stream.extracted(iter(self._parts[self._next :]))
        rows, origin = [self._rows[self._stop :]], [self._origin[self._stop :]]
        held = len(rows[0])
        while held < self._capacity and self._next < len(self._parts):
            batch, fresh = next(self._source)
            rows.append(fresh.reshape(-1, fresh.shape[-1]))
            origin.append(self._origin_of(self._next, batch.items))
            self._next, held = self._next + 1, held + len(origin[-1])
        if not held:
            return False
        order = self._shuffle(held)
        self._rows = np.concatenate([part for part in rows if len(part)]).take(order, axis=0)
        self._origin = np.concatenate(origin)[order]
        return True

    def _shuffle(self, held: int) -> np.ndarray:
        """Order of a freshly filled buffer of `held` rows; sets what part of it will be served."""
        self._refills += 1
        self._at, self._stop = 0, held if self._next == len(self._parts) else -(-held // 2)
        return np.random.default_rng([self._seed, self._epoch, self._refills]).permutation(held)

    def _origin_of(self, part: int, items: np.ndarray) -> np.ndarray:
        """Sample, forward pass and row in it `[n, 3]` of the rows that a forward pass brings."""
        t = self._stream.meta.tokens_per_item
        n = len(items) * t
        return np.stack([np.repeat(items, t), np.full(n, part), np.arange(n)], axis=1)

    def _replay(self, position: int, unreadable: set[int]) -> None:
        """Repeats all refills up to `position` on row numbers, then computes the rows that the buffer holds."""
        while self._position < position:
            origin = [self._origin[self._stop :]]
            held = len(origin[0])
            while held < self._capacity and self._next < len(self._parts):
                items = np.array([item for item in self._parts[self._next] if item not in unreadable], dtype=np.int64)
                origin.append(self._origin_of(self._next, items))
                self._next, held = self._next + 1, held + len(origin[-1])
            if not held:
                raise ValueError(
                    f"the state stands at row {position} but this pass ends at row {self._position}: it belongs to "
                    "another data set or policy"
                )
            self._origin = np.concatenate(origin)[self._shuffle(held)]
            self._at = min(self._stop, position - self._position)
            self._position += self._at
        self._rows = np.empty((len(self._origin), self._stream.d), self._rows.dtype)
        wanted = np.unique(self._origin[self._at :, 1]).tolist()
        parts = (self._parts[part] for part in wanted)
        for part, (_, fresh) in zip(wanted, self._stream.extracted(parts), strict=True):
            mine = np.flatnonzero(self._origin[:, 1] == part)
            self._rows[mine] = fresh.reshape(-1, fresh.shape[-1])[self._origin[mine, 2]]
