"""The styles: how an object is filled.

A style turns geometry into a shade `[h, w]` in -1 .. 1 (the pure colour at 0, white at 1, a dark tone of the colour
at -1) and an opacity `[h, w]`, or None where the object is opaque. Lengths are in units of 1/64 of the image side, so
that a style looks the same at every image size. As in `shapes`, only operations with exact results are used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visae.world.hashing import lattice_noise


@dataclass(frozen=True)
class Surface:
    """Where a style paints.

    Attributes:
        x: `[1, w]` horizontal offset from the object's centre.
        y: `[h, 1]` vertical offset from the object's centre.
        distance: `[h, w]` signed distance to the contour, negative inside.
        radius: the object's radius.
        sharpness: pixels per unit; edges are one pixel wide.
        seed: which noise.
        phase: two numbers in 0 .. 1 that move patterns.
    """

    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    radius: float
    sharpness: float
    seed: int
    phase: tuple[float, float]

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel on the negative side of `distance`."""
        return np.minimum(np.maximum(0.5 - distance * self.sharpness, 0.0), 1.0)


Paint = Callable[[Surface], tuple[np.ndarray | float, np.ndarray | None]]

STYLE_PAINTS: dict[str, Paint] = {}
"""Style -> function of a `Surface` to (shade, opacity)."""


def _style(name: str) -> Callable[[Paint], Paint]:
    def add(function: Paint) -> Paint:
        STYLE_PAINTS[name] = function
        return function

    return add


def _wave(position: np.ndarray, period: float) -> np.ndarray:
    """Distance to the nearest line of a grid of lines `period` apart."""
    cycles = position / period
    return np.abs(cycles - np.floor(cycles + 0.5)) * period


@_style("flat")
def _flat(_: Surface) -> tuple[float, None]:
    return 0.0, None


@_style("outline")
def _outline(surface: Surface) -> tuple[np.ndarray, None]:
    return surface.cover(surface.distance + 2.6), None


@_style("dots")
def _dots(surface: Surface) -> tuple[np.ndarray, None]:
    dx = _wave(surface.x + surface.phase[0] * 7.0, 7.0)
    dy = _wave(surface.y + surface.phase[1] * 7.0, 7.0)
    return surface.cover(np.sqrt(dx * dx + dy * dy) - 2.3), None


@_style("stripes")
def _stripes(surface: Surface) -> tuple[np.ndarray, None]:
    bars = surface.cover(_wave(surface.y + surface.phase[1] * 6.4, 6.4) - 1.6)
    return bars + np.zeros_like(surface.x), None


@_style("checker")
def _checker(surface: Surface) -> tuple[np.ndarray, None]:
    across = surface.cover(_wave(surface.x + surface.phase[0] * 9.0, 9.0) - 2.25)
    down = surface.cover(_wave(surface.y + surface.phase[1] * 9.0, 9.0) - 2.25)
    return -0.8 * (across * down + (1.0 - across) * (1.0 - down)), None


@_style("noise")
def _noise(surface: Surface) -> tuple[np.ndarray, None]:
    cell = 2.0
    rows = np.floor(surface.y[:, 0] / cell).astype(np.int64)
    cols = np.floor(surface.x[0, :] / cell).astype(np.int64)
    levels = lattice_noise(rows, cols, surface.seed) % np.uint32(5)
    return (levels.astype(np.float64) - 2.0) * 0.45, None


@_style("gradient")
def _gradient(surface: Surface) -> tuple[np.ndarray, None]:
    ramp = np.minimum(np.maximum(surface.y / surface.radius, -1.0), 1.0)
    return -0.95 * ramp + np.zeros_like(surface.x), None


@_style("sketch")
def _sketch(surface: Surface) -> tuple[float, np.ndarray]:
    spacing, half = 5.2, 0.62
    rising = _wave((surface.x + surface.y) * 0.7071 + surface.phase[0] * spacing, spacing)
    falling = _wave((surface.x - surface.y) * 0.7071 + surface.phase[1] * spacing, spacing)
    hatch = surface.cover(np.minimum(rising, falling) - half)
    contour = surface.cover(np.abs(surface.distance + 0.6) - 0.7)
    return 0.0, np.maximum(hatch, contour)
