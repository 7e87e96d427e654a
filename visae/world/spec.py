"""Worlds from text: `world:test?n=500&objects=1-3&variant=spurious&p=0.9`."""

from typing import Any

from visae.registry import UnknownName
from visae.world.variants import VARIANTS
from visae.world.world import World

_NUMBERS = ("n", "size", "seed", "captions")


def _integer(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{key} in a world spec is a whole number, got {value!r}") from None


def _objects(value: str) -> tuple[int, int]:
    low, _, high = value.partition("-")
    return _integer("objects", low), _integer("objects", high or low)


def world_from_spec(spec: str) -> World:
    """The world a text describes.

    Args:
        spec: `world:SPLIT?key=value&...`; the split defaults to train, the keys are those of `World` and of its
            variant, and `objects` is a number or a range such as `1-3`. The prefix `world:` may be left out.

    Raises:
        UnknownName: for a split, key, variant or choice that does not exist.
        ValueError: for text that is not of this form, or a value out of range.

    Example:
        >>> len(world_from_spec("world:test?n=500&objects=1-3"))
        500
    """
    body = spec.removeprefix("world:") if spec != "world" else ""
    split, _, query = body.partition("?")
    given: dict[str, str] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"a world spec reads world:SPLIT?key=value&key=value, got {part!r} in {spec!r}")
        if key in given:
            raise ValueError(f"{key!r} appears twice in {spec!r}")
        given[key] = value
    variant = given.pop("variant", "plain")
    plain: dict[str, Any] = {key: _integer(key, given.pop(key)) for key in _NUMBERS if key in given}
    if "objects" in given:
        plain["objects"] = _objects(given.pop("objects"))
    known = VARIANTS[variant].defaults
    for key in given:
        if key not in known:
            raise UnknownName("key of a world spec", key, [*_NUMBERS, "objects", "variant", *known])
    return World(split or "train", variant=variant, **(plain | given))
