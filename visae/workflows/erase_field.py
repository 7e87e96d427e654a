"""Many erasures on one pipeline: strengths once for a method and a domain, then every method on every target."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from visae.codes.build import fingerprint
from visae.data.sample import Concept
from visae.erasers import Method, Unsuitable
from visae.erasers.strengths import variants
from visae.evaluate.attacks import Attacked
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_files import from_json, to_json
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.store.estimate import duration
from visae.workflows.attacking import Assault, Plan, announced, defended
from visae.workflows.concepts import Task, evenly, world_task
from visae.workflows.erase import acting
from visae.workflows.erase_job import Job
from visae.workflows.extract import announce
from visae.workflows.results import Results
from visae.workflows.strength import choose, mean_verdict
from visae.workflows.studio import Built, Studio
from visae.world.cells import DOMAINS
from visae.world.factors import FACTORS


def erased_together(
    domains: Sequence[str], targets: int | None, together: Sequence[int] = ()
) -> list[tuple[Concept, ...]]:
    """What is erased: every target alone, then several at once, evenly spaced."""
    known = {domain: FACTORS[domain] for domain in domains}
    alone = [(one,) for domain in domains for one in spaced(domain, targets)]
    several = []
    for n in together:
        whole = sum(len(values) for values in known.values())
        if not 1 < n < whole:
            raise ValueError(f"together counts concepts, from 2 to {whole - 1} of {whole}; got {n}")
        shares = [max(1, round(n * len(values) / whole)) for values in known.values()]
        shares[0] += n - sum(shares)
        several.append(tuple(c for domain, k in zip(known, shares, strict=True) for c in spaced(domain, k)))
    return [*alone, *several]


def spaced(domain: str, n: int | None) -> list[Concept]:
    """So many values of a domain, evenly spaced; all if None."""
    values = FACTORS[domain]
    if n is None or n >= len(values):
        return [(domain, value) for value in values]
    return [(domain, values[i * len(values) // n]) for i in range(n)]


def attacked_groups(groups: Sequence[tuple[Concept, ...]], n: int | None) -> list[tuple[Concept, ...]]:
    """So many single concepts of each domain, evenly spaced; all if None."""
    found: list[tuple[Concept, ...]] = []
    for domain in DOMAINS:
        alone = [one for one in groups if len(one) == 1 and one[0][0] == domain]
        found += [alone[i] for i in evenly(range(len(alone)), len(alone) if n is None else n)]
    return found


@dataclass(frozen=True)
class Found:
    """Outcomes of a pipeline, what attacks achieved there, and what cannot work there, with the reason."""

    outcomes: list[Outcome] = field(default_factory=list)
    unsuitable: dict[str, str] = field(default_factory=dict)
    attacked: dict[str, list[Attacked]] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """A pipeline on which methods are compared.

    Attributes:
        pipeline: the pipeline.
        saes: site -> dictionary.
        given: arguments of `AdaptedPipeline.generate`.
        folder: where everything is kept.
        batch: pictures made at a time.
        phrasings: texts of every cell.
        seeds: test images of every text.
        turns: of timing.
        studios: shared by all jobs, so that plain pictures are drawn, and judged, once.
        jobs: those that were begun, by their concepts.
    """

    pipeline: AdaptedPipeline
    saes: dict[str, Dictionary]
    given: dict[str, Any]
    folder: Path
    batch: int
    phrasings: int
    seeds: int
    turns: int
    studios: dict[str, Studio] = field(default_factory=dict)
    jobs: dict[tuple[Concept, ...], Job] = field(default_factory=dict)

    def job(self, concepts: Sequence[Concept]) -> Job:
        """The job of erasing some concepts."""
        if (known := self.jobs.get(tuple(concepts))) is not None:
            return known
        made = self.job_of(world_task(concepts, self.given, self.phrasings, self.seeds))
        return self.jobs.setdefault(tuple(concepts), made)

    def job_of(self, task: Task) -> Job:
        """The job of a task."""
        tools = acting(self.pipeline, self.saes, task, self.folder, self.batch)
        marks = {site: fingerprint(one) for site, one in self.saes.items()}
        return Job(self.pipeline, task, tools, self.given, self.folder, self.batch, marks, self.studios)

    def strengths(
        self, methods: Mapping[str, Method], domains: Sequence[str], targets: int | None, tune: int, budget: float
    ) -> dict[tuple[str, str], Method]:
        """(method, domain) -> the method, as strong as is best for a few targets of the domain.

        The key `several` holds what is taken for several concepts at once: of the domains' choices the milder.
        """
        strong: dict[tuple[str, str], Method] = {}
        for name, method in methods.items():
            candidates = variants(name, method)
            order = list(candidates)
            picked = []
            for domain in domains:
                strength = order[0]
                if tune and len(candidates) > 1:
                    jobs = [self.job([one]) for one in spaced(domain, min(tune, targets or tune))]
                    strength = self._chosen(name, candidates, jobs, budget)
                strong[name, domain] = candidates[strength] if tune else method
                picked.append(strength)
            strong[name, "several"] = candidates[min(picked, key=order.index)] if tune else method
        return strong

    def _chosen(
        self, name: str, candidates: Mapping[float | None, Method], jobs: Sequence[Job], budget: float
    ) -> float | None:
        """The best strength for some targets together."""
        settings = next(iter(candidates.values())).settings
        about = {"of": [job.about("validation", name, settings) for job in jobs]}
        try:
            found, _ = choose(
                candidates, lambda method: mean_verdict([job.judge(name, method) for job in jobs]), budget,
                Results(self.folder / "results"), about,
            )  # fmt: skip
        except Unsuitable:
            return next(iter(candidates))
        return found.strength

    def run(
        self,
        methods: Mapping[tuple[str, str], Method],
        groups: Sequence[tuple[Concept, ...]],
        plan: Plan | None = None,
        attacked: Collection[tuple[Concept, ...]] = (),
    ) -> Found:
        """Every method on every group of concepts; what is kept is not done again.

        Args:
            methods: with their strengths, see `strengths`.
            groups: of concepts that are erased together.
            plan: attacks on what was erased.
            attacked: groups that are attacked.
        """
        results, found = Results(self.folder / "results"), Found()
        units = list(self._units(methods, groups))
        hit = [unit.assaults(plan) if plan and unit.job.task.concepts in attacked else [] for unit in units]
        missing = [unit for unit in units if results.get(unit.about) is None]
        if missing:
            studio = missing[0].job.studio("test")
            drawn = sum(len(unit.job.task.test) + len(unit.job.task.tuned_on) for unit in missing)
            announce(
                f"bench erase on {self.pipeline.id}: {len(missing)} of {len(units)} erasures are to be measured, "
                f"{len(studio.prompts)} pictures each, kept in {self.folder}: about {duration(studio.pace() * drawn)}"
            )
        announced([one for some in hit for one in some])
        with tqdm(total=len(missing), desc="bench erase", unit="erasure") as bar:
            for unit, assaults in zip(units, hit, strict=True):
                known, built = results.get(unit.about), cache(unit.built)
                if known is None:
                    known = unit.measure(built)
                    results.put(unit.about, known)
                    bar.update()
                if "unsuitable" in known:
                    before, why = found.unsuitable.get(unit.name, ""), known["unsuitable"]
                    if why not in before:  # of several concepts, each has its reason
                        found.unsuitable[unit.name] = f"{before}; {why}" if before else why
                    continue
                found.outcomes.append(from_json(known))
                defence = defended(assaults, built)
                found.attacked.setdefault(unit.name, []).extend(defence.results)
                for name, why in defence.impossible.items():
                    found.unsuitable[f"{name} against {unit.name}"] = why
        return found

    def _units(
        self, methods: Mapping[tuple[str, str], Method], groups: Sequence[tuple[Concept, ...]]
    ) -> "Iterator[Unit]":
        timed = {next((g for g in groups if g[0][0] == domain), None) for domain in DOMAINS}
        names = dict.fromkeys(name for name, _ in methods)
        for concepts in groups:
            job = self.job(concepts)
            for name in names:
                method = methods[name, concepts[0][0] if len(concepts) == 1 else "several"]
                yield Unit(name, method, job, self.turns if concepts in timed else 0)


@dataclass(frozen=True)
class Unit:
    """One method on one group of concepts.

    Attributes:
        name: of the method.
        method: with its strength.
        job: with the concepts.
        turns: of timing it.
    """

    name: str
    method: Method
    job: Job
    turns: int

    @property
    def about(self) -> dict[str, Any]:
        """All that decides the result."""
        return self.job.about("test", self.name, self.method.settings, turns=self.turns)

    def built(self) -> Built:
        """The erasure.

        Raises:
            Unsuitable: if the method cannot work on this pipeline.
        """
        return self.job.built(self.method)

    def assaults(self, plan: Plan) -> list[Assault]:
        """Attacks on it: no part of its own result, which stays what it is when they change."""
        known = self.job.results.get(self.about) or {}
        return [] if "unsuitable" in known else plan.on(self.job, self.name, self.method.settings)

    def measure(self, built: Callable[[], Built]) -> dict[str, Any]:
        """The outcome as JSON, or why there is none.

        Args:
            built: makes the erasure.
        """
        try:
            made = built()
        except Unsuitable as error:
            return {"unsuitable": str(error)}
        return to_json(replace(self.job.measured(self.name, made, self.turns), pictures=[]))
