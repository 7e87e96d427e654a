"""What the denoisers learn from: the latents of the cached images, and two captions of each, made once."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from visae.world.captions import draw_caption
from visae.world.factors import FACTORS
from visae.world.hashing import Stream
from visae.world.training.cache import N_CAPTIONS, Cache
from visae.world.training.facts import FACT_FACTORS, N_SLOTS
from visae.world.world import World

_CHUNK = 500
_SHAPE, _STYLE, _COLOUR = (FACT_FACTORS.index(factor) for factor in ("shape", "style", "colour"))


@dataclass(frozen=True)
class Latents:
    """Memory-mapped arrays, one row per cached image.

    Attributes:
        values: `[n, 4, 16, 16]` float16.
        texts: bytes `[n, 2]`: a caption as captions come, and a thorough one.
    """

    values: np.ndarray
    texts: np.ndarray


def to_pixels(images: np.ndarray) -> Tensor:
    """Images `[B, S, S, 3]` uint8 to `[B, 3, S, S]` float32 in -1 .. 1, as diffusers' autoencoders see them."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def withheld(shape: np.ndarray, style: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Which combinations no pipeline is trained on: 48 of the 768, every shape in 4, every style and colour in 6.

    Args:
        shape: numbers in `FACTORS["shape"]`.
        style: numbers in `FACTORS["style"]`.
        colour: numbers in `FACTORS["colour"]`.
    """
    return (shape + 2 * style + 9 * colour) % 16 == 7


def withheld_rows(facts: np.ndarray) -> np.ndarray:
    """`[n]` bool: whether any object of the images with these facts `[n, 26]` is of a withheld combination."""
    things = facts[:, :-2].astype(int).reshape(len(facts), N_SLOTS, len(FACT_FACTORS))
    shape, style, colour = (things[:, :, f] for f in (_SHAPE, _STYLE, _COLOUR))
    return np.any(withheld(shape, style, colour) & (shape >= 0), axis=1)


def withheld_combinations() -> list[tuple[str, str, str]]:
    """The 48 (shape, style, colour) that no pipeline is trained on."""
    tables = [FACTORS[factor] for factor in ("shape", "style", "colour")]
    numbers = np.stack(np.meshgrid(*[np.arange(len(table)) for table in tables], indexing="ij"), -1).reshape(-1, 3)
    kept = numbers[withheld(*numbers.T)]
    return [(tables[0][a], tables[1][b], tables[2][c]) for a, b, c in kept.tolist()]


def _thorough(singles: int, n: int) -> list[bytes]:
    one, several = World("train", n, objects=1), World("train", n, seed=1, objects=(1, 3))
    scenes = ((one if row < singles else several).scene(row) for row in range(n))
    return [draw_caption(scene, Stream(78, row), thorough=True).text.encode() for row, scene in enumerate(scenes)]


def open_latents(root: Path, cache: Cache, singles: int, autoencoder: Any, device: str) -> Latents:
    """The latents of a cache, encoded now unless they lie there complete.

    Args:
        root: where caches lie; each gets its own folder, named by its content.
        cache: the images.
        singles: how many of them, at the beginning, show one object.
        autoencoder: diffusers' `AutoencoderKL`.
        device: where to encode.
    """
    n = len(cache)
    content = hashlib.sha256(f"{n} {singles} {N_CAPTIONS}".encode())
    content.update(np.ascontiguousarray(cache.images[:: max(1, n // 64)]).tobytes())
    for key, value in autoencoder.state_dict().items():
        content.update(key.encode() + value.detach().cpu().numpy().tobytes())
    folder = root / f"latents-{content.hexdigest()[:12]}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "texts.npy", np.stack([cache.texts[:, 0], np.array(_thorough(singles, n), "S256")], 1))
        out = np.lib.format.open_memmap(folder / "values.npy", "w+", "f2", (n, 4, 16, 16))
        model = autoencoder.to(device).eval()
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16):
            for start in tqdm(range(0, n, _CHUNK), desc="encoding", unit_scale=_CHUNK, unit="image"):
                pixels = to_pixels(cache.images[start : start + _CHUNK]).to(device)
                out[start : start + _CHUNK] = model.encode(pixels).latent_dist.mean.float().cpu().numpy()
        out.flush()
        (folder / "complete").touch()
    return Latents(np.load(folder / "values.npy", mmap_mode="r"), np.load(folder / "texts.npy", mmap_mode="r"))
