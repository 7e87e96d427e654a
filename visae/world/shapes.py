"""The shapes as signed distances: negative inside, in units of the object's radius.

Only `+ - * /`, `sqrt`, `abs`, minimum, maximum and comparisons are used: IEEE 754 fixes their results to the last bit,
so that an image has the same bytes on every machine. y points down.
"""

from collections.abc import Callable

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

REACH = 1.13
"""No shape has a point further than this many radii from its centre."""

SHAPE_DISTANCES: dict[str, Distance] = {}
"""Shape -> function of x, y `[h, w]` in radii to the signed distance `[h, w]` in radii."""


def _shape(name: str) -> Callable[[Distance], Distance]:
    def add(function: Distance) -> Distance:
        SHAPE_DISTANCES[name] = function
        return function

    return add


def _polygon(x: np.ndarray, y: np.ndarray, corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Exact signed distance to a simple polygon: nearest edge, sign by counting crossings."""
    inside = np.zeros(np.broadcast(x, y).shape, bool)
    nearest = np.full(inside.shape, np.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = (px * ex + py * ey) / (ex * ex + ey * ey)
        along = np.minimum(np.maximum(along, 0.0), 1.0)
        dx, dy = px - ex * along, py - ey * along
        square = dx * dx + dy * dy
        nearest = np.minimum(nearest, square)
        if ey != 0.0:
            crosses = (y >= min(ay, by)) & (y < max(ay, by)) & (px < ex * (py / ey))
            inside ^= crosses
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    qx, qy = np.abs(x) - half_width, np.abs(y) - half_height
    ox, oy = np.maximum(qx, 0.0), np.maximum(qy, 0.0)
    return np.sqrt(ox * ox + oy * oy) + np.minimum(np.maximum(qx, qy), 0.0)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


@_shape("triangle")
def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _polygon(x, y, ((0.0, -1.02), (0.93, 0.62), (-0.93, 0.62)))


@_shape("square")
def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.78, 0.78)


@_shape("star")
def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    outer = ((0.0, -1.08), (1.027, -0.334), (0.635, 0.874), (-0.635, 0.874), (-1.027, -0.334))
    inner = ((0.247, -0.34), (0.399, 0.13), (0.0, 0.42), (-0.399, 0.13), (-0.247, -0.34))
    return _polygon(x, y, tuple(corner for pair in zip(outer, inner, strict=True) for corner in pair))


@_shape("bolt")
def _bolt(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _polygon(
        x, y, ((0.22, -0.94), (-0.80, 0.22), (-0.16, 0.22), (-0.42, 1.02), (0.80, -0.32), (0.18, -0.32), (0.60, -0.94))
    )


@_shape("cross")
def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.98, 0.34), _box(x, y, 0.34, 0.98))


@_shape("elbow")
def _elbow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _polygon(x, y, ((-0.72, -0.86), (-0.10, -0.86), (-0.10, 0.17), (0.80, 0.17), (0.80, 0.78), (-0.72, 0.78)))


@_shape("circle")
def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _length(x, y) - 0.92


@_shape("oval")
def _oval(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # First-order distance to an ellipse: exact on the contour, close enough beside it for outlines.
    wide, tall = 1.06, 0.54
    ux, uy = x / wide, y / tall
    scaled = np.maximum(_length(ux, uy), 1e-9)  # the very centre is inside, not on the contour
    slope = np.maximum(_length(ux / wide, uy / tall), 1e-9)
    return scaled * (scaled - 1.0) / slope


@_shape("ring")
def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(_length(x, y) - 0.70) - 0.26


@_shape("crescent")
def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(_length(x - 0.08, y) - 1.0, 0.80 - _length(x - 0.56, y))


@_shape("heart")
def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner with half a disc on each upper side, in its own units: tip at 0, height about 1.1.
    px, py = np.abs(x) / 1.64, 0.54 - y / 1.64
    lobe = _length(px - 0.25, py - 0.75) - 0.3535533905932738
    along = np.maximum(px + py, 0.0) * 0.5
    side = np.minimum(px * px + (py - 1.0) * (py - 1.0), (px - along) * (px - along) + (py - along) * (py - along))
    below = np.sqrt(side) * np.where(px < py, -1.0, 1.0)
    return np.where(px + py > 1.0, lobe, below) * 1.64


@_shape("drop")
def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A disc and the two tangents to it from the tip.
    disc = _length(x, y - 0.36) - 0.66
    cone = _polygon(x, y, ((0.0, -1.10), (0.5887, 0.0616), (0.0, 0.36), (-0.5887, 0.0616)))
    return np.minimum(disc, cone)
