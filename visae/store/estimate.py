"""What an extraction will cost, before anything runs."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from visae.data.sample import ImageData, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.batches import Loaded, Reader, collate
from visae.store.errors import DiskFull, free_bytes, human
from visae.store.making import making
from visae.store.meta import StoreMeta
from visae.store.sampling import Collection, Sampling
from visae.store.shard import header_room, place_dtype
from visae.tokens import TokenPolicy

SHARD_BYTES = 256 * 2**20
BLOCK_BYTES = 512 * 2**10
ROOM = 1.05
"""Free space demanded, as a multiple of the estimated bytes."""

_INDEX_ENTRY = 220
_SAMPLED = 32


@dataclass(frozen=True)
class Estimate:
    """Cost of an extraction.

    Attributes:
        rows: activations kept.
        bytes: size of the finished store.
        seconds: duration, from two timed batches; None if they were not timed.
        free: free bytes where the store would lie; None if no folder was given.
        n_items: samples.
        tokens_per_item: rows kept of each, over all steps and branches of a pipeline.
        d: length of a row.
        dtype: storage dtype.
    """

    rows: int
    bytes: int
    seconds: float | None
    free: int | None
    n_items: int
    tokens_per_item: int
    d: int
    dtype: str

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} rows ({self.n_items:,} images x {self.tokens_per_item} tokens) of {self.d} {self.dtype} "
            f"values: {human(self.bytes)} on disk"
        )
        if self.free is not None:
            text += f", {human(self.free)} free"
        return text if self.seconds is None else f"{text}; about {duration(self.seconds)}"


def duration(seconds: float) -> str:
    """A duration for people: `duration(4000)` is `1 h 07 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shard_shape(meta: StoreMeta, shard_bytes: int = SHARD_BYTES) -> tuple[int, int]:
    """Items per shard and items per checksum block; blocks divide shards."""
    block = max(1, min(BLOCK_BYTES, shard_bytes) // meta.bytes_per_item)
    return max(1, shard_bytes // (meta.bytes_per_item * block)) * block, block


def store_bytes(meta: StoreMeta, shard_items: int, block_items: int, sampled: list[Loaded], n_items: int) -> int:
    """Bytes of a store of `n_items` samples whose notes are like those of the sampled ones."""
    t = meta.tokens_per_item
    notes = [
        len(json.dumps(one.note.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()) + 1 for one in sampled
    ]
    regions = t if any(one.regions is not None for one in sampled) else 0
    beside = float(np.mean(notes or [0])) + 8 + t * place_dtype(meta.site.n_tokens).itemsize + regions
    shards = -(-n_items // shard_items)
    header = header_room(meta.d, t, shard_items, shard_metadata(meta))
    checks = 4 * (-(-n_items // block_items) + shards)
    return round(n_items * (meta.bytes_per_item + beside) + shards * (header + _INDEX_ENTRY) + checks)


def shard_metadata(meta: StoreMeta) -> dict[str, str]:
    """Text kept in every shard's header."""
    grid = f"{meta.site.grid[0]}x{meta.site.grid[1]}" if meta.site.grid else "none"
    return {
        "format": "visae",
        "schema": "1",
        "hash": meta.content_hash,
        "model": meta.model,
        "site": meta.site.name,
        "grid": grid,
        "dtype": meta.dtype,
    }


def sample_items(reader: Reader, n_items: int, wanted: int = _SAMPLED) -> list[Loaded]:
    """Samples spread evenly over a data set; unreadable ones are left out."""
    places = np.unique(np.linspace(0, n_items - 1, min(wanted, n_items)).astype(int))
    return [one for one in (reader.load(int(item)) for item in places) if isinstance(one, Loaded)]


def estimate(
    model: AdaptedModel | AdaptedPipeline,
    site: str | Site,
    data: ImageData | PromptData,
    out: str | Path | None = None,
    *,
    policy: TokenPolicy | None = None,
    dtype: str | torch.dtype = "float16",
    batch: int = 32,
    shard_bytes: int = SHARD_BYTES,
    timed: bool = True,
    sampling: Sampling | Collection | None = None,
) -> Estimate:
    """Rows, bytes and seconds of an extraction.

    Args:
        model: the model, or a pipeline.
        site: where rows would be read.
        data: the samples.
        out: where the store would lie (to tell the free space), or None.
        policy: which tokens are kept.
        dtype: storage dtype.
        batch: images per forward pass.
        shard_bytes: size of a shard.
        timed: run two batches through the model, or a few steps of a pipeline, to tell the seconds.
        sampling: how a pipeline runs, and what of it is collected.

    Raises:
        ValueError: if the data set is empty or unreadable, the policy keeps nothing or the dtype is unknown.
    """
    made = making(model, [site], data, policy, dtype, sampling)
    meta = made.meta
    started = time.perf_counter()
    sampled = sample_items(made.reader, len(data))
    reading = (time.perf_counter() - started) / max(1, len(sampled))
    if not sampled:
        raise ValueError(f"none of the images sampled from {data.name} can be read: check the files")
    seconds = None
    if timed:
        together = min(batch, len(data))
        with made.start() as forward:
            seconds = forward.seconds(collate([sampled[i % len(sampled)] for i in range(together)])) / together
        seconds = len(data) * (reading + seconds)
    n_bytes = store_bytes(meta, *shard_shape(meta, shard_bytes), sampled, len(data))
    return Estimate(
        len(data) * meta.tokens_per_item,
        n_bytes,
        seconds,
        free_bytes(Path(out)) if out else None,
        len(data),
        meta.tokens_per_item,
        meta.d,
        meta.dtype,
    )


def require_room(folder: Path, needed: int, meta: StoreMeta) -> None:
    """Refuses an extraction that the disk cannot hold.

    Raises:
        DiskFull: with both numbers and what to do.
    """
    free = free_bytes(folder)
    if needed * ROOM <= free:
        return
    keep = max(1, int(meta.tokens_per_item * free / (needed * ROOM)))
    raise DiskFull(
        f"the rows need {human(needed * ROOM)} (5 % spare included) but {folder} has {human(free)} free. "
        f"Free some space; keep fewer tokens per image (TokenPolicy(per_image={keep}) would fit); take fewer images; "
        "or train from a Stream, which stores nothing"
    )
