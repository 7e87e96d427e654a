"""Contact sheets: the whole world on a few pictures, to be looked at."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visae.world.factors import ANGLES, BACKGROUNDS, COLOURS, ROTATIONLESS, SHAPES, SIZES, STYLES
from visae.world.hashing import Stream
from visae.world.render import render
from visae.world.scene import BACKGROUND_LEVELS, Scene, draw_scene
from visae.world.world import World

_GAP = 2
_LABEL_HEIGHT, _LABEL_WIDTH = 12, 62


def _posed(key: int, size_label: str, **changes: Any) -> Scene:
    """A scene with one centred object, some of whose factors are chosen."""
    scene = draw_scene(Stream(99, key), 1, 0)
    background = changes.pop("background", scene.background)
    thing = replace(scene.things[0], **changes)
    angle = 0 if thing.shape in ROTATIONLESS else thing.angle
    low, _ = SIZES[size_label]
    thing = replace(thing, x=0.5, y=0.5, radius=low / 1000, angle=angle)
    level = Stream(98, key).between(*BACKGROUND_LEVELS[background])
    return replace(scene, things=(thing,), background=background, level=level)


def grid(tiles: list[list[np.ndarray]], rows: Iterable[str], cols: Iterable[str]) -> Image.Image:
    """Images `[s, s, 3]` side by side, with names beside rows and above columns."""
    side = tiles[0][0].shape[0]
    step = side + _GAP
    sheet = Image.new("RGB", (_LABEL_WIDTH + step * len(tiles[0]), _LABEL_HEIGHT + step * len(tiles)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, name in enumerate(cols):
        pen.text((_LABEL_WIDTH + x * step, 0), name, fill="black")
    for y, name in enumerate(rows):
        pen.text((2, _LABEL_HEIGHT + y * step + side // 2 - 6), name, fill="black")
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet.paste(Image.fromarray(tile), (_LABEL_WIDTH + x * step, _LABEL_HEIGHT + y * step))
    return sheet


def shapes_by_styles(size: int, size_label: str) -> Image.Image:
    """Every shape in every style, at the smallest radius of a size label."""
    tiles = [
        [render(_posed(97 * y + x, size_label, shape=shape, style=style), size) for x, style in enumerate(STYLES)]
        for y, shape in enumerate(SHAPES)
    ]
    return grid(tiles, SHAPES, STYLES)


def colours_by_backgrounds(size: int) -> Image.Image:
    """Every colour in every style on every background."""
    tiles = [
        [
            render(_posed(53 * y + x, "small", colour=colour, style=style, background=ground), size)
            for x, style in enumerate(STYLES)
        ]
        for y, (colour, ground) in enumerate((c, g) for c in COLOURS for g in BACKGROUNDS)
    ]
    return grid(tiles, [f"{c} {g[:4]}" for c in COLOURS for g in BACKGROUNDS], STYLES)


def rotations(size: int) -> Image.Image:
    """Every shape at every angle in use."""
    angles = sorted({angle for values in ANGLES.values() for angle in values})
    scenes = [[_posed(y, "medium", shape=shape, style="flat") for _ in angles] for y, shape in enumerate(SHAPES)]
    tiles = [
        [render(replace(s, things=(replace(s.things[0], angle=a),)), size) for s, a in zip(row, angles, strict=True)]
        for row in scenes
    ]
    return grid(tiles, SHAPES, [str(angle) for angle in angles])


def variants(size: int) -> Image.Image:
    """Ten images of every variant; pairs stand side by side."""
    worlds = {
        "one": World("train", 10, size),
        "1-3": World("train", 10, size, objects=(1, 3)),
        "spurious": World("train", 10, size, variant="spurious", p=1.0),
        "shift": World("train", 10, size, variant="shift"),
        "homonym": World("train", 10, size, variant="homonym"),
    } | {f"p {f}": World("train", 10, size, variant="pairs", factor=f) for f in ("shape", "style", "size", "position")}
    return grid([[w.render(i) for i in range(10)] for w in worlds.values()], worlds, [str(i) for i in range(10)])


SHEETS: dict[str, Callable[[int], Image.Image]] = {
    "small": lambda size: shapes_by_styles(size, "small"),
    "large": lambda size: shapes_by_styles(size, "large"),
    "colours": colours_by_backgrounds,
    "rotations": rotations,
    "variants": variants,
}
"""Sheet -> function of the image size."""
