"""Variants of the world: the same scenes with a known twist."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from visae.registry import Registry
from visae.world.factors import ANGLES, BACKGROUNDS, COLOURS, POSITIONS, ROTATIONLESS, SHAPES, SIZES, STYLES
from visae.world.hashing import Stream
from visae.world.scene import BACKGROUND_LEVELS, Scene, Thing, draw_place, draw_scene
from visae.world.shapes import REACH

Value = float | str


@dataclass(frozen=True)
class Draw:
    """What a variant gets to know.

    Attributes:
        seed: of the world.
        split: 0, 1 or 2.
        index: of the image.
        objects: least and most number of objects.
    """

    seed: int
    split: int
    index: int
    objects: tuple[int, int]

    def stream(self, *more: int) -> Stream:
        """Draws for this image; `more` names further, independent ones."""
        return Stream(self.seed, self.split, self.index, *more)

    def scene(self, *more: int) -> Scene:
        """The scene without any twist."""
        stream = self.stream(*more)
        return draw_scene(stream, stream.between(*self.objects), self.split)


@dataclass(frozen=True)
class Variant:
    """A twist.

    Attributes:
        draw: makes the scene of one image.
        defaults: its parameters; the type of a default is the type of the parameter.
        choices: for text parameters, what they may be.
        check: raises ValueError for parameters that make no sense.
        one_object: whether only single-object images make sense.
    """

    draw: Callable[[Draw, Mapping[str, Value]], Scene]
    defaults: Mapping[str, Value] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    check: Callable[[Mapping[str, Value]], None] = lambda _: None
    one_object: bool = False


CHANGEABLE: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "style": STYLES,
    "colour": COLOURS,
    "background": BACKGROUNDS,
    "size": tuple(SIZES),
    "position": POSITIONS,
    "rotation": tuple(ANGLES),
}
"""Factors that `pairs` can change and `spurious` can tie, with their values."""
_TIEABLE = ("shape", "style", "colour", "background")

VARIANTS: Registry[Variant] = Registry("world variant")


def paired_value(a: str, b: str, value: str) -> str:
    """The value of factor `b` that the variant `spurious` ties to `value` of factor `a`."""
    return CHANGEABLE[b][CHANGEABLE[a].index(value) % len(CHANGEABLE[b])]


def _with_background(scene: Scene, background: str, stream: Stream) -> Scene:
    return replace(scene, background=background, level=stream.between(*BACKGROUND_LEVELS[background]))


def _spurious(draw: Draw, params: Mapping[str, Value]) -> Scene:
    """Factor `b` follows factor `a` (of the first object, where `b` is the background) with probability `p`."""
    a, b, p = str(params["a"]), str(params["b"]), float(params["p"])
    scene, stream = draw.scene(), draw.stream(1)

    def tied(thing: Thing) -> str:
        value = paired_value(a, b, getattr(thing, a))
        if stream.chance(p):
            return value
        return stream.choice([other for other in CHANGEABLE[b] if other != value])

    if b == "background":
        return _with_background(scene, tied(scene.things[0]), stream)
    return replace(scene, things=tuple(replace_value(thing, b, tied(thing)) for thing in scene.things))


def replace_value(thing: Thing, factor: str, value: str) -> Thing:
    """The same object with another shape, style or colour."""
    if factor == "shape" and value in ROTATIONLESS:
        return replace(thing, shape=value, rotation="upright", angle=0)
    changes: dict[str, Any] = {factor: value}
    return replace(thing, **changes)


def _shift(draw: Draw, params: Mapping[str, Value]) -> Scene:
    """Another site: duller, warmer palette, blur and sensor noise, all scaled by `strength` (0 to 1)."""
    return replace(draw.scene(), shift=float(params["strength"]))


def _changed(scene: Scene, factor: str, stream: Stream, split: int) -> Scene | None:
    """`scene` with one factor of its last object (or the background) changed, or None where that cannot be."""
    thing = scene.things[-1]
    old = scene.background if factor == "background" else getattr(thing, factor)
    new = stream.choice([value for value in CHANGEABLE[factor] if value != old])
    if factor == "background":
        return _with_background(scene, new, stream)
    if factor == "size":
        low, high = SIZES[new]
        other = replace(thing, size=new, radius=stream.between(low, high) / 1000)
    elif factor == "position":
        label, x, y, _ = draw_place(stream, thing.size, split)
        other = replace(thing, position=label, x=x, y=y)
    elif factor == "rotation":
        other = replace(thing, rotation=new, angle=stream.choice(ANGLES[new]))
    else:
        changes: dict[str, Any] = {factor: new}
        other = replace(thing, **changes)
    upright_only = other.shape in ROTATIONLESS and (factor == "rotation" or other.rotation != "upright")
    same_place = factor == "position" and other.position == thing.position
    if upright_only or same_place or not _stands(other, scene.things[:-1]):
        return None
    return replace(scene, things=(*scene.things[:-1], other))


def _stands(thing: Thing, others: tuple[Thing, ...]) -> bool:
    """Whether an object lies inside the image and touches no other."""
    reach = REACH * thing.radius
    if not (reach <= thing.x <= 1.0 - reach and reach <= thing.y <= 1.0 - reach):
        return False
    for other in others:
        dx, dy, apart = thing.x - other.x, thing.y - other.y, REACH * (thing.radius + other.radius)
        if dx * dx + dy * dy <= apart * apart:
            return False
    return True


def _pair(draw: Draw, params: Mapping[str, Value]) -> tuple[Scene, Scene, str]:
    pair = replace(draw, index=draw.index // 2)
    attempt = 0
    while True:
        scene, stream = pair.scene(2, attempt), pair.stream(3, attempt)
        wanted = str(params["factor"])
        factor = stream.choice(tuple(CHANGEABLE)) if wanted == "any" else wanted
        other = _changed(scene, factor, stream, draw.split)
        if other is not None:
            return scene, other, factor
        attempt += 1


def _pairs(draw: Draw, params: Mapping[str, Value]) -> Scene:
    """Images 2k and 2k + 1 differ in `factor` (`any`: a factor that depends on k) and in nothing else."""
    scene, other, _ = _pair(draw, params)
    return other if draw.index % 2 else scene


def changed_factor(draw: Draw, params: Mapping[str, Value]) -> str:
    """In which factor an image of the variant `pairs` differs from its partner."""
    return _pair(draw, params)[2]


def _homonym(draw: Draw, params: Mapping[str, Value]) -> Scene:
    """`shape` is the object itself in half of the images and a small emblem upon another object in the other half."""
    shape = str(params["shape"])
    scene, stream = draw.scene(), draw.stream(4)
    thing = scene.things[0]
    if stream.chance(0.5):
        return replace(scene, things=(replace(replace_value(thing, "shape", shape), role="figure"),))
    position, x, y, radius = draw_place(stream, "large", draw.split)
    carriers = [name for name in ("square", "circle", "heart") if name != shape]
    carrier = replace_value(thing, "shape", stream.choice(carriers))
    carrier = replace(
        carrier, role="carrier", style=stream.choice(("flat", "gradient")), size="large",
        position=position, x=x, y=y, radius=radius,
    )  # fmt: skip
    emblem = replace(
        carrier, shape=shape, role="emblem", style="outline", size="small", rotation="upright", angle=0,
        radius=radius * 0.5, colour=stream.choice([c for c in COLOURS if c != carrier.colour]), seed=stream.bits(),
    )  # fmt: skip
    return replace(scene, things=(carrier, emblem))


def _check_spurious(params: Mapping[str, Value]) -> None:
    if params["a"] == params["b"]:
        raise ValueError(f"spurious ties a factor to another factor, got a = b = {params['a']!r}")
    if not 0.0 <= float(params["p"]) <= 1.0:
        raise ValueError(f"p is a probability, 0 to 1, got {params['p']}")


def _check_shift(params: Mapping[str, Value]) -> None:
    if not 0.0 <= float(params["strength"]) <= 1.0:
        raise ValueError(f"strength is between 0 and 1, got {params['strength']}")


VARIANTS.register("plain")(Variant(lambda draw, _: draw.scene()))
VARIANTS.register("spurious")(
    Variant(
        _spurious,
        {"p": 0.9, "a": "shape", "b": "colour"},
        {"a": _TIEABLE[:3], "b": _TIEABLE},
        check=_check_spurious,
    )
)
VARIANTS.register("shift")(Variant(_shift, {"strength": 1.0}, check=_check_shift))
VARIANTS.register("pairs")(Variant(_pairs, {"factor": "any"}, {"factor": ("any", *CHANGEABLE)}))
VARIANTS.register("homonym")(Variant(_homonym, {"shape": "star"}, {"shape": SHAPES}, one_object=True))
