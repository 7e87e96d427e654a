"""Paints a scene, with the same bytes on every machine and the same look at every size."""

from collections.abc import Mapping, Sequence

import numpy as np

from visae.world.factors import PALETTE, SHIFTED_PALETTE
from visae.world.hashing import lattice_noise, mix64
from visae.world.scene import Scene, Thing
from visae.world.shapes import REACH, SHAPE_DISTANCES
from visae.world.styles import STYLE_PAINTS, Surface

Palette = Mapping[str, Sequence[float]]
"""Colour -> red, green, blue in 0 .. 255."""

UNITS = 64.0
"""Lengths are painted in 1/64 of the image side."""

_TURNS: dict[int, tuple[float, float]] = {
    0: (1.0, 0.0),
    5: (0.9962, 0.0872),
    15: (0.9659, 0.2588),
    20: (0.9397, 0.342),
    25: (0.9063, 0.4226),
    30: (0.866, 0.5),
}
"""Degrees -> (cos, sin), written out because libraries disagree about the last bit."""


def _window(thing: Thing, size: int) -> tuple[slice, slice]:
    """Rows and columns an object can touch."""
    reach = thing.radius * REACH + 1.0 / size
    x0, x1 = int((thing.x - reach) * size), int((thing.x + reach) * size) + 2
    y0, y1 = int((thing.y - reach) * size), int((thing.y + reach) * size) + 2
    return slice(max(y0, 0), min(y1, size)), slice(max(x0, 0), min(x1, size))


def _surface(thing: Thing, rows: slice, cols: slice, size: int) -> Surface:
    unit = UNITS / size
    x = ((np.arange(cols.start, cols.stop) + 0.5) * unit - thing.x * UNITS)[None, :]
    y = ((np.arange(rows.start, rows.stop) + 0.5) * unit - thing.y * UNITS)[:, None]
    radius = thing.radius * UNITS
    cos, sin = _TURNS[abs(thing.angle)]
    sin = sin if thing.angle >= 0 else -sin
    turned_x = (x * cos + y * sin) / radius
    turned_y = (y * cos - x * sin) / radius
    distance = SHAPE_DISTANCES[thing.shape](turned_x, turned_y) * radius
    return Surface(x, y, distance, radius, size / UNITS, thing.seed, thing.phase)


def _background(scene: Scene, size: int) -> np.ndarray:
    """Grey values `[size, size]`."""
    if scene.background == "gradient":
        ramp = (np.arange(size) + 0.5) / size - 0.5
        right, down = scene.slope
        tilt = ramp[None, :] * right + ramp[:, None] * down
        return scene.level + tilt * (120.0 / (abs(right) + abs(down)))
    if scene.background == "grain":
        cells = ((np.arange(size) + 0.5) * (UNITS / size)).astype(np.int64)
        noise = lattice_noise(cells, cells, scene.seed) % np.uint32(65)
        return scene.level + (noise.astype(np.float64) - 32.0)
    return np.full((size, size), float(scene.level))


def _paint(canvas: np.ndarray, thing: Thing, palette: Palette) -> None:
    size = canvas.shape[0]
    rows, cols = _window(thing, size)
    surface = _surface(thing, rows, cols, size)
    shade, opacity = STYLE_PAINTS[thing.style](surface)
    cover = surface.cover(surface.distance)
    alpha = cover if opacity is None else cover * opacity
    lighter, darker = np.maximum(shade, 0.0), np.minimum(shade, 0.0)
    for channel in range(3):
        pure = float(palette[thing.colour][channel] + thing.tint[channel])
        pure = min(max(pure, 0.0), 255.0)
        paint = pure + lighter * (252.0 - pure) + darker * (pure * 0.82)
        below = canvas[rows, cols, channel]
        canvas[rows, cols, channel] = below + alpha * (paint - below)


def _palette(shift: float) -> Palette:
    if shift == 0.0:
        return PALETTE
    return {
        name: tuple(a + min(shift, 1.0) * (b - a) for a, b in zip(PALETTE[name], SHIFTED_PALETTE[name], strict=True))
        for name in PALETTE
    }


def _other_camera(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Blur and sensor noise of the variant `shift`, in integers.

    Args:
        image: `[size, size, 3]` uint8.
        scene: gives strength and seed.

    Returns:
        `[size, size, 3]` uint8.
    """
    size = image.shape[0]
    reach = max(1, size // 64)
    wide = np.pad(image.astype(np.int64), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(image, dtype=np.int64)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            total += wide[dy : dy + size, dx : dx + size]
    area = (2 * reach + 1) ** 2
    blurred = (total * 2 + area) // (2 * area)
    # Strength in 256ths keeps everything integral.
    share = min(256, int(scene.shift * 256))
    mixed = (image.astype(np.int64) * (256 - share) + blurred * share + 128) // 256
    cells = ((np.arange(size) + 0.5) * (UNITS / size)).astype(np.int64)
    span = int(scene.shift * 14)
    for channel in range(3):
        noise = lattice_noise(cells, cells, mix64(scene.seed ^ (channel + 1))).astype(np.int64) % (2 * span + 1) - span
        mixed[:, :, channel] += noise
    return np.clip(mixed, 0, 255).astype(np.uint8)


def render(scene: Scene, size: int) -> np.ndarray:
    """Paint a scene.

    Args:
        scene: what to paint.
        size: side of the image in pixels.

    Returns:
        `[size, size, 3]` uint8.
    """
    canvas = np.empty((size, size, 3))
    canvas[:] = _background(scene, size)[:, :, None]
    palette = _palette(scene.shift)
    for thing in scene.things:
        _paint(canvas, thing, palette)
    image = np.floor(np.minimum(np.maximum(canvas, 0.0), 255.0) + 0.5).astype(np.uint8)
    return _other_camera(image, scene) if scene.shift > 0.0 else image


def regions(scene: Scene, size: int) -> np.ndarray:
    """Which object each pixel shows.

    Returns:
        `[size, size]` uint8: 0 for background, j for `scene.things[j - 1]`, filled silhouettes (the hole of a ring is
        background, the inside of an outline is not). A pixel belongs to an object if its centre does.
    """
    out = np.zeros((size, size), np.uint8)
    for number, thing in enumerate(scene.things, 1):
        rows, cols = _window(thing, size)
        out[rows, cols][_surface(thing, rows, cols, size).distance <= 0.0] = number
    return out
