"""How much an extraction costs beyond the bare forward pass."""

import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import FactorTable, Sample
from visae.model import AdaptedModel, load_model, vision
from visae.sites import Site
from visae.store.batches import Batch, Reader, split_into
from visae.store.estimate import shard_shape
from visae.store.extract import fill
from visae.store.forward import forward_pass
from visae.store.index import Index
from visae.store.meta import StoreMeta
from visae.store.timing import Seconds, take_turns
from visae.tokens import TokenPolicy


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
    adapted = vision(load_model(model, pretrained=False, device=device)) if isinstance(model, str) else model
    place = adapted.site(site or [name for name, s in adapted.sites().items() if s.grid and s.kind == "output"][-1])
    data = _Noise(images)
    meta = StoreMeta.describe(adapted, place, data, TokenPolicy(), "float16")
    reader = Reader(adapted, place, data, meta.policy)
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="visae-bench-") as made:
        _bare(adapted, reader, min(images, 2 * batch), batch)
        for turn in tqdm(range(repeats), desc="bench extract", disable=not progress):
            out = Path(made) / str(turn)
            jobs = {
                "forward": partial(_bare, adapted, reader, images, batch),
                "extract": partial(_extract, adapted, place, meta, reader, out, batch),
            }
            take_turns(seconds, turn, jobs)
            shutil.rmtree(out)
        syncs = _count_syncs(adapted, place, reader, images, batch) if adapted.device.type == "cuda" else None
    size = {"images": images, "batch": batch, "repeats": repeats, "threads": torch.get_num_threads()}
    where = {"model": adapted.id, "site": place.name, "device": str(adapted.device)}
    return {"bench": "extract", **where, **size, **_summary(seconds, images), "device_syncs": syncs}


def _summary(seconds: Seconds, images: int) -> dict[str, float]:
    """Images per second of both loops, and the overhead."""
    bare, ours = (statistics.median(seconds[name]) for name in ("forward", "extract"))
    return {
        "forward_img_s": round(images / bare, 2),
        "extract_img_s": round(images / ours, 2),
        "overhead": round(ours / bare - 1, 4),
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
