"""True sentences about a scene, in many phrasings, and what exactly each of them states."""

from dataclasses import dataclass
from itertools import permutations

from visae.registry import UnknownName
from visae.world.factors import ROTATIONLESS
from visae.world.hashing import Stream
from visae.world.lexicon import (
    ADJECTIVES,
    ANYTHING,
    COUNTS,
    EMBLEM_NOUNS,
    FRAMES,
    GROUNDS,
    JOINS,
    NOUNS,
    PHRASES,
    RELATIVES,
)
from visae.world.scene import Scene, Thing

_STATED = {"style": 0.6, "colour": 0.65, "size": 0.18, "position": 0.12, "rotation": 0.08}
"""Factor -> how often a description mentions it."""
_ALWAYS = ("style", "colour")
"""What a thorough description mentions beside the shape."""


@dataclass(frozen=True)
class Caption:
    """A sentence and its content.

    Attributes:
        text: lower-case sentence.
        things: per object it mentions, factor -> stated value.
        background: stated background, or None.
        count: stated number of objects, or None.
    """

    text: str
    things: tuple[dict[str, str], ...] = ()
    background: str | None = None
    count: str | None = None

    def holds(self, scene: Scene) -> bool:
        """Whether the sentence is true of a scene: every object it mentions can be matched to one of its own."""
        if self.background not in (None, scene.background) or self.count not in (None, scene.count):
            return False
        present = [thing.labels for thing in scene.things]
        return any(
            all(all(has.get(k) == v for k, v in stated.items()) for stated, has in zip(self.things, order, strict=True))
            for order in permutations(present, len(self.things))
        )


def with_article(text: str) -> str:
    """`text` with "a" or "an" before it."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _noun(thing: Thing, stream: Stream, thorough: bool) -> tuple[str, dict[str, str]]:
    roll = 0 if thorough else stream.below(100)
    known = thing.labels
    factor = "shape" if roll < 84 else "family" if roll < 90 else None
    if factor is None:
        noun, stated = stream.choice(ANYTHING), {}
    else:
        noun, stated = stream.choice(NOUNS[factor][known[factor]]), {factor: known[factor]}
    if thing.role == "emblem":
        return f"{noun} {stream.choice(EMBLEM_NOUNS)}", stated | {"role": "emblem"}
    return noun, stated


def _describe(thing: Thing, stream: Stream, thorough: bool) -> tuple[str, dict[str, str]]:
    """A noun phrase with article for one object, and what it states."""
    noun, stated = _noun(thing, stream, thorough)
    known = thing.labels
    mentioned = list(_ALWAYS) if thorough else [factor for factor, often in _STATED.items() if stream.chance(often)]
    if thing.shape in ROTATIONLESS and "rotation" in mentioned:
        mentioned.remove("rotation")
    if not mentioned and not stated:
        mentioned = [stream.choice(("colour", "style"))]
    before, after = [], []
    for factor in mentioned:
        value = known[factor]
        stated[factor] = value
        as_phrase = factor not in ADJECTIVES or (factor in PHRASES and stream.chance(0.3 if factor == "style" else 0.1))
        if as_phrase:
            after.append(stream.choice(PHRASES[factor][value]))
        else:
            before.append(stream.choice(ADJECTIVES[factor][value]))
    before = stream.shuffled(before)
    if before and stream.chance(0.12):
        text = stream.choice(RELATIVES).format(with_article(noun), " and ".join(before))
    else:
        text = with_article(" ".join([*before, noun]))
    return " ".join([text, *stream.shuffled(after)]), stated


def draw_caption(scene: Scene, stream: Stream, thorough: bool = False) -> Caption:
    """One true caption.

    Args:
        scene: what to talk about.
        stream: decides which objects and factors are mentioned, and how.
        thorough: state shape, style and colour of every object, and the background, and nothing else: as a prompt for
            a picture does that leaves little to chance.
    """
    if not thorough and stream.chance(0.05):
        ground, count = scene.background, scene.count
        text = f"{stream.choice(COUNTS[count])} {stream.choice(GROUNDS[ground])}"
        return Caption(stream.choice(FRAMES).format(text), background=ground, count=count)
    things = stream.shuffled(scene.things)
    if len(things) > 1 and not thorough and stream.chance(0.4):
        things = things[: stream.between(1, len(things) - 1)]
    described = [_describe(thing, stream, thorough) for thing in things]
    text = described[0][0]
    for other, _ in described[1:]:
        text = stream.choice(JOINS).format(text, other)
    background = scene.background if thorough or stream.chance(0.3) else None
    if background is None:
        text = stream.choice(FRAMES).format(text)
    elif stream.chance(0.25):
        text = f"{stream.choice(GROUNDS[background])} , {text}"
    else:
        text = stream.choice(FRAMES).format(f"{text} {stream.choice(GROUNDS[background])}")
    return Caption(text, tuple(stated for _, stated in described), background)


def prompts(factor: str, value: str) -> list[str]:
    """Sentences that state one value and nothing else, to average over in zero-shot classification.

    Args:
        factor: shape, family, style, colour, size, position, rotation, background or count.
        value: one of its values.

    Raises:
        UnknownName: if there are no words for the factor or the value.
    """
    tables = {"background": GROUNDS, "count": COUNTS} | NOUNS | {f: ADJECTIVES.get(f, {}) for f in _STATED}
    if factor not in tables:
        raise UnknownName("captioned factor", factor, tables)
    known = tables[factor] or PHRASES[factor]
    if value not in known:
        raise UnknownName(f"value of {factor}", value, known)
    if factor in NOUNS:
        bodies = [with_article(noun) for noun in NOUNS[factor][value]]
    elif factor == "background":
        bodies = [f"{with_article(noun)} {ground}" for ground in GROUNDS[value] for noun in ANYTHING[:2]]
    elif factor == "count":
        bodies = list(COUNTS[value])
    else:
        bodies = [
            with_article(f"{word} {noun}") for word in ADJECTIVES.get(factor, {}).get(value, ()) for noun in ANYTHING
        ]
        bodies += [
            f"{with_article(noun)} {text}" for text in PHRASES.get(factor, {}).get(value, ()) for noun in ANYTHING[:2]
        ]
    frames = ("{}", "a picture of {}", "an image of {}", "a drawing of {}")
    return [frame.format(body) for body in bodies for frame in frames]
