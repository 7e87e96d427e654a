"""How fast rows are written, read and extracted, each against a plain floor in the same run.

Every figure is the median over repeats in which floor and visae take turns, so that a busy machine slows both.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import FactorTable, Sample
from visae.model import AdaptedModel, load_model
from visae.sites import Site
from visae.store.batches import Batch, Note, Reader, split_into
from visae.store.estimate import shard_shape
from visae.store.extract import fill, writing
from visae.store.forward import Pending, forward_pass
from visae.store.index import Index
from visae.store.meta import StoreMeta
from visae.store.store import Store
from visae.tokens import TokenPolicy

_IMAGES_PER_WRITE = 32


def bench_store(
    rows: int = 1_000_000,
    d: int = 768,
    folder: str | Path | None = None,
    *,
    tokens: int = 196,
    batch: int = 4096,
    repeats: int = 5,
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
        repeats: turns of floor and visae.
        progress: show a bar.

    Returns:
        Numbers of the run: MB/s of each part and the ratios `write_ratio`, `read_ratio` (first pass over the `rows`
        floor) and `read_ratio_runs` (over the `runs` floor).
    """
    meta = _made_up_meta(-(-rows // tokens), tokens, d)
    pool = (
        np.random.default_rng(0).standard_normal((8, _IMAGES_PER_WRITE, tokens, d), dtype=np.float32).astype(np.float16)
    )
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="visae-bench-") as made:
        plain, store = Path(made) / "plain", Path(made) / "store"
        _write_plain(plain, meta, pool)
        _write_store(store, meta, pool)
        for turn in tqdm(range(repeats), desc="bench store", disable=not progress):
            write = {
                "write_floor": partial(_write_plain, plain, meta, pool),
                "write": partial(_write_store, store, meta, pool),
            }
            _take_turns(seconds, turn, write, clear={"write_floor": plain, "write": store})
            opened = Store(store)
            _take_turns(seconds, turn, _readers(plain, opened, batch))
            _take_turns(seconds, turn, {"read_later": partial(_drain, _read_store(opened, batch, seed=1))})
    n_bytes = meta.n_items * meta.bytes_per_item
    speed = {f"{name}_mb_s": round(n_bytes / statistics.median(times) / 1e6, 1) for name, times in seconds.items()}
    ratios = {
        "write_ratio": _ratio(seconds, "write_floor", "write"),
        "read_ratio": _ratio(seconds, "read_floor_rows", "read_first"),
        "read_ratio_runs": _ratio(seconds, "read_floor_runs", "read_first"),
        "read_ratio_later": _ratio(seconds, "read_floor_rows", "read_later"),
    }
    return {
        "bench": "store",
        "rows": meta.n_items * tokens,
        "d": d,
        "dtype": "float16",
        "bytes": n_bytes,
        "batch": batch,
        "repeats": repeats,
        "cpus": os.cpu_count(),
        **speed,
        **ratios,
    }


def bench_extract(
    model: str | AdaptedModel = "timm:vit_base_patch16_224",
    site: str | None = None,
    folder: str | Path | None = None,
    *,
    images: int = 64,
    batch: int = 8,
    repeats: int = 5,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Images per second of an extraction against the bare forward pass of the same model over the same batches.

    Both loops draw the same images through the same reading and preprocessing threads; the floor calls
    `model.forward` and nothing else, visae taps the site, picks the patch tokens, casts, checks for overflow, copies
    to the CPU, writes and syncs shards. Time ends when the device is idle and the last byte is on the disk.

    Args:
        model: a model's name (built with random weights, so that nothing is fetched) or a model.
        site: where to read; the model's last block output by default.
        folder: on the disk to write; a temporary folder by default.
        images: per turn.
        batch: images per forward pass.
        repeats: turns of floor and visae.
        device: where a named model runs.
        progress: show a bar.

    Returns:
        Numbers of the run; `overhead` is the extra time over the floor (0.05 is 5 %), and `device_syncs` the
        synchronising calls per batch that torch reports in the extraction's forward thread (None without a GPU).
    """
    adapted = load_model(model, pretrained=False, device=device) if isinstance(model, str) else model
    place = adapted.site(site or [name for name, s in adapted.sites().items() if s.grid and s.kind == "output"][-1])
    data = _Noise(images)
    meta = StoreMeta.describe(adapted, place, data, TokenPolicy(), "float16")
    reader = Reader(adapted, place, data, meta.policy)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="visae-bench-") as made:
        _bare(adapted, reader, min(images, 2 * batch), batch)
        for turn in tqdm(range(repeats), desc="bench extract", disable=not progress):
            out = Path(made) / str(turn)
            jobs = {
                "forward": partial(_bare, adapted, reader, images, batch),
                "extract": partial(_extract, adapted, place, meta, reader, out, batch),
            }
            _take_turns(seconds, turn, jobs)
            shutil.rmtree(out)
        syncs = _count_syncs(adapted, place, reader, images, batch) if adapted.device.type == "cuda" else None
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "bench": "extract",
        "model": adapted.id,
        "site": place.name,
        "device": str(adapted.device),
        "images": images,
        "batch": batch,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "forward_img_s": round(images / medians["forward"], 2),
        "extract_img_s": round(images / medians["extract"], 2),
        "overhead": round(medians["extract"] / medians["forward"] - 1, 4),
        "device_syncs": syncs,
    }


class _Noise:
    """Images of seeded noise: every one has to be drawn and preprocessed, none is read from the disk."""

    name, fingerprint = "noise", "noise"

    def __init__(self, n: int):
        self._n = n
        self.factors: FactorTable = {}

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        return Sample(Image.fromarray(pixels), f"noise/{index}")


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


def _readers(plain: Path, store: Store, batch: int) -> dict[str, Callable[[], object]]:
    """Every way of serving all rows once in a shuffled order."""
    flat = np.memmap(plain, np.float16, "r").reshape(-1, store.d)
    return {
        "read_floor_rows": partial(_drain, _read_rows(flat, batch)),
        "read_first": partial(_drain, _read_store(store, batch, seed=0)),
        "read_floor_runs": partial(_drain, _read_runs(flat, batch)),
    }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


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
    yield from store.loader(batch, seed=seed, passes=1)


def _drain(batches: Iterator[torch.Tensor]) -> None:
    """Serves everything; one value of each batch is touched, as any consumer would."""
    for rows in batches:
        rows[-1, -1].item()


def _take_turns(
    seconds: dict[str, list[float]],
    turn: int,
    jobs: Mapping[str, Callable[[], object]],
    clear: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Times every job, in another order each turn, each after what was written before has reached the disk.

    What a job wrote the turn before, at `clear[name]`, is removed just before it runs, so that each finds as much free
    memory and disk as the others.
    """
    names = list(jobs)
    shift = turn % len(names)
    for name in names[shift:] + names[:shift]:
        if name in clear:
            _remove(clear[name])
        if hasattr(os, "sync"):
            os.sync()
        started = time.perf_counter()
        jobs[name]()
        seconds.setdefault(name, []).append(time.perf_counter() - started)


def _ratio(seconds: dict[str, list[float]], floor: str, ours: str) -> float:
    return round(statistics.median(seconds[floor]) / statistics.median(seconds[ours]), 3)


def _bare(model: AdaptedModel, reader: Reader, images: int, batch: int) -> None:
    with torch.no_grad():
        for loaded in reader.batches(split_into(range(images), batch), workers=2):
            model.forward(loaded.pixels)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _extract(model: AdaptedModel, site: Site, meta: StoreMeta, reader: Reader, out: Path, batch: int) -> None:
    out.mkdir()
    index = Index(meta, *shard_shape(meta))
    with forward_pass(model, site, meta.dtype) as forward:
        fill(out, index, reader, forward, batch, workers=2, progress=False)


def _count_syncs(model: AdaptedModel, site: Site, reader: Reader, images: int, batch: int) -> float:
    """Synchronising calls per batch of the extraction beyond those of the bare forward pass, as torch reports them."""
    import warnings

    def counted(job: Callable[[Batch], object]) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for loaded in batches:
                    job(loaded)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in caught)

    batches = list(reader.batches(split_into(range(images), batch), workers=2))
    with torch.no_grad():
        bare = counted(lambda loaded: model.forward(loaded.pixels))
    with forward_pass(model, site, "float16") as forward:
        return (counted(forward) - bare) / len(batches)
