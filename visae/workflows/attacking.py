"""Attacks on what a job erased: which, on how many prompts, at what price; kept as results of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import Concept, Prompt
from visae.evaluate.attacks import ATTACKS, Arena, Attack, Attacked
from visae.evaluate.attacks.files import attacked_from_dict
from visae.evaluate.erasure_counts import asked
from visae.evaluate.rates import Rate, Tally, rate
from visae.store.estimate import duration
from visae.workflows.concepts import evenly
from visae.workflows.erase_job import Job
from visae.workflows.extract import announce
from visae.workflows.results import digest, kept_pictures
from visae.workflows.studio import JUDGE, JUDGES, Built

USUAL = ("paraphrases", "synonyms", "typos", "seeds", "prompt_words")
"""Attacks on one erasure: other words, other noise, and words found by gradients through the erasure."""
STRONGEST = ("prompt_words",)
"""Attacks on many erasures, where each costs."""
PROMPTS, TRIES, GRADIENTS = 4, 8, 20
"""Prompts of each concept, pictures of each prompt, gradients before each picture."""
_CALLS = 5
"""Calls of the denoiser that a gradient is worth: forward once, back about twice that, one picture at a time."""


@dataclass(frozen=True)
class Plan:
    """Which attacks, and what each may cost.

    Attributes:
        attacks: names of the attacks.
        prompts: test prompts of each concept that are attacked, evenly spaced; 0 attacks nothing.
        tries: pictures that an attack may draw of each.
        gradients: that it may compute before each picture, if it computes any.

    Raises:
        UnknownName: for an attack that does not exist.
        ValueError: for numbers below 0, or for attacks that may do nothing.
    """

    attacks: tuple[str, ...]
    prompts: int = PROMPTS
    tries: int = TRIES
    gradients: int = GRADIENTS

    def __post_init__(self) -> None:
        if self.prompts < 0 or min(self.tries, self.gradients) < 1:
            raise ValueError(
                "attacks are on 0 or more prompts, with at least one picture and one gradient each; got "
                f"{self.prompts}, {self.tries} and {self.gradients}"
            )
        for name in self.attacks:
            ATTACKS[name]

    def on(self, job: Job, method: str, settings: Mapping[str, Any]) -> "list[Assault]":
        """The attacks on what a method erases: each on each concept of a job; none where no judge knows them.

        Args:
            job: with the concepts.
            method: its name.
            settings: of the method.
        """
        if not (self.prompts and job.task.world):
            return []
        found = []
        for concept in job.task.concepts:
            target = np.flatnonzero(asked(job.task.test, [concept], job.task.domains).target).tolist()
            prompts = tuple(job.task.test[i] for i in evenly(target, self.prompts))
            for name in self.attacks if prompts else ():
                attack = ATTACKS[name].within(self.tries, self.gradients)
                found.append(Assault(job, method, dict(settings), name, attack, concept, prompts))
        return found


@dataclass(frozen=True)
class Assault:
    """One attack on one concept that a method erases.

    Attributes:
        job: with the pipeline.
        method: name of the method.
        settings: of the method.
        name: of the attack.
        attack: with its budget.
        concept: to be had back.
        prompts: that ask for it.
    """

    job: Job
    method: str
    settings: dict[str, Any]
    name: str
    attack: Attack
    concept: Concept
    prompts: tuple[Prompt, ...]

    @property
    def about(self) -> dict[str, Any]:
        """All that decides the result."""
        told = {"name": self.name, "settings": self.attack.settings, "concept": self.concept}
        drawn = digest([vars(one) for one in self.prompts])
        return self.job.about("test", self.method, self.settings, attack={**told, "prompts": drawn})

    @property
    def kept(self) -> bool:
        """Whether its result is there."""
        return self.job.results.get(self.about) is not None

    def seconds(self) -> float:
        """What it takes at most, in seconds, with the pictures of the prompts before and after the erasure."""
        budget = self.attack.budget
        calls = _CALLS * budget.get("gradients", 0) / max(1, self.job.given.get("steps") or 1)
        return self.job.studio("test").pace() * len(self.prompts) * (2 + budget["pictures"] + calls)

    def run(self, built: Callable[[], Built]) -> Attacked:
        """What it achieved; what is kept is not done again.

        Args:
            built: makes the erasure; called only where it is needed.

        Raises:
            ValueError: if the attack cannot work on this pipeline or this erasure.
        """
        about, made = self.about, list[Attacked]()

        def now() -> Attacked:
            if not made:
                job = self.job
                arena = Arena(job.pipeline, built().enter, self.concept, JUDGES, job.given, job.batch)
                made.append(self.attack.run(arena, self.prompts, self.name))
            return made[0]

        known = self.job.results.get(about)
        result = now() if known is None else attacked_from_dict(known, self.prompts)
        places = [i for i, text in enumerate(result.revived) if text]
        folder = self.job.folder / "pictures" / f"attack-{digest(about)}"
        shown = kept_pictures(folder, len(places), lambda: [one for one in now().pictures if one is not None])
        if known is None:
            self.job.results.put(about, result.to_dict())
        pictures: list[Image.Image | None] = [None] * len(self.prompts)
        for place, picture in zip(places, shown, strict=True):
            pictures[place] = picture
        return replace(result, pictures=tuple(pictures))


@dataclass(frozen=True)
class Defence:
    """How an erasure fared.

    Attributes:
        results: of the attacks.
        impossible: attack -> why it cannot work here.
    """

    results: list[Attacked] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)

    @property
    def told(self) -> list[str]:
        """Why attacks cannot work here, in sentences."""
        return [f"the attack {name} cannot work here: {why}" for name, why in self.impossible.items()]


def defended(assaults: Sequence[Assault], built: Callable[[], Built]) -> Defence:
    """Runs attacks on one erasure; one that cannot work leaves the others be.

    Args:
        assaults: the attacks.
        built: makes the erasure; called only where something is not kept.
    """
    found = Defence()
    for one in tqdm(assaults, desc="attacks", unit="attack", leave=False):
        try:
            found.results.append(one.run(built))
        except ValueError as error:
            found.impossible[one.name] = str(error)
    return found


def announced(assaults: Sequence[Assault]) -> None:
    """Tells what attacks will cost that are not kept."""
    if left := [one for one in assaults if not one.kept]:
        prompts = max(len(one.prompts) for one in left)
        announce(
            f"{len(left)} attacks, each on {prompts} prompts: at most about "
            f"{duration(sum(one.seconds() for one in left))}"
        )


@dataclass(frozen=True)
class Pooled:
    """One attack on several concepts, one erased after the other.

    Attributes:
        results: one for each concept.
    """

    results: Sequence[Attacked]

    @property
    def adaptive(self) -> bool:
        """See `Attacked`."""
        return self.results[0].adaptive

    def ua(self, when: str = "after", judge: str = JUDGE) -> Rate:
        """UA over the attacked prompts of all concepts, by a judge; `before` is that without the attack."""
        found = rate([Tally.of(~np.concatenate([getattr(one, when)[judge] for one in self.results]))])
        assert found is not None
        return found


def pooled(results: Sequence[Attacked]) -> list[Pooled]:
    """One for each attack."""
    return [Pooled([one for one in results if one.attack == name]) for name in dict.fromkeys(r.attack for r in results)]


def strongest(attacks: Sequence[Pooled], judge: str = JUDGE) -> Pooled | None:
    """The adaptive attack that leaves the least by a judge; None where none was run."""
    return min((one for one in attacks if one.adaptive), key=lambda one: one.ua(judge=judge).value, default=None)
