"""A scene: every parameter of one image, drawn from a stream before anything is painted."""

from dataclasses import dataclass

from visae.world.factors import (
    ANGLES,
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    ROTATIONLESS,
    ROWS,
    SHAPES,
    SIZES,
    STYLES,
    TAXONOMY,
)
from visae.world.hashing import Stream
from visae.world.shapes import REACH

LATTICE = 6144
"""Positions are multiples of 1/6144 of the image side; which multiples (modulo 3) is decided by the split."""


@dataclass(frozen=True)
class Thing:
    """One object. Lengths are fractions of the image side.

    Attributes:
        shape: what it is.
        style: how it is filled.
        colour: its palette entry.
        size: its size label.
        position: its position label.
        rotation: its rotation label.
        x: centre, from the left.
        y: centre, from the top.
        radius: radius.
        angle: degrees, clockwise.
        tint: added to the palette entry, per channel.
        seed: noise seed.
        phase: where patterns start.
        role: None, or its part in the variant `homonym`.
    """

    shape: str
    style: str
    colour: str
    size: str
    position: str
    rotation: str
    x: float
    y: float
    radius: float
    angle: int
    tint: tuple[int, int, int]
    seed: int
    phase: tuple[float, float]
    role: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Factor -> value, of everything that can be said of this object."""
        family, subfamily = TAXONOMY[self.shape]
        known = {
            "shape": self.shape,
            "family": family,
            "subfamily": subfamily,
            "style": self.style,
            "colour": self.colour,
            "size": self.size,
            "position": self.position,
            "rotation": self.rotation,
        }
        return known if self.role is None else known | {"role": self.role}


@dataclass(frozen=True)
class Scene:
    """One image before it is painted.

    Attributes:
        things: the objects, in painting order.
        background: its label.
        level: brightness of the background, 0 .. 255 (its middle, where it varies).
        slope: direction in which a gradient background gets brighter, as (right, down) steps.
        seed: noise seed of background and camera.
        shift: strength of the other site's look, 0 for none (variant `shift`).
    """

    things: tuple[Thing, ...]
    background: str
    level: int
    slope: tuple[int, int]
    seed: int
    shift: float = 0.0

    @property
    def count(self) -> str:
        """How many objects, in a word; an emblem is no object of its own."""
        return ("one", "two", "three")[sum(thing.role != "emblem" for thing in self.things) - 1]


BACKGROUND_LEVELS: dict[str, tuple[int, int]] = {
    "light": (200, 224),
    "dark": (36, 60),
    "gradient": (120, 136),
    "grain": (118, 140),
}
_SLOPES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def _coordinate(stream: Stream, side: int, radius: float, split: int) -> float:
    """A centre coordinate at the near side (-1), the middle (0) or the far side (1), on the split's own lattice."""
    room = int((0.5 - REACH * radius) * LATTICE)
    if side == 0:
        offset = stream.between(-LATTICE * 3 // 100, LATTICE * 3 // 100)
    else:
        near = LATTICE * 8 // 100
        offset = side * stream.between(near, max(near, room))
    place = LATTICE // 2 + offset
    return (place - place % 3 + split) / LATTICE


def position_label(column: int, row: int) -> str:
    """Name of a place from its column and row in -1 .. 1."""
    return f"{ROWS[row + 1]}-{COLUMNS[column + 1]}"


def draw_place(stream: Stream, size: str, split: int) -> tuple[str, float, float, float]:
    """Position label, x, y and radius of one object of a given size."""
    low, high = SIZES[size]
    radius = stream.between(low, high) / 1000
    column, row = stream.between(-1, 1), stream.between(-1, 1)
    x = _coordinate(stream, column, radius, split)
    y = _coordinate(stream, row, radius, split)
    return position_label(column, row), x, y, radius


def _fits(place: tuple[str, float, float, float], others: list[tuple[str, float, float, float]]) -> bool:
    _, x, y, radius = place
    for _, other_x, other_y, other_radius in others:
        dx, dy, apart = x - other_x, y - other_y, REACH * (radius + other_radius)
        if dx * dx + dy * dy <= apart * apart:
            return False
    return True


def _places(stream: Stream, n: int, split: int) -> list[tuple[str, tuple[str, float, float, float]]]:
    """Sizes and places of `n` objects that do not touch."""
    if n == 1:
        size = stream.choice(tuple(SIZES))
        return [(size, draw_place(stream, size, split))]
    while True:
        sizes = ["medium" if n == 2 and stream.chance(0.3) else "small"] + ["small"] * (n - 1)
        found: list[tuple[str, float, float, float]] = []
        for size in sizes:
            for _ in range(12):
                place = draw_place(stream, size, split)
                if _fits(place, found):
                    found.append(place)
                    break
        if len(found) == n:
            return list(zip(sizes, found, strict=True))


def draw_thing(stream: Stream, size: str, place: tuple[str, float, float, float]) -> Thing:
    """An object with everything but its place left to chance."""
    position, x, y, radius = place
    shape = stream.choice(SHAPES)
    rotation = stream.choice(tuple(ANGLES))
    angle = stream.choice(ANGLES[rotation])
    if shape in ROTATIONLESS:
        rotation, angle = "upright", 0
    return Thing(
        shape=shape,
        style=stream.choice(STYLES),
        colour=stream.choice(COLOURS),
        size=size,
        position=position,
        rotation=rotation,
        x=x,
        y=y,
        radius=radius,
        angle=angle,
        tint=(stream.between(-8, 8), stream.between(-8, 8), stream.between(-8, 8)),
        seed=stream.bits(),
        phase=(stream.below(64) / 64, stream.below(64) / 64),
    )


def draw_scene(stream: Stream, n: int, split: int) -> Scene:
    """A scene of `n` objects.

    Args:
        stream: where the draws come from.
        n: number of objects, 1 to 3.
        split: 0, 1 or 2; scenes of different splits have no position in common.
    """
    things = tuple(draw_thing(stream, size, place) for size, place in _places(stream, n, split))
    background = stream.choice(BACKGROUNDS)
    return Scene(
        things=things,
        background=background,
        level=stream.between(*BACKGROUND_LEVELS[background]),
        slope=stream.choice(_SLOPES),
        seed=stream.bits(),
    )
