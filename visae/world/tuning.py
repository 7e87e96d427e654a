"""Prompts to tune an erasure on: with a concept, without it, and pairs that differ in nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from visae.data.prompts import PARTS, part_of_text
from visae.data.sample import Concept, Prompt
from visae.registry import UnknownName
from visae.world.captions import Caption, draw_caption, prompts
from visae.world.cells import DOMAINS, cells
from visae.world.factors import FACTORS
from visae.world.hashing import Stream
from visae.world.scene import Scene, draw_scene
from visae.world.variants import replace_value


@dataclass(frozen=True)
class Tuning:
    """What may be learnt from about some concepts; none of it is among the prompts of another part.

    Attributes:
        words: the concepts in words, e.g. `a star`, joined by commas.
        target: prompts that ask for any of them.
        retain: prompts that ask for none.
        pairs: texts with one of the concepts, and each the same but for another value in its place.
    """

    words: str
    target: list[Prompt]
    retain: list[Prompt]
    pairs: list[tuple[str, str]]


def tuning(
    concepts: Sequence[Concept], part: str = "train", phrasings: int = 1, erased: Sequence[Concept] = ()
) -> Tuning:
    """Prompts to tune the erasure of some concepts on.

    Args:
        concepts: e.g. `[("style", "dots")]`.
        part: `train`, to find out what a concept is; `validation`, to choose how strongly to erase it.
        phrasings: texts of every cell, and pairs of every concept and value in its place.
        erased: concepts that are erased along with them: none stands in the place of another.

    Raises:
        UnknownName: for a part, a domain or a value that does not exist.
        ValueError: for no concepts, or for the part `test`, which is for what is reported.
    """
    if part == "test":
        raise ValueError("what is reported is measured on the part 'test': tune on 'train' or 'validation'")
    if not concepts:
        raise ValueError("give at least one concept such as ('style', 'dots')")
    for factor, value in concepts:
        if factor not in DOMAINS:
            raise UnknownName("domain of the world", factor, DOMAINS)
        if value not in FACTORS[factor]:
            raise UnknownName(factor, value, FACTORS[factor])
    known = cells(part, phrasings).items
    return Tuning(
        " , ".join(prompts(factor, value)[0] for factor, value in concepts),
        [one for one in known if one.asks_for(concepts)],
        [one for one in known if not one.asks_for(concepts)],
        [pair for concept in concepts for pair in _pairs(concept, {*concepts, *erased}, part, phrasings)],
    )


def _pairs(concept: Concept, erased: set[Concept], part: str, phrasings: int) -> list[tuple[str, str]]:
    """Pairs of a concept, one for each value that may stand in its place and each phrasing."""
    factor, value = concept
    others = [other for other in FACTORS[factor] if (factor, other) not in erased]
    found: list[tuple[str, str]] = []
    for number, other in enumerate(others * phrasings):
        stream = Stream(102, list(PARTS).index(part), FACTORS[factor].index(value), number)
        while True:
            scene, key = draw_scene(stream, 1, 0), stream.bits()
            first, second = (_told(scene, factor, name, key).text for name in (value, other))
            if part_of_text(first) == part_of_text(second) == part:
                found.append((first, second))
                break
    return found


def _told(scene: Scene, factor: str, value: str, key: int) -> Caption:
    """A scene with one factor changed, in words that are chosen alike for all its values."""
    thing = replace_value(scene.things[0], factor, value)
    return draw_caption(replace(scene, things=(thing,)), Stream(103, key), thorough=True)
