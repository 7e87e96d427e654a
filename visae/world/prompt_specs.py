"""Captions of the world as prompts for models that make images, with what each of them asks for."""

import hashlib

from visae.data.load import parse_query
from visae.data.prompts import PARTS, part_of_text, whole
from visae.data.sample import FactorTable, Labels, Prompt, PromptData
from visae.registry import UnknownName
from visae.world.captions import Caption
from visae.world.spec import world_from_spec
from visae.world.world import World

PROMPTS_VERSION = 1
"""Goes up whenever any prompt or label changes; part of the fingerprint."""


class WorldPrompts:
    """Captions of a world, with seeds; labels are what the caption states, nothing else.

    A caption belongs to the part that its text belongs to (`visae.data.prompts.part_of_text`), so no text is in two
    parts: of every scene, the first caption of the part that is asked for is taken.

    Args:
        world: whose scenes are described.
        seed: of the first image, whose followers count up.
        seeds: images of every caption.

    Example:
        >>> from visae.data import load_prompts
        >>> load_prompts("world:prompts?n=10&split=test")[0].labels.keys() <= {"shape", "style", "colour", "size"}
        True
    """

    def __init__(self, world: World, seed: int = 0, seeds: int = 1):
        self.world, self.seed, self.seeds = world, seed, seeds
        self.factors: FactorTable = world.factors
        part, _, query = world.name.removeprefix("world:").partition("?")
        self.name = f"world:prompts?split={part}&{query}&first={seed}&seeds={seeds}"
        told = f"{PROMPTS_VERSION} {world.fingerprint} {seed} {seeds}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.world) * self.seeds

    def __repr__(self) -> str:
        return f"<WorldPrompts {self.name}>"

    def caption(self, index: int) -> Caption:
        """The caption behind a prompt: what it states of each object."""
        j = 0
        while part_of_text((found := self.world.caption(index // self.seeds, j)).text) != self.world.split:
            j += 1
        return found

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has prompts 0 to {len(self) - 1}, got {index}")
        caption = self.caption(index)
        key = f"world/{self.world.split}/{self.world.seed}/{index}"
        return Prompt(caption.text, self.seed + index, key, stated(caption, self.factors), caption.text)

    def group_of(self, index: int) -> str | None:
        """Group of a prompt: its text."""
        return self[index].group


def stated(caption: Caption, factors: FactorTable) -> Labels:
    """Factor -> values that a caption asks for; factors that it leaves open are missing."""
    found = {factor: {thing[factor] for thing in caption.things if factor in thing} for factor in factors}
    found["background"] = {caption.background} if caption.background else set()
    found["count"] = {caption.count} if caption.count else set()
    return {factor: tuple(v for v in factors[factor] if v in values) for factor, values in found.items() if values}


def prompts_from_spec(spec: str) -> PromptData:
    """The prompts that a text describes.

    Args:
        spec: `world:prompts?n=1000&split=train&...`, captions of a world; further keys are those of a world. `first` is
            the seed of the first image, `seeds` the number of images of each caption. Or
            `world:cells?split=test&phrasings=1&seeds=1`, all shapes in all styles, see `visae.world.cells`.

    Raises:
        UnknownName: for a part or key that does not exist.
        ValueError: for a value out of range.
    """
    body, given = parse_query(spec)
    if body == "world:cells":
        return _cells(given)
    if body != "world:prompts":
        raise UnknownName("prompts of the world", body, ["world:prompts?n=1000&split=train", "world:cells?split=test"])
    part = given.pop("split", "train")
    if part not in PARTS:
        raise UnknownName("part of the world's prompts", part, PARTS)
    first, seeds = whole("first", given.pop("first", "0")), whole("seeds", given.pop("seeds", "1"), 1)
    query = "&".join(f"{key}={value}" for key, value in given.items())
    return WorldPrompts(world_from_spec(f"world:{part}" + (f"?{query}" if query else "")), first, seeds)


def _cells(given: dict[str, str]) -> PromptData:
    from visae.world.cells import cells  # which takes labels from here

    for key in given:
        if key not in ("split", "phrasings", "seeds"):
            raise UnknownName("key of the world's cells", key, ["split", "phrasings", "seeds"])
    numbers = {key: whole(key, given[key], 1) for key in ("phrasings", "seeds") if key in given}
    return cells(given.get("split", "test"), **numbers)
