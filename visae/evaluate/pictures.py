"""How two pictures differ: in layout, in texture, in colour. Each distance answers for one and is deaf to the others.

The question is that of Surkov et al., "Unpacking SDXL Turbo" (2024): which block of a denoiser decides on what. The
measures are visae's own, in closed form and without a network:

    layout    1 - correlation of the luminance of thumbnails: 0 for the same arrangement, 1 for an unrelated one,
              2 for the inverse one
    texture   root mean square over the octaves of the natural log of the ratio of their energies: where in the
              picture they are does not matter
    colour    total variation between histograms of the two opponent chroma channels: 0 to 1, wherever the colours are
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_THUMBNAIL = 8
"""Cells a side on which layout is compared."""
_OCTAVES = 3
"""Finest octaves, whose energies are texture."""
_FLOOR = 1e-4
"""Energy (of luminance from 0 to 1) under which an octave counts as empty: about what 8-bit rounding leaves."""
_BINS = 12
"""Chroma bins a side."""


def _pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size as `[n, H, W, 3]` from 0 to 1."""
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"pictures must be of one size to be compared, got {sizes}")
    return np.stack([np.asarray(picture.convert("RGB"), np.float32) for picture in pictures]) / 255


def _luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def _halved(grey: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = grey.shape[1] // 2 * 2, grey.shape[2] // 2 * 2
    return grey[:, :height, :width].reshape(len(grey), height // 2, 2, width // 2, 2).mean((2, 4))


def _octaves(grey: np.ndarray) -> np.ndarray:
    """Energy of the finest octaves `[n, octaves]`: mean square of what halving the picture loses, again and again."""
    energies = []
    for _ in range(_OCTAVES):
        coarse = _halved(grey)
        back = coarse.repeat(2, 1).repeat(2, 2)
        energies.append(np.square(grey[:, : back.shape[1], : back.shape[2]] - back).mean((1, 2)))
        grey = coarse
    return np.stack(energies, 1)


def _chroma(pixels: np.ndarray) -> np.ndarray:
    """Histograms `[n, bins * bins]` of red against green and of both against blue."""
    first = pixels[..., 0] - pixels[..., 1]
    second = (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2]
    place = [np.clip(((c + 1) / 2 * _BINS).astype(int), 0, _BINS - 1) for c in (first, second)]
    flat = (place[0] * _BINS + place[1]).reshape(len(pixels), -1)
    counts = np.stack([np.bincount(row, minlength=_BINS**2) for row in flat])
    return counts / flat.shape[1]


def layout_distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> np.ndarray:
    """Distance in layout of picture i of one and of the other, `[n]`; see the module.

    Raises:
        ValueError: if the pictures are not of one size.
    """
    small = []
    for pixels in (_pixels(one), _pixels(other)):
        grey = _luminance(pixels)
        rows = np.array_split(np.arange(grey.shape[1]), _THUMBNAIL)
        columns = np.array_split(np.arange(grey.shape[2]), _THUMBNAIL)
        cells = np.stack([[grey[:, r][:, :, c].mean((1, 2)) for c in columns] for r in rows]).reshape(-1, len(grey))
        small.append((cells - cells.mean(0)).T.astype(np.float64))
    a, b = small
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = np.abs(a - b).max(1) < 1e-6
    return np.where(alike, 0.0, 1 - (a * b).sum(1) / np.maximum(lengths, 1e-9))


def texture_distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> np.ndarray:
    """Distance in texture of picture i of one and of the other, `[n]`; see the module.

    Raises:
        ValueError: if the pictures are not of one size.
    """
    a, b = (_octaves(_luminance(_pixels(pictures))).astype(np.float64) + _FLOOR for pictures in (one, other))
    return np.sqrt(np.square(np.log(a / b)).mean(1))


def colour_distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> np.ndarray:
    """Distance in colour of picture i of one and of the other, `[n]`; see the module.

    Raises:
        ValueError: if the pictures are not of one size.
    """
    return np.abs(_chroma(_pixels(one)) - _chroma(_pixels(other))).sum(1) / 2


def pixel_distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> np.ndarray:
    """Root mean square difference of the pixels of picture i of one and of the other, `[n]`, from 0 to 1.

    Unlike the other distances it hears everything at once, and small shifts too loudly.

    Raises:
        ValueError: if the pictures are not of one size.
    """
    return np.sqrt(np.square(_pixels(one) - _pixels(other), dtype=np.float64).mean((1, 2, 3)))


def identical(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> np.ndarray:
    """Whether picture i of one has the same 8-bit pixels as picture i of the other, `[n]` bool."""
    pairs = zip(one, other, strict=True)
    return np.array([a.size == b.size and a.convert("RGB").tobytes() == b.convert("RGB").tobytes() for a, b in pairs])


DISTANCES = {"layout": layout_distance, "texture": texture_distance, "colour": colour_distance}
"""Name -> distance of two lists of pictures."""
