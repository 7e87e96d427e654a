"""Training images, drawn once by several processes into files that are read at random."""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from visae.world.captions import draw_caption
from visae.world.factors import FACTORS
from visae.world.hashing import Stream
from visae.world.lexicon import words
from visae.world.render import regions, render
from visae.world.training.facts import caption_facts, scene_facts
from visae.world.world import DRAWING_VERSION, World

N_CAPTIONS = 2
GRID, PATCH = 8, 8
_CHUNK = 1000
_IGNORED = 255


@dataclass(frozen=True)
class Cache:
    """Memory-mapped arrays, one row per image.

    Attributes:
        images: `[n, 64, 64, 3]` uint8.
        facts: `[n, 26]` int8 from `scene_facts`.
        patches: `[n, 64]` uint8: the object each patch shows (0 none, 255 too little of one to say).
        masks: `[n, 64, 8]` uint8: which pixels show any object, eight to a byte, one row per patch.
        captions: `[n, 2, 26]` int8 from `caption_facts`.
        texts: the captions, as bytes `[n, 2]` of fixed width.
    """

    images: np.ndarray
    facts: np.ndarray
    patches: np.ndarray
    masks: np.ndarray
    captions: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def _layout(n: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "images": ((n, 64, 64, 3), "u1"),
        "facts": ((n, 26), "i1"),
        "patches": ((n, GRID * GRID), "u1"),
        "masks": ((n, GRID * GRID, PATCH), "u1"),
        "captions": ((n, N_CAPTIONS, 26), "i1"),
        "texts": ((n, N_CAPTIONS), "S256"),
    }


def _tiles(masks: np.ndarray) -> np.ndarray:
    """`[64, 64]` pixels as `[64, 64]` patches by pixels within."""
    return masks.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, PATCH * PATCH)


def patch_objects(masks: np.ndarray) -> np.ndarray:
    """The object each patch shows: `[64, 64]` object numbers to `[64]` uint8, 255 where it covers less than 30 %."""
    tiles = _tiles(masks)
    cover = np.stack([(tiles == number).sum(1) for number in (1, 2, 3)], 1)
    best = cover.argmax(1)
    most = cover.max(1)
    return np.where(most == 0, 0, np.where(most < 0.3 * PATCH * PATCH, _IGNORED, best + 1)).astype(np.uint8)


def _fill(folder: str, n: int, singles: int, start: int) -> int:
    """Draw one chunk of images into the files of `folder`."""
    out = {name: np.load(f"{folder}/{name}.npy", mmap_mode="r+") for name in _layout(n)}
    stop = min(start + _CHUNK, n)
    one, several = World("train", n, objects=1), World("train", n, seed=1, objects=(1, 3))
    for row in range(start, stop):
        scene = (one if row < singles else several).scene(row)
        out["images"][row] = render(scene, 64)
        out["facts"][row] = scene_facts(scene)
        objects = regions(scene, 64)
        out["patches"][row] = patch_objects(objects)
        out["masks"][row] = np.packbits(_tiles(objects) > 0, axis=1)
        for j in range(N_CAPTIONS):
            caption = draw_caption(scene, Stream(77, row, j))
            out["captions"][row, j] = caption_facts(caption)
            out["texts"][row, j] = caption.text.encode()
    return stop - start


def open_cache(root: Path, singles: int, several: int, workers: int = 2) -> Cache:
    """The cache of so many images, drawn now unless it lies there complete.

    Args:
        root: where caches lie; each gets its own folder, named by its content.
        singles: images with one object.
        several: images with one to three objects.
        workers: processes that draw.
    """
    n = singles + several
    content = f"{DRAWING_VERSION} {singles} {several} {N_CAPTIONS} {FACTORS} {words()}"
    folder = root / f"images-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    done = folder / "complete"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, kind) in _layout(n).items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, shape).flush()
        starts = list(range(0, n, _CHUNK))
        with ProcessPoolExecutor(workers) as pool, tqdm(total=n, desc="drawing", unit="image") as bar:
            for count in pool.map(_fill, *zip(*[(str(folder), n, singles, s) for s in starts], strict=True)):
                bar.update(count)
        done.touch()
    return Cache(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _layout(n)})
