"""Rows of a site to disk: resumable at any moment, and the same bytes however often it was stopped."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from visae.data.sample import ImageData, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
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
from visae.store.forward import Pending
from visae.store.index import INDEX, Index, Skipped, locked
from visae.store.making import Pass, making
from visae.store.meta import StoreMeta
from visae.store.sampling import Collection, Sampling
from visae.store.shard import Shard
from visae.store.store import Store
from visae.store.writer import ShardWriter
from visae.tokens import TokenPolicy

_AHEAD = 4


def extract(
    model: AdaptedModel | AdaptedPipeline,
    site: str | Site,
    data: ImageData | PromptData,
    out: str | Path,
    *,
    policy: TokenPolicy | None = None,
    dtype: str | torch.dtype = "float16",
    batch: int = 32,
    workers: int = 2,
    shard_bytes: int | None = None,
    progress: bool = True,
    sampling: Sampling | Collection | None = None,
) -> Store:
    """Stores the rows of a site for every sample of a data set, or goes on where an earlier call stopped.

    A shard is a fixed range of the data set's places, and batches never reach over its end; so the bytes do not depend
    on when a run was killed. (They may depend on `batch`, in the last bit, as every matrix product does.)

    Args:
        model: the model, or a pipeline.
        site: alias, module path or `Site`.
        data: the samples, or prompts; unreadable ones are listed as skipped and keep their place.
        out: folder of the store.
        policy: which tokens are kept (of every step and branch of a pipeline); the patches by default.
        dtype: `float16`, `bfloat16` or `float32`.
        batch: images per forward pass, or made at a time.
        workers: threads that read and frame images; 0 reads in this thread.
        shard_bytes: size of a shard, 256 MiB by default; a resumed store keeps its own.
        progress: show a bar.
        sampling: how a pipeline runs, and what of it is collected.

    Raises:
        StoreError: if the folder holds rows of something else, or another process writes there.
        DiskFull: if the disk cannot hold the rows.
        Overflow: if the dtype cannot hold them.
    """
    made = making(model, [site], data, policy, dtype, sampling)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        index = _open_index(folder, made.meta, shard_bytes)
        if index.missing:
            _require_room(folder, index, made.reader)
            with made.start() as forward:
                fill(folder, index, made.reader, forward, batch, workers, progress)
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
        raise StoreError(
            f"{folder} holds rows made from something else (stored -> wanted):\n  {changed}\n"
            "Choose another folder, or delete this one"
        )
    wanted = shard_shape(meta, shard_bytes)[0] if shard_bytes else index.shard_items
    if wanted != index.shard_items:
        raise StoreError(
            f"{folder} has shards of {index.shard_items} items, shard_bytes={shard_bytes} asks for {wanted}: "
            "leave shard_bytes out to go on, or choose another folder"
        )
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


def fill(folder: Path, index: Index, reader: Reader, forward: Pass, batch: int, workers: int, progress: bool) -> None:
    """Makes every missing shard; writing overlaps with the forward pass."""
    meta = index.meta
    spans = [(number, part) for number in index.missing for part in split_into(index.span(number), batch)]
    batches = reader.batches((part for _, part in spans), workers)
    done = meta.n_items - sum(len(part) for _, part in spans)
    with (
        writing(folder, index) as filler,
        tqdm(
            total=meta.n_items, initial=done, unit="img", desc=f"extract {meta.site.name}", disable=not progress
        ) as bar,
    ):
        for at, ((number, part), loaded) in enumerate(zip(spans, batches, strict=True)):
            last = at + 1 == len(spans) or spans[at + 1][0] != number
            filler.add(number, forward(loaded) if loaded.notes else None, loaded, last)
            bar.update(len(part))


@contextmanager
def writing(folder: Path, index: Index) -> Iterator["_Filler"]:
    """A `_Filler` that has written everything when the block ends, or has removed what is unfinished."""
    filler = _Filler(folder, index)
    try:
        yield filler
        filler.drain()
    finally:
        filler.stop()


class _Filler:
    """Puts shards on the disk behind the forward pass: one thread writes, another syncs shards that are full.

    What goes wrong in a thread is raised by the next call.
    """

    def __init__(self, folder: Path, index: Index):
        self._folder, self._index = folder, index
        self._metadata = shard_metadata(index.meta)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="visae-write")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="visae-sync")
        self._queue: deque[Future[None]] = deque()
        self._syncing: Future[None] | None = None
        self._open: list[ShardWriter] = []
        self._skipped: list[Skipped] = []
        self._failed = False

    def add(self, number: int, pending: Pending | None, batch: Batch, last: bool) -> None:
        """Queues a batch for shard `number`; `last` finishes it."""
        self._queue.append(self._writer.submit(self._guarded, self._write, number, pending, batch, last))
        while len(self._queue) > _AHEAD:
            self._queue.popleft().result()

    def drain(self) -> None:
        """Waits until everything is on the disk."""
        while self._queue:
            self._queue.popleft().result()
        if self._syncing is not None:
            self._syncing.result()

    def stop(self) -> None:
        """Ends the threads and removes what is unfinished."""
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._syncer.shutdown(wait=True)
        for writer in self._open:
            writer.abandon()

    def _guarded(self, job: Callable[..., None], *args: Any) -> None:
        """Runs a job unless an earlier one failed: nothing may be added to a shard that misses something."""
        if self._failed:
            return
        try:
            job(*args)
        except BaseException:
            self._failed = True
            raise

    def _write(self, number: int, pending: Pending | None, batch: Batch, last: bool) -> None:
        meta = self._index.meta
        if number not in (writer.number for writer in self._open):
            shape = len(self._index.span(number)), meta.tokens_per_item, meta.d
            self._open.append(
                ShardWriter(
                    self._folder, number, shape, meta.dtype, meta.site.n_tokens, self._index.block_items, self._metadata
                )
            )
        writer = self._open[-1]
        self._skipped += batch.skipped
        if pending is not None:
            writer.add(
                pending.wait(), batch.items, batch.places, batch.regions, [note.to_dict() for note in batch.notes]
            )
        if last:
            writer.finish()
            if self._syncing is not None:
                self._syncing.result()
            self._syncing = self._syncer.submit(self._guarded, self._sync, writer, self._skipped)
            self._skipped = []

    def _sync(self, writer: ShardWriter, skipped: list[Skipped]) -> None:
        self._index.shards[writer.number] = writer.commit()
        self._index.skipped |= {one.item: one for one in skipped}
        self._open.remove(writer)
        self._index.save(self._folder)


def _tell_skipped(index: Index) -> None:
    if not index.skipped:
        return
    named = [f"{one.key} ({one.reason})" for _, one in sorted(index.skipped.items())]
    more = f" and {len(named) - 5} more, all listed in {INDEX}" if len(named) > 5 else ""
    warnings.warn(
        f"{len(named)} of {index.meta.n_items} images could not be read and were skipped: {'; '.join(named[:5])}{more}",
        stacklevel=3,
    )
