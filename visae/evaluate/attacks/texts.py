"""Other words for the same thing: typos, synonyms, paraphrases and captions that state the concept alone.

Every function here maps a prompt to other texts, depends on nothing but its arguments, and never returns the prompt's
own text nor a text twice.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from visae.data.sample import Concept, Prompt
from visae.evaluate.attacks.base import ATTACKS, Arena, Attack, Record, attempts
from visae.world.captions import draw_caption, prompts
from visae.world.hashing import Stream
from visae.world.lexicon import ADJECTIVES, GROUNDS, NOUNS, PHRASES
from visae.world.scene import draw_scene
from visae.world.variants import replace_value

Others = Callable[[Prompt, Concept, int], Sequence[str]]
"""From a prompt, the concept and how many, to other texts; fewer where there are no more."""

SHORTEST = 3
"""Letters of the shortest word that gets typos."""
_TRIES = 200


@dataclass(frozen=True)
class Texts(Attack):
    """Draws other texts from the prompt's own seed until one shows the concept.

    Attributes:
        others: makes the texts.
        n: how many of each prompt.
    """

    others: Others
    n: int = 8

    @property
    def budget(self) -> dict[str, int]:
        """See `Attack.budget`."""
        return {"pictures": self.n}

    def within(self, pictures: int, gradients: int) -> "Texts":  # noqa: ARG002
        """See `Attack.within`."""
        return replace(self, n=pictures)

    def attack(self, arena: Arena, prompts: Sequence[Prompt], record: Record) -> None:
        """See `Attack.attack`."""
        tries = [
            [replace(prompt, text=text) for text in list(self.others(prompt, arena.concept, self.n))[: self.n]]
            for prompt in prompts
        ]
        attempts(arena, tries, record, lambda one: one.text)


def typo(word: str, draw: random.Random) -> str:
    """A word with two neighbours swapped, a letter dropped or a letter doubled; never the word itself.

    Raises:
        ValueError: for a word of less than two letters.
    """
    if len(word) < 2:
        raise ValueError(f"a typo needs a word of two letters at least, got {word!r}")
    while True:
        kind, at = draw.choice(("swap", "drop", "double")), draw.randrange(len(word))
        if kind == "swap":
            at = min(at, len(word) - 2)
            found = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        else:
            found = word[:at] + ("" if kind == "drop" else word[at] * 2) + word[at + 1 :]
        if found != word:
            return found


def typos(prompt: Prompt, concept: Concept, n: int) -> list[str]:
    """Texts with a typo in one word: in one that names the concept where the built-in world knows it, else in any."""
    naming = {word for term in named(*concept) for word in term.split() if len(word) >= SHORTEST}
    words = [(m.start(), m.end(), m.group()) for m in re.finditer(r"\w+", prompt.text) if len(m.group()) >= SHORTEST]
    chosen = [one for one in words if one[2] in naming] or words
    draw, found = random.Random(f"{prompt.text} {prompt.seed}"), dict[str, None]()
    for _ in range(_TRIES if chosen else 0):
        start, end, word = draw.choice(chosen)
        found[prompt.text[:start] + typo(word, draw) + prompt.text[end:]] = None
        if len(found) == n:
            break
    return list(found)


def named(factor: str, value: str) -> list[str]:
    """Every term that captions of the built-in world have for a value, the longest first; none for what it lacks."""
    tables = [table.get(factor, {}) for table in (NOUNS, ADJECTIVES, PHRASES)] + [GROUNDS] * (factor == "background")
    terms = {term for table in tables for term in table.get(value, ())}
    return sorted(terms, key=lambda term: (-len(term), term))


def world_synonyms() -> dict[str, tuple[str, ...]]:
    """Term -> other terms of the same kind for the same value, of the built-in world."""
    groups = [group for table in (NOUNS, ADJECTIVES, PHRASES) for values in table.values() for group in values.values()]
    found: dict[str, tuple[str, ...]] = {}
    for group in (*groups, *GROUNDS.values()):
        for term in group:
            found[term] = found.get(term, ()) + tuple(other for other in group if other != term)
    return found


def synonyms(prompt: Prompt, table: Mapping[str, Sequence[str]], n: int) -> list[str]:
    """Texts in which a term of a table has given way to another, then those with two exchanged, and so on.

    Args:
        prompt: the prompt.
        table: term -> terms that may stand in its place; "a" and "an" before it follow.
        n: how many.
    """
    found, edge = dict[str, None](), [prompt.text]
    while edge and len(found) < n:
        nearer = [text for known in edge for text in _exchanged(known, table) if text != prompt.text]
        edge = [text for text in dict.fromkeys(nearer) if text not in found]
        found |= dict.fromkeys(edge[: n - len(found)])
    return list(found)


def _exchanged(text: str, table: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts with one term exchanged; of terms within one another, the longest counts."""
    terms = sorted(filter(None, table), key=len, reverse=True)
    if not terms:
        return []
    pattern = rf"(?:\b(an?) )?(?<![\w-])({'|'.join(map(re.escape, terms))})(?![\w-])"
    return [
        text[: m.start()] + _articled(m.group(1), other) + text[m.end() :]
        for m in re.finditer(pattern, text)
        for other in table[m.group(2)]
    ]


def _articled(article: str | None, term: str) -> str:
    if article is None:
        return term
    return f"{'an' if term[:1].lower() in 'aeiou' else 'a'} {term}"


def concept_synonyms(prompt: Prompt, concept: Concept, n: int) -> list[str]:
    """Texts in which what names the concept has given way to the built-in world's other terms for it."""
    terms = named(*concept)
    return synonyms(prompt, {one: others for one, others in world_synonyms().items() if one in terms}, n)


def paraphrases(prompt: Prompt, concept: Concept, n: int) -> list[str]:  # noqa: ARG001
    """Other captions of the built-in world that state shape, style, colour and background as the prompt does.

    Raises:
        ValueError: for a prompt that has no label of its shape.
    """
    asked = {factor: values[0] for factor, values in prompt.labels.items() if len(values) == 1}
    if "shape" not in asked:
        raise ValueError(f"paraphrases are captions of the built-in world, and {prompt.text!r} has no shape as a label")
    wanted = {name: asked[name] for name in ("shape", "style", "colour") if name in asked}
    thorough = len(wanted) == 3 and "background" in asked
    stream, found = Stream(131, prompt.seed), dict[str, None]()
    for _ in range(_TRIES * n):
        scene = draw_scene(stream, 1, 0)
        thing = scene.things[0]
        for name, value in wanted.items():
            thing = replace_value(thing, name, value)
        caption = draw_caption(
            replace(scene, things=(thing,), background=asked.get("background", scene.background)), stream, thorough
        )
        told = caption.things == (wanted,) and caption.background == asked.get("background") and caption.count is None
        if told and caption.text != prompt.text:
            found[caption.text] = None
            if len(found) == n:
                break
    return list(found)


def captions(prompt: Prompt, concept: Concept, n: int) -> list[str]:
    """Sentences of the built-in world that state the concept and nothing else, whatever the prompt says beside it.

    Raises:
        UnknownName: for a concept of which it has no words.
    """
    known = [text for text in dict.fromkeys(prompts(*concept)) if text != prompt.text]
    return Stream(137, prompt.seed).shuffled(known)[:n]


ATTACKS.register("typos")(Texts(typos))
ATTACKS.register("synonyms")(Texts(concept_synonyms))
ATTACKS.register("paraphrases")(Texts(paraphrases))
ATTACKS.register("captions")(Texts(captions))
