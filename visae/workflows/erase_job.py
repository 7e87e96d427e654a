"""One task on one pipeline: strengths tried, the proof drawn, everything kept so that nothing is done twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from visae.data.sample import Prompt
from visae.erasers import METHODS, Method, Tools
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_files import FORMAT, from_json, to_json
from visae.pipelines import AdaptedPipeline
from visae.store.estimate import duration
from visae.workflows.concepts import Task
from visae.workflows.extract import announce
from visae.workflows.results import Results, digest, kept_pictures, plainly
from visae.workflows.strength import Tried, choose, verdict
from visae.workflows.studio import Built, Studio, build
from visae.world.judging import judges_revision

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Job:
    """A task on a pipeline, with a folder.

    Attributes:
        pipeline: the pipeline.
        task: the concepts and their prompts.
        tools: of the methods.
        given: arguments of `AdaptedPipeline.generate`.
        folder: where pictures and results are kept.
        batch: pictures made at a time.
        saes: site -> fingerprint of its dictionary.
        studios: those that are open, by part and prompts; jobs may share them.
    """

    pipeline: AdaptedPipeline
    task: Task
    tools: Tools
    given: dict[str, Any]
    folder: Path
    batch: int
    saes: dict[str, str]
    studios: dict[str, Studio] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """Where results are kept."""
        return Results(self.folder / "results")

    def prompts(self, part: Part) -> list[Prompt]:
        """Of a part."""
        return self.task.validation if part == "validation" else self.task.test

    def about(self, part: Part, method: str, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """All that decides a result.

        Args:
            part: whose prompts.
            method: its name.
            settings: of the method.
            **more: what else decides it.
        """
        tuned = [[vars(one) for one in self.task.tuned_on], self.task.request.concept, self.task.request.pairs]
        told = {
            "format": FORMAT, "pipeline": self.pipeline.id, "revision": self.pipeline.revision, "run": self.given,
            "batch": self.batch, "saes": self._read(method, settings), "concepts": self.task.name,
            "tuned": digest(tuned), "part": part, "prompts": self._drawn(part),
            "judges": judges_revision() if self.task.world else [], "method": method, "settings": settings, **more,
        }  # fmt: skip
        return plainly(told)

    def _read(self, name: str, settings: Mapping[str, Any]) -> dict[str, str]:
        """Fingerprints of the dictionaries that a method reads: those of others are none of its business."""
        switches = {key: value for key, value in settings.items() if isinstance(value, bool)}
        tools = self.tools
        sites = {"denoiser": (tools.site,), "text": (tools.text_site,), "words": tools.word_sites}
        read = {site for part in replace(METHODS[name], **switches).needs for site in sites[part]}
        return {site: mark for site, mark in self.saes.items() if site in read}

    def _drawn(self, part: Part) -> str:
        return digest([vars(one) for one in self.prompts(part)], self.given, self.batch, self.pipeline.revision)

    def studio(self, part: Part) -> Studio:
        """Where the prompts of a part are drawn; the plain pictures are kept in the folder."""
        key = f"{part}-{self._drawn(part)}"
        if key not in self.studios:
            self.studios[key] = Studio(
                self.pipeline, self.prompts(part), self.task.domains, self.task.world, self.given, self.batch,
                self.folder / "pictures" / key, part,
            )  # fmt: skip
        return self.studios[key]

    def built(self, method: Method) -> Built:
        """A method on this task.

        Raises:
            Unsuitable: if it cannot work on this pipeline.
        """
        return build(method, self.pipeline, self.task, self.tools)

    def choose(self, name: str, candidates: Mapping[float | None, Method], budget: float) -> tuple[Method, list[Tried]]:
        """The method, as strong as is best on the validation prompts, and what was tried.

        One candidate needs no trial.
        """
        if len(candidates) == 1:
            return next(iter(candidates.values())), []
        studio, n = self.studio("validation"), len(candidates)
        drawn = n * (len(studio.prompts) + len(self.task.tuned_on)) + 2 * len(self.task.test)
        announce(
            f"choosing among {n} strengths of {name} on {len(studio.prompts)} pictures each, then drawing "
            f"{len(self.task.test)} pictures with and without: at most about {duration(studio.pace() * drawn)}"
        )
        about = self.about("validation", name, next(iter(candidates.values())).settings)
        best, tried = choose(candidates, lambda method: self.judge(name, method), budget, self.results, about)
        return candidates[best.strength], tried

    def judge(self, name: str, method: Method) -> tuple[float, dict[str, float]]:
        """Gain and harm of a method on the validation prompts."""
        studio = self.studio("validation")
        return verdict(studio.measure(self.built(method), name, self.task.concepts), studio.plain)

    def test(self, name: str, built: Built, turns: int) -> Outcome:
        """The erasure on the test prompts, with its pictures; those that are there already are not drawn again.

        Args:
            name: of the method.
            built: the erasure.
            turns: of timing it; 0 leaves that out.
        """
        about = self.about("test", name, built.settings, turns=turns)
        shown = self.folder / "pictures" / f"erased-{digest(about)}"
        if (known := self.results.get(about)) is not None:

            def again() -> list[Image.Image]:
                with built.enter():
                    return self.studio("test").make()

            return replace(from_json(known), pictures=kept_pictures(shown, len(self.task.test), again))
        outcome = self.measured(name, built, turns)
        kept_pictures(shown, len(outcome.pictures), lambda: outcome.pictures)
        self.results.put(about, to_json(outcome))
        return outcome

    def measured(self, name: str, built: Built, turns: int) -> Outcome:
        """The same, drawn and measured now."""
        studio = self.studio("test")
        cost = studio.cost(built, self.task.concepts, turns) if turns else None
        return studio.measure(built, name, self.task.concepts, cost)
