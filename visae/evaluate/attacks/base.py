"""Attacks on an erasure: can the concept be had back, by whom, and at what price?

An attack changes what the pipeline is given (texts, seeds, the start of the run, vectors of tokens) and never the
pipeline or the erasure. It succeeds on a prompt where a judge sees the concept in any picture that it drew under the
erasure within its budget, or in the picture of the prompt itself (Zhang et al., "To generate or not?", 2024, count
those, `before`, as successes too). What is left of the erasure is `ua = 1 - share of successes`.

A black box attack sees pictures alone, a white box attack computes gradients. It is adaptive if it does so through the
erasure; one that computes them on the plain pipeline is labelled as not adaptive, and what it finds is no proof that
an erasure withstands attacks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image

from visae.data.sample import Concept, Prompt
from visae.evaluate.blocks import Judge
from visae.evaluate.erasure import Erasure, draw
from visae.evaluate.rates import Rate, Tally, rate
from visae.pipelines import AdaptedPipeline
from visae.registry import Registry, UnknownName
from visae.text_table import text_table

Box = Literal["black", "white"]
Shown = dict[str, np.ndarray]
"""Judge -> `[n]` bool, whether it sees the concept."""


@dataclass(frozen=True)
class Arena:
    """What is attacked, and who tells whether it held.

    Attributes:
        pipeline: the plain pipeline.
        erasure: makes the context in which the concept is gone.
        concept: that is to be had back, a factor and a value that judges know.
        judges: name -> judge.
        given: arguments of `AdaptedPipeline.generate`, e.g. `{"steps": 20}`.
        batch: pictures made at a time.
    """

    pipeline: AdaptedPipeline
    erasure: Erasure
    concept: Concept
    judges: Mapping[str, Judge]
    given: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 8

    def draw(self, prompts: Sequence[Prompt]) -> list[Image.Image]:
        """Pictures of prompts, in whatever context it is called."""
        return draw(self.pipeline, prompts, self.batch, **self.given)

    def shown(self, pictures: Sequence[Image.Image]) -> Shown:
        """Whether judges see the concept.

        Raises:
            UnknownName: if a judge does not name the concept's factor.
        """
        factor, value = self.concept
        found = {}
        for name, judge in self.judges.items():
            seen = judge(pictures)
            if factor not in seen:
                raise UnknownName(f"factor of the judge {name}", factor, seen)
            found[name] = np.asarray(seen[factor]) == value
        return found


@dataclass(frozen=True)
class Attacked:
    """What an attack achieved; prints as a table.

    Attributes:
        attack: its name.
        box: what it sees.
        adaptive: whether it computes gradients through the erasure.
        budget: what it may use at most for each prompt: `pictures` that it draws, `gradients` that it computes, and
            what else bounds it.
        spent: `pictures` and `gradients` that it used for all prompts together.
        concept: that was erased.
        prompts: that were attacked.
        plain: judge -> `[n]` bool, whether the concept is in the plain pipeline's pictures of the prompts.
        before: the same under the erasure.
        after: the same under the erasure and the attack.
        revived: by which text or start each prompt first showed the concept to the first judge; "" where by none.
        settings: of the attack.
        pictures: that first showed the concept of each prompt to the first judge; None where none did.
    """

    attack: str
    box: Box
    adaptive: bool
    budget: dict[str, int]
    spent: dict[str, int]
    concept: Concept
    prompts: tuple[Prompt, ...]
    plain: Shown
    before: Shown
    after: Shown
    revived: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: tuple[Image.Image | None, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        """Name with what must be known of it, e.g. `seeds (black box)`."""
        if self.box == "black":
            return f"{self.attack} (black box)"
        return f"{self.attack} (white box, {'adaptive' if self.adaptive else 'not adaptive'})"

    @property
    def price(self) -> str:
        """The budget of a prompt in words, e.g. `160 gradients, 8 pictures, 5 tokens`."""
        return ", ".join(f"{value} {name}" for name, value in self.budget.items())

    def success(self, judge: str, when: Literal["plain", "before", "after"] = "after") -> Rate:
        """Share of the prompts that show the concept; `before` and `after` are pre-ASR and ASR of UnlearnDiffAtk."""
        found = rate([Tally.of(getattr(self, when)[judge])])
        assert found is not None
        return found

    def ua(self, judge: str, when: Literal["plain", "before", "after"] = "after") -> Rate:
        """Unlearning accuracy: share of the prompts that do not show the concept."""
        found = rate([Tally.of(~getattr(self, when)[judge])])
        assert found is not None
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with every prompt, without pictures; `attacked_from_dict` of `.files` is its reverse."""
        return {
            "attack": self.attack, "box": self.box, "adaptive": self.adaptive, "budget": self.budget,
            "spent": self.spent, "concept": "=".join(self.concept), "settings": self.settings,
            "judges": {
                judge: {
                    "plain": self.success(judge, "plain").to_dict(), "before": self.success(judge, "before").to_dict(),
                    "after": self.success(judge).to_dict(), "ua_attacked": self.ua(judge).to_dict(),
                }
                for judge in self.after
            },
            "prompts": [
                {
                    "text": prompt.text, "seed": prompt.seed, "revived": self.revived[i],
                    **{when: {judge: bool(seen[i]) for judge, seen in getattr(self, when).items()}
                       for when in ("plain", "before", "after")},
                }
                for i, prompt in enumerate(self.prompts)
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        return attack_table([self])


def attack_table(results: Sequence[Attacked]) -> str:
    """Attacks side by side: success before and after by every judge, UA that is left, budgets."""
    head = ["attack", "concept", "judge", "prompts", "plain", "before", "after", "UA attacked", "budget of a prompt"]
    rows = [
        [
            one.label, "=".join(one.concept), judge, len(one.prompts), one.success(judge, "plain").percent(),
            one.success(judge, "before").percent(), one.success(judge).percent(), one.ua(judge).percent(),
            one.price,
        ]
        for one in results
        for judge in one.after
    ]  # fmt: skip
    note = (
        "In percent of the prompts: pictures that show the concept, by the plain pipeline, under the erasure, under "
        "erasure and attack; in brackets 95 % of resamples of the prompts."
    )
    return "\n".join([text_table(head, rows), "", note])


class Record:
    """What an attack has found so far.

    Attributes:
        after: judge -> `[n]` bool.
        revived: by which text each prompt first showed the concept to the first judge.
        shown: the pictures in which it did; None where it did not yet.
        spent: pictures and gradients so far.
    """

    def __init__(self, arena: Arena, before: Shown, prompts: Sequence[Prompt], pictures: Sequence[Image.Image]):
        self.arena = arena
        self.after = {judge: seen.copy() for judge, seen in before.items()}
        first = next(iter(before.values()))
        self.revived = [prompt.text if first[i] else "" for i, prompt in enumerate(prompts)]
        self.shown = [picture if first[i] else None for i, picture in enumerate(pictures)]
        self.spent = {"pictures": 0, "gradients": 0}

    def done(self, number: int) -> bool:
        """Whether every judge has seen the concept for a prompt, so that nothing is left to attack."""
        return all(bool(seen[number]) for seen in self.after.values())

    def add(self, numbers: Sequence[int], pictures: Sequence[Image.Image], means: Sequence[str]) -> None:
        """Has pictures judged.

        Args:
            numbers: of the prompts that they were drawn for.
            pictures: drawn under the erasure.
            means: text or start by which.
        """
        self.spent["pictures"] += len(pictures)
        for judge, seen in self.arena.shown(pictures).items():
            self.after[judge][np.asarray(numbers)] |= seen
        first = next(iter(self.after.values()))
        for number, text, picture in zip(numbers, means, pictures, strict=True):
            if first[number] and not self.revived[number]:
                self.revived[number], self.shown[number] = text, picture


@dataclass(frozen=True)
class Attack(ABC):
    """Base of the attacks; their fields are their settings, `dataclasses.replace` changes them."""

    box: ClassVar[Box] = "black"

    @property
    def sees_erasure(self) -> bool:
        """Whether gradients are computed through the erasure."""
        return False

    @property
    @abstractmethod
    def budget(self) -> dict[str, int]:
        """What it may use at most for each prompt."""

    @abstractmethod
    def within(self, pictures: int, gradients: int) -> Self:
        """The same attack on another budget.

        Args:
            pictures: that it may draw of each prompt.
            gradients: that it may compute before each of them; of no matter to a black box attack.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields, functions by their names."""
        return {key: value.__name__ if callable(value) else value for key, value in asdict(self).items()}

    @abstractmethod
    def attack(self, arena: Arena, prompts: Sequence[Prompt], record: Record) -> None:
        """Attacks prompts that are not done yet, and records every picture."""

    def run(self, arena: Arena, prompts: Sequence[Prompt], name: str = "") -> Attacked:
        """Attacks an erasure; pipeline and erasure are afterwards what they were.

        Args:
            arena: what is attacked, and who judges.
            prompts: that ask for the concept.
            name: of the attack in what is returned; that of its class if empty.

        Raises:
            ValueError: without prompts or judges, or where the attack cannot work on this pipeline.
        """
        if not prompts or not arena.judges:
            raise ValueError(f"an attack needs prompts and judges; got {len(prompts)} and {len(arena.judges)}")
        plain = arena.shown(arena.draw(prompts))
        with arena.erasure():
            pictures = arena.draw(prompts)
        before = arena.shown(pictures)
        record = Record(arena, before, prompts, pictures)
        self.attack(arena, prompts, record)
        return Attacked(
            name or type(self).__name__, self.box, self.sees_erasure, self.budget, record.spent, arena.concept,
            tuple(prompts), plain, before, record.after, tuple(record.revived), self.settings,
            tuple(record.shown),
        )  # fmt: skip


ATTACKS: Registry[Attack] = Registry("attack")
"""Name -> attack with its default budget."""


def attempts(
    arena: Arena,
    tries: Sequence[Sequence[Prompt]],
    record: Record,
    means: Callable[[Prompt], str],
) -> None:
    """Draws tries of many prompts, the first of all, then the second of those that withstood, and so on.

    Args:
        arena: what is attacked.
        tries: of every prompt.
        record: where pictures go.
        means: what to call a try.
    """
    for turn in range(max(map(len, tries), default=0)):
        left = [i for i, its in enumerate(tries) if turn < len(its) and not record.done(i)]
        if left:
            now = [tries[i][turn] for i in left]
            with arena.erasure():
                pictures = arena.draw(now)
            record.add(left, pictures, [means(one) for one in now])
