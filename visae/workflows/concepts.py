"""What shall be erased: from what a user types to prompts for learning, for choosing a strength, and for the proof."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visae.data.prompts import load_prompts
from visae.data.sample import Concept, Prompt
from visae.erasers import Request
from visae.registry import UnknownName
from visae.world.cells import DOMAINS, FIRST_SEED, cells
from visae.world.factors import FACTORS, TAXONOMY
from visae.world.lexicon import ADJECTIVES, NOUNS, PHRASES
from visae.world.tuning import tuning

TEMPLATES = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a painting of {}",
    "{} in a picture", "there is {}", "this is {}", "a close-up of {}", "{} from afar", "an image that shows {}",
    "a poster with {}", "{} at night", "{} in daylight", "a sketch of {}", "{} in the centre", "a scene with {}",
)  # fmt: skip
"""Sentences around a concept where no target prompts are given."""

PARTS = ("train", "validation", "test")
"""Every third prompt of a file is of each part: to learn from, to choose a strength on, to report."""


@dataclass(frozen=True)
class Task:
    """Concepts to erase, and prompts of three parts that share no text and no seed.

    Attributes:
        concepts: what is erased, as the prompts' labels have it.
        request: what methods learn from.
        requests: the same for each concept alone, without the others' prompts; of one concept, `request` itself.
        tuned_on: prompts of the request, with their seeds.
        validation: prompts to choose a strength on.
        test: prompts of what is reported.
        domains: factors of the labels.
        world: whether the judges of the built-in world can tell what pictures show.
    """

    concepts: tuple[Concept, ...]
    request: Request
    requests: tuple[Request, ...]
    tuned_on: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]
    domains: tuple[str, ...]
    world: bool

    @property
    def name(self) -> str:
        """`shape=star`; several joined by commas."""
        return spelled(self.concepts)

    @property
    def seeds(self) -> dict[str, int]:
        """Tuning prompt -> seed of its image."""
        return {one.text: one.seed for one in reversed(self.tuned_on)}


def spelled(concepts: Sequence[Concept]) -> str:
    """`shape=star,style=dots`."""
    return ",".join(f"{factor}={value}" for factor, value in concepts)


def world_concepts(text: str, words: bool) -> tuple[Concept, ...]:
    """Concepts of the built-in world that a text names: `shape=star`, `shape=star,style=dots`.

    Args:
        text: what the user typed.
        words: whether words such as `a star` or `dotted` name them, too, as in prompts for a shipped pipeline.

    Returns:
        None at all where the text speaks of something else.

    Raises:
        UnknownName: for a factor or value that does not exist.
    """
    found: list[Concept] = []
    for part in (one.strip() for one in text.split(",")):
        factor, mark, value = part.partition("=")
        if mark:
            if factor not in DOMAINS:
                raise UnknownName("domain of the world", factor, DOMAINS)
            if value not in FACTORS[factor]:
                raise UnknownName(factor, value, FACTORS[factor])
            found.append((factor, value))
        elif words and (named := _named(part)) is not None:
            found.append(named)
        else:
            return ()
    return tuple(dict.fromkeys(found))


def _named(text: str) -> Concept | None:
    """The shape or style that words stand for."""
    bare = text.lower()
    for article in ("a ", "an ", "the "):
        bare = bare.removeprefix(article)
    tables = [("shape", NOUNS["shape"]), ("style", ADJECTIVES["style"]), ("style", PHRASES["style"])]
    return next(((f, value) for f, table in tables for value, said in table.items() if bare in (value, *said)), None)


def world_task(concepts: Sequence[Concept], given: Mapping[str, Any], phrasings: int = 1, seeds: int = 1) -> Task:
    """The task of erasing concepts of the built-in world.

    Args:
        concepts: e.g. `[("style", "dots")]`.
        given: arguments of `AdaptedPipeline.generate`, e.g. `{"steps": 20}`.
        phrasings: texts of every cell.
        seeds: test images of every text.
    """
    joint, known = tuple(concepts), dict(given)
    whole = tuning(joint, "train", phrasings)
    parts = [whole] if len(joint) == 1 else [tuning([one], "train", phrasings, joint) for one in joint]
    # What leaves a factor open may show the concept by chance.
    kept = [one for one in whole.retain if all(factor in one.labels for factor, _ in joint)]
    retain = tuple(one.text for one in kept)

    def request(told: Any) -> Request:
        target = tuple(one.text for one in told.target)
        others = tuple(one.text for one in whole.target if one.text not in target)
        return Request(told.words, target, retain, tuple(told.pairs), others, seed=FIRST_SEED["train"], given=known)

    return Task(
        joint, request(whole), tuple(map(request, parts)), [*whole.target, *kept], cells("validation", phrasings).items,
        cells("test", phrasings, seeds).items, DOMAINS, True,
    )  # fmt: skip


def learning_from(task: Task, target: str | Path | None, retain: str | Path | None) -> Task:
    """A task of the built-in world that learns from the user's prompts instead; those of other parts are left out.

    Raises:
        ValueError: if prompts of several concepts at once are given, which nobody can tell apart, or none is left.
    """
    if target is None and retain is None:
        return task
    if target is not None and len(task.concepts) > 1:
        raise ValueError(f"target prompts are of one concept, and {task.name} are {len(task.concepts)}: leave them out")
    kept = {one.text for one in (*task.validation, *task.test)}
    found: dict[str, list[Prompt]] = {}
    for kind, spec in (("target", target), ("retain", retain)):
        texts = list(task.request.prompts(kind)) if spec is None else [t for t in _texts(spec) if t not in kept]
        if not texts:
            raise ValueError(f"{spec} has no {kind} prompts, or none that are not among those of the report")
        known, first = {one.text: one for one in task.tuned_on}, FIRST_SEED["train"] + 1_000_000 * (kind == "retain")
        found[kind] = [known.get(text, Prompt(text, first + i, f"{kind}/{i}")) for i, text in enumerate(texts)]
    learn = {kind: tuple(one.text for one in some) for kind, some in found.items()}
    requests = tuple(
        replace(one, retain=learn["retain"], target=one.target if target is None else learn["target"])
        for one in (task.request, *task.requests)
    )
    return replace(task, request=requests[0], requests=requests[1:], tuned_on=[*found["target"], *found["retain"]])


def free_task(
    concept: str, target: str | Path | None, retain: str | Path | None, given: Mapping[str, Any], seeds: int = 1
) -> Task:
    """The task of erasing what words say.

    Args:
        concept: in words, e.g. `a star`.
        target: prompts that ask for it, as `load_prompts` reads them; None makes sentences around the words.
        retain: prompts that do not.
        given: arguments of `AdaptedPipeline.generate`.
        seeds: images of every prompt.

    Raises:
        ValueError: without retain prompts, or with fewer than one of each kind for every part.
    """
    if retain is None:
        raise ValueError(
            f"{concept!r} is no concept of the built-in world, so prompts that do without it are needed: name a file "
            "with --retain, a prompt a line"
        )
    asked = [t.format(concept) for t in TEMPLATES] if target is None else _texts(target)
    parts: dict[str, list[Prompt]] = {part: [] for part in PARTS}
    for label, texts in ((concept, asked), ("other", _texts(retain))):
        if len(texts) < len(PARTS):
            raise ValueError(f"at least {len(PARTS)} {label} prompts are needed, one for each part; got {len(texts)}")
        for place, text in enumerate(texts):
            part = PARTS[place % len(PARTS)]
            for _ in range(seeds):
                seed = FIRST_SEED[part] + len(parts[part])
                parts[part].append(Prompt(text, seed, f"{label}/{seed}", {"concept": (label,)}, text))
    learn = {label: tuple(dict.fromkeys(p.text for p in parts["train"] if p.labels["concept"] == (label,)))
             for label in (concept, "other")}  # fmt: skip
    request = Request(
        concept, learn[concept], learn["other"], ((concept, ""),), seed=FIRST_SEED["train"], given=dict(given)
    )
    return Task(
        (("concept", concept),), request, (request,), parts["train"], parts["validation"], parts["test"], ("concept",),
        False,
    )  # fmt: skip


def _texts(spec: str | Path) -> list[str]:
    data = load_prompts(spec)
    return list(dict.fromkeys(data[i].text for i in range(len(data))))


def fewer(task: Task, pictures: int | None) -> Task:
    """The task with at most so many prompts of each kind, half of which ask for the concept if that many do."""
    return task if pictures is None else replace(
        task, validation=_spread(task.validation, task.concepts, pictures),
        test=_spread(task.test, task.concepts, pictures),
    )  # fmt: skip


def _spread(prompts: list[Prompt], concepts: Sequence[Concept], n: int) -> list[Prompt]:
    if len(prompts) <= n:
        return prompts
    target = [i for i, one in enumerate(prompts) if one.asks_for(concepts)]
    rest = [i for i in range(len(prompts)) if i not in set(target)]
    some = evenly(target, max(1, n // 2))
    return [prompts[i] for i in sorted([*some, *evenly(rest, max(1, n - len(some)))])]


def evenly(places: Sequence[int], n: int) -> list[int]:
    """At most n of some places, the first and the last among them."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int))]


def neighbours(task: Task, n: int) -> list[int]:
    """Places of test prompts that ask for what is nearest to the concept: of shapes those of its family come first."""
    kept = [i for i, one in enumerate(task.test) if not one.asks_for(task.concepts)]
    factor, value = task.concepts[0]
    if factor == "shape" and task.world:
        kin = [set(TAXONOMY[task.test[i].labels["shape"][0]]) & set(TAXONOMY[value]) for i in kept]
        kept = [kept[k] for k in np.argsort([-len(shared) for shared in kin], kind="stable")]
    turns: dict[tuple[str, ...], list[int]] = {}
    for i in kept:
        turns.setdefault(task.test[i].labels.get(factor, ()), []).append(i)
    rounds = [column[r] for r in range(len(kept)) for column in turns.values() if r < len(column)]
    return rounds[:n]
