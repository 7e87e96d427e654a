"""A tiny model and a tiny data set for the tests of the store; run as a script, it starts extractions to be killed."""

import os
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from visae.data import Sample, UnreadableImage
from visae.model import AdaptedModel, wrap


def tiny_model(seed: int = 0) -> AdaptedModel:
    """A real timm transformer: 4 x 4 patches and a class token, d 48."""
    import timm

    torch.manual_seed(seed)
    module = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    return wrap(module)


class Pictures:
    """Noise images with one planted rectangle each; some cannot be read, and each can be made slow to read."""

    def __init__(self, n: int = 96, broken: tuple[int, ...] = (), wait: float = 0.0, name: str = "pictures"):
        self.n, self.broken, self.wait, self.name = n, broken, wait, name
        self.factors = {"parity": ["even", "odd"], "part": ["bright"]}
        self.fingerprint = f"pictures-{n}-{broken}"

    def __len__(self) -> int:
        return self.n

    def box(self, index: int) -> tuple[int, int, int, int]:
        """The planted rectangle as top, left, bottom, right in pixels of the 40 x 36 image."""
        rng = np.random.default_rng([index, 1])
        top, left = rng.integers(0, 24), rng.integers(0, 20)
        return int(top), int(left), int(top + 16), int(left + 16)

    def __getitem__(self, index: int) -> Sample:
        if self.wait:
            time.sleep(self.wait)
        if index in self.broken:
            raise UnreadableImage(f"picture/{index}", "image file is truncated")
        pixels = np.random.default_rng(index).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        top, left, bottom, right = self.box(index)
        regions = np.zeros((40, 36), dtype=np.int64)
        regions[top:bottom, left:right] = 1
        return Sample(
            Image.fromarray(pixels),
            f"picture/{index}",
            {"parity": (("even", "odd")[index % 2],), "part": ("bright",)},
            regions,
            ({"part": "bright"},),
            np.array([[left, top, right, bottom]], dtype=np.float32),
            (f"picture {index}",),
            group=f"group {index // 4}",
        )


SHARD_BYTES = 16 * 1536
"""Sixteen images per shard at 16 tokens of 48 float16 values."""


def job(out: Path, wait: float, limit: int) -> None:
    """One extraction in a process of its own; what it says goes to a file beside the folder."""
    from visae.store import extract

    said = os.open(f"{out}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    data = Pictures(broken=(5, 40), wait=wait)
    extract(tiny_model(), "blocks.1", data, out, batch=6, shard_bytes=SHARD_BYTES, progress=False)


def serve() -> None:
    """Starts a process for every line `folder wait limit` and says its number; asked again, how it ended."""
    while line := sys.stdin.readline():
        out, wait, limit = line.split()
        if (child := os.fork()) == 0:
            status = 1
            try:
                job(Path(out), float(wait), int(limit))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_model().sites()
    import visae.store  # noqa: F401 - imported once, for all processes

    serve()
