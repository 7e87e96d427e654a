"""Concepts erased one after another: each on the pipeline without the earlier ones, all of them measured every time.

A user who has erased a star asks for dots to go, too. What that means depends on the method:

    edits of codes   each concept is selected for itself, on the plain pipeline, and its edits join the earlier ones: at
                     a site all edits see the codes as they were, so that none changes what another was tuned on
    all others       the concept is learnt, or trained away, while the earlier erasures are in place

No request knows of the concepts that follow; those that are erased already are not among what is retained.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from tqdm.auto import tqdm

from visae.data.sample import Concept
from visae.erasers import Method, Unsuitable
from visae.erasers.codes import CodeMethod
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_files import from_json, to_json
from visae.evaluate.erasure_table import plain_row, row
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.workflows.concepts import Task, spelled, world_task
from visae.workflows.erase import acting
from visae.workflows.erase_field import Field, Found, erased_together
from visae.workflows.erase_job import Job
from visae.workflows.extract import announce
from visae.workflows.results import Results, digest
from visae.workflows.studio import JUDGE, Built

HEAD = ("pipeline", "method", "erased", "the latest", "UA", "UA plain", "kept", "kept - plain")


@dataclass(frozen=True)
class Step:
    """What is gone and what is left after one more concept.

    Attributes:
        pipeline: name of the pipeline.
        outcome: on the test prompts; its concepts are all that are erased by now, the latest last.
    """

    pipeline: str
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Rates by the first judge, with intervals: `ua`, `ira`, `cra`, `kept`, ...; `plain` has the pipeline's own."""
        mine, plain = row([self.outcome], JUDGE), plain_row([self.outcome], JUDGE)
        return {
            "pipeline": self.pipeline, "method": self.outcome.method, "erased": spelled(self.outcome.concepts),
            **{name: rate.to_dict() for name, rate in mine.rates.items()},
            "plain": {name: rate.to_dict() for name, rate in plain.rates.items()},
        }  # fmt: skip

    @property
    def cells(self) -> list[Any]:
        """Of the printed table."""
        mine, plain = row([self.outcome], JUDGE).rates, plain_row([self.outcome], JUDGE).rates
        told = [some[name].percent() if name in some else "-" for some, name in (
            (mine, "ua"), (plain, "ua"), (mine, "kept"), (mine, "kept_change"))]  # fmt: skip
        concepts = self.outcome.concepts
        return [self.pipeline, self.outcome.method, len(concepts), spelled(concepts[-1:]), *told]


def steps_table(steps: Sequence[Step]) -> str:
    """The steps as text."""
    note = (
        "One after another: UA of all that is erased by then, kept of all that is not, in percent by the judge; in "
        "brackets 95 % of resamples of the images."
    )
    return "\n".join([text_table(HEAD, [one.cells for one in steps]), "", note])


def in_order(domains: Sequence[str], n: int) -> tuple[Concept, ...]:
    """So many concepts, those that are erased together, the domains taking turns.

    Raises:
        ValueError: for fewer than two, or all that there are.
    """
    together = erased_together(domains, 0, (n,))[-1]
    turns = zip_longest(*([one for one in together if one[0] == domain] for domain in domains))
    return tuple(one for turn in turns for one in turn if one is not None)


def next_task(concepts: Sequence[Concept], given: Mapping[str, Any], phrasings: int = 1, seeds: int = 1) -> Task:
    """The task of erasing the last of some concepts where the others are erased already.

    Its `request` is that of the last, its `requests` those of all, each as it was when its turn came.

    Args:
        concepts: in their order.
        given: arguments of `AdaptedPipeline.generate`.
        phrasings: texts of every cell.
        seeds: test images of every text.
    """
    turns = [world_task(concepts[: k + 1], given, phrasings, seeds) for k in range(len(concepts))]
    requests = tuple(turn.requests[-1] for turn in turns)
    tuned = {(one.text, one.seed): one for turn in turns for one in turn.tuned_on}
    return replace(turns[-1], request=requests[-1], requests=requests, tuned_on=list(tuned.values()))


