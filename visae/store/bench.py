"""How fast rows are written, read and extracted, each against a plain floor in the same run.

Every figure is the median over repeats in which floor and visae take turns, so that a busy machine slows both.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from visae.sites import Site
from visae.store.batches import Batch, Note, split_into
from visae.store.bench_forward import bench_extract as bench_extract
from visae.store.estimate import shard_shape
from visae.store.extract import writing
from visae.store.forward import Pending
from visae.store.index import Index
from visae.store.meta import StoreMeta
from visae.store.store import Store
from visae.store.timing import Seconds, ratio, take_turns
from visae.tokens import TokenPolicy

_IMAGES_PER_WRITE = 32


def bench_store(
    rows: int = 1_000_000,
    d: int = 768,
    folder: str | Path | None = None,
    *,
    tokens: int = 196,
    batch: int = 4096,
    repeats: int = 6,
    progress: bool = False,
) -> dict[str, Any]:
    """Writing and shuffled reading, in MB/s, against one plain `np.memmap` of the same float16 rows.

    *Writing*: the floor assigns the same batches to a memory map and flushes it; visae writes its shards with
    checksums, syncs each to disk, renames it and lists it in index.json. Both end when the bytes are on the disk.
    *Shuffled reading*: the floors serve every row once as `[batch, d]`, either by rows in one random order (`rows`) or
    by shuffled runs of 16384 rows that are permuted inside (`runs`, which mixes worse and reads faster); visae serves
    one pass of its loader from a freshly opened store, every block compared with its checksum (`first`), and a second
    pass in which blocks are known to be whole (`later`). The files were just written, so all read from the page cache
    as far as memory allows.

    Args:
        rows: how many, at least; a whole number of images is taken.
        d: length of a row.
        folder: on the disk to measure; a temporary folder by default.
        tokens: rows per image.
        batch: rows per served batch.
        repeats: turns of floor and visae; an even number lets each go first as often as the other.
        progress: show a bar.

    Returns:
        Numbers of the run: MB/s of each part and the ratios `write_ratio`, `read_ratio` (first pass over the `rows`
        floor) and `read_ratio_runs` (over the `runs` floor).
    """
    meta = _made_up_meta(-(-rows // tokens), tokens, d)
    pool = np.random.default_rng(0).standard_normal((8, _IMAGES_PER_WRITE, tokens, d), np.float32).astype(np.float16)
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="visae-bench-") as made:
        plain, store = Path(made) / "plain", Path(made) / "store"
        _write_plain(plain, meta, pool)
        _write_store(store, meta, pool)
        for turn in tqdm(range(repeats), desc="bench store, writing", disable=not progress):
            write = {
                "write_floor": partial(_write_plain, plain, meta, pool),
                "write": partial(_write_store, store, meta, pool),
            }
            take_turns(seconds, turn, write, clear={"write_floor": plain, "write": store})
        for turn in tqdm(range(repeats), desc="bench store, reading", disable=not progress):
            _time_reading(seconds, turn, plain, store, batch)
    n_bytes = meta.n_items * meta.bytes_per_item
    size = {"rows": meta.n_items * tokens, "d": d, "dtype": "float16", "bytes": n_bytes}
    run = {"batch": batch, "repeats": repeats, "cpus": os.cpu_count()}
    return {"bench": "store", **size, **run, **_summary(seconds, n_bytes)}


def _summary(seconds: Seconds, n_bytes: int) -> dict[str, float]:
    """MB/s of every job, and visae over its floors."""
    speed = {f"{name}_mb_s": round(n_bytes / statistics.median(times) / 1e6, 1) for name, times in seconds.items()}
    return speed | {
        "write_ratio": ratio(seconds, "write_floor", "write"),
        "read_ratio": ratio(seconds, "read_floor_rows", "read_first"),
        "read_ratio_runs": ratio(seconds, "read_floor_runs", "read_first"),
        "read_ratio_later": ratio(seconds, "read_floor_rows", "read_later"),
    }


def _made_up_meta(n_items: int, tokens: int, d: int) -> StoreMeta:
    """Meta of rows that no model made."""
    site = Site("blocks.0", "blocks.0", "output", "NLC", d, ("patch",) * tokens, (1, tokens), (1.0, 1.0))
    return StoreMeta("bench", "0", site, TokenPolicy(), {}, None, "bench", "0", "float16", n_items, tokens, {})


def _batches(pool: np.ndarray, span: range) -> Iterator[tuple[range, np.ndarray]]:
    for at, items in enumerate(split_into(span, pool.shape[1])):
        yield items, pool[at % len(pool), : len(items)]  # type: ignore[misc]


def _write_plain(path: Path, meta: StoreMeta, pool: np.ndarray) -> None:
    flat = np.memmap(path, np.float16, "w+", shape=(meta.n_items, meta.tokens_per_item, meta.d))
    for items, rows in _batches(pool, range(meta.n_items)):
        flat[items.start : items.stop] = rows
    flat.flush()


def _write_store(folder: Path, meta: StoreMeta, pool: np.ndarray) -> None:
    folder.mkdir()
    index = Index(meta, *shard_shape(meta))
    place = np.arange(meta.tokens_per_item)
    with writing(folder, index) as filler:
        for number in range(index.n_shards):
            span = index.span(number)
            for items, rows in _batches(pool, span):
                notes = tuple(Note(f"bench/{item:06d}", (224, 224), {}) for item in items)
                places = np.broadcast_to(place, rows.shape[:2])
                batch = Batch(torch.empty(0), np.asarray(items), places, None, notes, ())
                filler.add(number, Pending.done(rows), batch, last=items.stop == span.stop)


def _time_reading(seconds: Seconds, turn: int, plain: Path, folder: Path, batch: int) -> None:
    """Serves all rows once in every way; all maps are gone afterwards, or the files' memory would outlive the files."""
    store = Store(folder)
    flat = np.memmap(plain, np.float16, "r").reshape(-1, store.d)
    jobs = {
        "read_floor_rows": partial(_drain, _read_rows(flat, batch)),
        "read_first": partial(_drain, _read_store(store, batch, seed=0)),
        "read_floor_runs": partial(_drain, _read_runs(flat, batch)),
    }
    take_turns(seconds, turn, jobs)
    take_turns(seconds, turn, {"read_later": partial(_drain, _read_store(store, batch, seed=1))})


def _read_rows(flat: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    order = np.random.default_rng(0).permutation(len(flat))
    for start in range(0, len(flat), batch):
        yield torch.from_numpy(flat[order[start : start + batch]])


def _read_runs(flat: np.ndarray, batch: int, run: int = 16384) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(0)
    for start in rng.permutation(np.arange(0, len(flat), run)):
        rows = np.array(flat[start : start + run])
        order = rng.permutation(len(rows))
        for at in range(0, len(rows), batch):
            yield torch.from_numpy(rows[order[at : at + batch]])


def _read_store(store: Store, batch: int, seed: int) -> Iterator[torch.Tensor]:
    for rows in store.loader(batch, seed=seed, passes=1):
        assert isinstance(rows, torch.Tensor)
        yield rows


def _drain(batches: Iterator[torch.Tensor]) -> None:
    """Serves everything; one value of each batch is touched, as any consumer would."""
    for rows in batches:
        rows[-1, -1].item()
