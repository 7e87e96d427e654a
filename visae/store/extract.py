"""Rows of a site to disk: resumable at any moment, and the same bytes however often it was stopped."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from visae.data.sample import ImageData
from visae.model import AdaptedModel
from visae.sites import Site
from visae.store.batches import Batch, Reader, split_into
from visae.store.errors import DamagedShard, StoreError
from visae.store.estimate import (
    SHARD_BYTES,
    require_room,
    sample_items,
    shard_metadata,
    shard_shape,
    store_bytes,
)
from visae.store.forward import Forward, Pending, forward_pass
from visae.store.index import INDEX, Index, locked
from visae.store.meta import StoreMeta
from visae.store.shard import Shard, ShardWriter
from visae.store.store import Store
from visae.tokens import TokenPolicy

_AHEAD = 4


def extract(model: AdaptedModel, site: str | Site, data: ImageData, out: str | Path, *, policy: TokenPolicy | None = None,
            dtype: str | torch.dtype = "float16", batch: int = 32, workers: int = 2, shard_bytes: int | None = None,
            progress: bool = True) -> Store:
    """Stores the rows of a site for every sample of a data set, or goes on where an earlier call stopped.

    A shard is a fixed range of the data set's places, and batches never reach over its end; so the bytes do not depend
    on when a run was killed. (They may depend on `batch`, in the last bit, as every matrix product does.)

    Args:
        model: the model.
        site: alias, module path or `Site`.
        data: the samples; unreadable ones are listed as skipped and keep their place.
        out: folder of the store.
        policy: which tokens are kept; the patches by default.
        dtype: `float16`, `bfloat16` or `float32`.
        batch: images per forward pass.
        workers: threads that read and frame images; 0 reads in this thread.
        shard_bytes: size of a shard, 256 MiB by default; a resumed store keeps its own.
        progress: show a bar.

    Raises:
        StoreError: if the folder holds rows of something else, or another process writes there.
        DiskFull: if the disk cannot hold the rows.
        Overflow: if the dtype cannot hold them.
    """
    place = model.site(site)
    meta = StoreMeta.describe(model, place, data, policy or TokenPolicy(), dtype)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        index = _open_index(folder, meta, shard_bytes)
        reader = Reader(model, place, data, meta.policy)
        if index.missing:
            _require_room(folder, index, reader)
            with forward_pass(model, place, meta.dtype) as forward:
                fill(folder, index, reader, forward, batch, workers, progress)
        _tell_skipped(index)
    return Store(folder)


def _open_index(folder: Path, meta: StoreMeta, shard_bytes: int | None) -> Index:
    """The index of a new or a continued store, without shards that are not whole."""
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()
    if not (folder / INDEX).exists():
        index = Index(meta, *shard_shape(meta, shard_bytes or SHARD_BYTES))
        index.save(folder)
        return index
    index = Index.load(folder)
    if index.meta.content_hash != meta.content_hash:
        changed = "\n  ".join(index.meta.differences(meta))
        raise StoreError(f"{folder} holds rows made from something else (stored -> wanted):\n  {changed}\n"
                         "Choose another folder, or delete this one")
    wanted = shard_shape(meta, shard_bytes)[0] if shard_bytes else index.shard_items
    if wanted != index.shard_items:
        raise StoreError(f"{folder} has shards of {index.shard_items} items, shard_bytes={shard_bytes} asks for {wanted}: "
                         "leave shard_bytes out to go on, or choose another folder")
    for number, entry in list(index.shards.items()):
        try:
            Shard(folder, entry, index.block_items)
        except DamagedShard as error:
            warnings.warn(f"made anew: {error}", stacklevel=3)
            index.drop(number)
    return index


def _require_room(folder: Path, index: Index, reader: Reader) -> None:
    """Checks that the disk can hold the shards still missing."""
    missing = sum(len(index.span(number)) for number in index.missing)
    sampled = sample_items(reader, index.meta.n_items, wanted=8)
    needed = store_bytes(index.meta, index.shard_items, index.block_items, sampled, missing)
    require_room(folder, needed, index.meta)


def fill(folder: Path, index: Index, reader: Reader, forward: Forward, batch: int, workers: int, progress: bool) -> None:
    """Makes every missing shard; writing overlaps with the forward pass."""
    meta = index.meta
    spans = [(number, part) for number in index.missing for part in split_into(index.span(number), batch)]
    batches = reader.batches((part for _, part in spans), workers)
    done = meta.n_items - sum(len(part) for _, part in spans)
    with (
        _writing(folder, index) as (write, close),
        tqdm(total=meta.n_items, initial=done, unit="img", desc=f"extract {meta.site.name}", disable=not progress) as bar,
    ):
        for at, ((number, part), loaded) in enumerate(zip(spans, batches, strict=True)):
            write(number, forward(loaded) if len(loaded.notes) else None, loaded)
            if at + 1 == len(spans) or spans[at + 1][0] != number:
                close(number)
            bar.update(len(part))


@contextmanager
def _writing(folder: Path, index: Index) -> Iterator[tuple[Callable[[int, Pending | None, Batch], None],
                                                           Callable[[int], None]]]:
    """Two functions that queue work for the one thread that writes; what it raises is raised by the next call."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="visae-write")
    queue: deque[Future[None]] = deque()
    filler = _Filler(folder, index)

    def submit(job: Callable[..., None], *args: object) -> None:
        queue.append(thread.submit(job, *args))
        while len(queue) > _AHEAD:
            queue.popleft().result()

    try:
        yield lambda *args: submit(filler.add, *args), lambda number: submit(filler.close, number)
        while queue:
            queue.popleft().result()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
        filler.abandon()


class _Filler:
    """What the writing thread does: one open shard at a time."""

    def __init__(self, folder: Path, index: Index):
        self._folder, self._index = folder, index
        self._writer: ShardWriter | None = None
        self._skipped: list = []
        self._metadata = shard_metadata(index.meta)
        self._failed = False

    def add(self, number: int, pending: Pending | None, batch: Batch) -> None:
        """Appends a batch to shard `number`, once its rows have arrived."""
        if self._failed:
            return
        self._failed = True  # until this call has gone well: nothing may be added after a failure
        meta = self._index.meta
        if self._writer is None:
            shape = len(self._index.span(number)), meta.tokens_per_item, meta.d
            self._writer = ShardWriter(self._folder, number, shape, meta.dtype, meta.site.n_tokens, self._index.block_items,
                                       self._metadata)
        self._skipped += batch.skipped
        if pending is not None:
            notes = [note.to_dict() for note in batch.notes]
            self._writer.add(pending.wait(), batch.items, batch.places, batch.regions, notes)
        self._failed = False

    def close(self, number: int) -> None:
        """Finishes shard `number` and lists it."""
        if self._failed or self._writer is None:
            return
        self._failed = True
        self._index.shards[number] = self._writer.finish()
        self._index.skipped |= {one.item: one for one in self._skipped}
        self._writer, self._skipped = None, []
        self._index.save(self._folder)
        self._failed = False

    def abandon(self) -> None:
        """Removes what is unfinished."""
        if self._writer is not None:
            self._writer.abandon()


def _tell_skipped(index: Index) -> None:
    if not index.skipped:
        return
    named = [f"{one.key} ({one.reason})" for _, one in sorted(index.skipped.items())]
    more = f" and {len(named) - 5} more, all listed in {INDEX}" if len(named) > 5 else ""
    warnings.warn(f"{len(named)} of {index.meta.n_items} images could not be read and were skipped: "
                  f"{'; '.join(named[:5])}{more}", stacklevel=3)