def erase_in_sequence(bench: Field, methods: Mapping[str, Method], concepts: Sequence[Concept]) -> Found:
    """Erases concepts one after another by every method; what is kept is not measured again.

    A method that was stopped half-way learns the earlier concepts again, but draws only what was not measured.

    Args:
        bench: the pipeline and its dictionaries.
        methods: by name.
        concepts: in their order.

    Returns:
        An outcome for every method and step, of all that is erased by then.
    """
    ends = range(1, len(concepts) + 1)
    jobs = [bench.job_of(next_task(concepts[:end], bench.given, bench.phrasings, bench.seeds)) for end in ends]
    runs = [Run(bench, name, method, jobs) for name, method in methods.items()]
    missing = sum(len(run.missing) for run in runs)
    if missing:
        studio = jobs[0].studio("test")
        pictures = len(studio.plain.prompts) * missing  # the plain ones are drawn now, while nothing is erased
        announce(
            f"erasing {len(concepts)} concepts in sequence by {len(runs)} methods: {missing} steps are to be measured, "
            f"about {duration(studio.pace() * pictures)} beside what methods learn"
        )
    found = Found()
    with tqdm(total=missing, desc="in sequence", unit="step") as bar:
        for run in runs:
            for told in run.go(bar):
                if "unsuitable" in told:
                    found.unsuitable[run.name] = told["unsuitable"]
                else:
                    found.outcomes.append(from_json(told))
    return found


@dataclass(frozen=True)
class Run:
    """One method on concepts in sequence.

    Attributes:
        bench: the pipeline and its dictionaries.
        name: of the method.
        method: with its strength.
        jobs: one for every step.
    """

    bench: Field
    name: str
    method: Method
    jobs: Sequence[Job]

    @property
    def results(self) -> Results:
        """Where steps are kept."""
        return Results(self.bench.folder / "results")

    def about(self, step: int) -> dict[str, Any]:
        """All that decides what is measured after a step."""
        return self.jobs[step].about("test", self.name, self.method.settings, in_sequence=True)

    @property
    def missing(self) -> list[int]:
        """Steps that were not measured yet."""
        return [step for step in range(len(self.jobs)) if self.results.get(self.about(step)) is None]

    def go(self, bar: tqdm) -> list[dict[str, Any]]:
        """Every step as JSON, or why there is none; measures what is missing."""
        missing = self.missing
        try:
            with ExitStack() as earlier:
                for step in range(missing[-1] + 1 if missing else 0):
                    if step not in missing and isinstance(self.method, CodeMethod):
                        continue  # edits are built anew for every step
                    built = self.built(step)
                    if step in missing:
                        self.measure(step, built)
                        bar.update()
                    if built.erasing is None and step < missing[-1]:
                        earlier.enter_context(built.enter())
        except Unsuitable as error:
            for step in self.missing:
                self.results.put(self.about(step), {"unsuitable": str(error)})
        return [self.results.get(self.about(step)) for step in range(len(self.jobs))]

    def measure(self, step: int, built: Built) -> None:
        """Draws and compares after a step, and keeps what is found."""
        job = self.jobs[step]
        outcome = job.studio("test").measure(built, self.name, job.task.concepts)
        self.results.put(self.about(step), to_json(replace(outcome, pictures=[])))

    def built(self, step: int) -> Built:
        """The erasure of a step: of all concepts so far for edits of codes, else of the latest on top of the earlier.

        Raises:
            Unsuitable: if the method cannot work on this pipeline.
        """
        job = self.jobs[step]
        if not isinstance(self.method, CodeMethod):  # what it measures and trains is not that of the plain pipeline
            own = self.bench.folder / "sequence" / digest(self.about(step))
            job = replace(job, tools=acting(self.bench.pipeline, self.bench.saes, job.task, own, self.bench.batch))
        return job.built(self.method)
