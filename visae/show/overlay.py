"""Heat over a picture: colour and opacity grow with the value, and what the model never saw is hatched."""

from functools import cache

import numpy as np
from PIL import Image

COLOURS = {1: "inferno", -1: "YlGnBu_r"}
"""Colour maps of positive and negative values; both are perceptual and start dark."""

_START = 0.18
"""The darkest fifth of a map is left out: it would hide the picture where the heat is weak."""


@cache
def lookup(sign: int = 1) -> np.ndarray:
    """Colours `[256, 3]` (uint8) from weak to strong."""
    from matplotlib import colormaps

    return (colormaps[COLOURS[sign]](np.linspace(_START, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def colour(heat: np.ndarray, vmax: float | None = None) -> np.ndarray:
    """Colour and opacity `[H, W, 4]` (uint8) of a heat map `[H, W]`.

    Args:
        heat: values; 0 is clear, negative ones have colours of their own.
        vmax: absolute value of the strongest colour; None takes the largest of the map.
    """
    top = float(np.abs(heat).max()) if vmax is None else vmax
    strength = (np.abs(heat) / top if top > 0 else np.zeros(heat.shape)).clip(0, 1)
    level = (strength * 255).round().astype(np.uint8)
    rgb = np.where((heat < 0)[..., None], lookup(-1)[level], lookup(1)[level])
    return np.concatenate([rgb, (255 * strength**0.7).round().astype(np.uint8)[..., None]], -1)


def overlay(
    image: Image.Image,
    heat: np.ndarray,
    *,
    vmax: float | None = None,
    opacity: float = 0.75,
    fade: float = 0.5,
    seen: np.ndarray | None = None,
) -> Image.Image:
    """A picture with a heat map over it.

    Args:
        image: picture of H x W pixels.
        heat: `[H, W]` values on its pixels, see `Geometry.to_image`.
        vmax: value of the strongest colour; None takes the largest of the map.
        opacity: of the strongest colour, 0 to 1.
        fade: how far the picture goes to grey first, 0 to 1, so that the heat stands out.
        seen: `[H, W]` (bool) pixels that the model saw (`Geometry.seen`); the others are hatched.

    Raises:
        ValueError: if the sizes differ.
    """
    if heat.shape != (image.height, image.width):
        raise ValueError(
            f"the heat map is {heat.shape}, the picture {(image.height, image.width)}: "
            "bring it to pixels with Geometry.to_image"
        )
    base = np.asarray(image.convert("RGB"), np.float32)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    base = base * (1 - fade) + grey * fade
    paint = colour(heat, vmax).astype(np.float32)
    alpha = paint[..., 3:] / 255 * opacity
    out = base * (1 - alpha) + paint[..., :3] * alpha
    if seen is not None:
        out = np.where(seen[..., None], out, _hatched(base))
    return Image.fromarray(out.round().astype(np.uint8))


def _hatched(base: np.ndarray) -> np.ndarray:
    """A pale grey version of a picture with diagonal stripes."""
    height, width = base.shape[:2]
    step = max(4, min(height, width) // 24)
    stripe = (np.add.outer(np.arange(height), np.arange(width)) // step % 2)[..., None]
    return base.mean(-1, keepdims=True) * 0.35 + 150 - 45 * stripe + np.zeros(3, np.float32)
