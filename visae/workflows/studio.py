"""Where erasures are tried: the same prompts and seeds drawn plain, once, and under one erasure after another."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import Concept, Prompt
from visae.edit import EditedSite, Erasing
from visae.erasers import Method, Tools
from visae.erasers.codes import CodeMethod
from visae.evaluate.blocks import Judge
from visae.evaluate.erasure import Outcome, Plain, draw
from visae.evaluate.overhead import Overhead, overhead
from visae.pipelines import AdaptedPipeline
from visae.select.selection import Selection
from visae.workflows.concepts import Task
from visae.workflows.results import kept_pictures
from visae.world.judging import clip_judged, clip_vectors, judged

JUDGE, CHECK = "judge", "tiny-clip"
"""Whose answers count; the other judge is a check on it."""
JUDGES: dict[str, Judge] = {JUDGE: judged, CHECK: clip_judged}


@dataclass(frozen=True)
class Built:
    """A method, ready to erase a task's concepts.

    Attributes:
        enter: makes the context in which they are gone.
        settings: of the method.
        told: what was found while it was built.
        erasing: its edits; None where it does not edit codes.
        selections: the latents of each concept at each site; likewise none.
    """

    enter: Callable[[], AbstractContextManager[Any]]
    settings: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)
    erasing: Erasing | None = None
    selections: tuple[Selection, ...] = ()


def build(method: Method, pipeline: AdaptedPipeline, task: Task, tools: Tools) -> Built:
    """A method on the concepts of a task; of several, methods that edit codes select each for itself.

    Raises:
        Unsuitable: if the method cannot work on this pipeline.
    """
    if not isinstance(method, CodeMethod):
        made = method.build(pipeline, task.request, tools)
        return Built(made.enter, made.settings, made.told)
    parts = [method.erasing(pipeline, request, tools) for request in task.requests]
    sites: dict[str, EditedSite] = {}
    for one in (site for erasing, _ in parts for site in erasing.sites):
        name = pipeline.site(one.site).name
        before = sites[name].edits if name in sites else ()
        sites[name] = EditedSite(one.sae, one.site, (*before, *one.edits))
    erasing = Erasing(pipeline, list(sites.values()), {**parts[0][0].about, "concept": task.name})
    selections = tuple(selection for _, chosen in parts for selection in chosen)
    told = {"sites": list(sites), "selections": [one.to_dict() for one in selections]}
    return Built(lambda: erasing, method.settings, told, erasing, selections)


class Studio:
    """Draws the prompts of one part, plain and under erasures.

    The plain pictures are drawn when they are first needed.

    Args:
        pipeline: that draws.
        prompts: of the pictures.
        domains: factors of their labels.
        world: whether the judges of the built-in world can tell what they show.
        given: arguments of `AdaptedPipeline.generate`.
        batch: pictures made at a time.
        folder: where the plain pictures are kept; None keeps none.
        name: of the part, for progress bars.

    Attributes:
        seconds: that a picture took, when last drawn; None before.
    """

    def __init__(
        self, pipeline: AdaptedPipeline, prompts: Sequence[Prompt], domains: Sequence[str], world: bool,
        given: dict[str, Any], batch: int = 8, folder: Path | None = None, name: str = "",
    ):  # fmt: skip
        self.pipeline, self.prompts, self.given = pipeline, list(prompts), given
        self.domains, self.world = tuple(domains), world
        self.batch, self.folder, self.name = batch, folder, name
        self.seconds: float | None = None
        self._plain: Plain | None = None
        self._watched: Erasing | None = None
        self._opened: list[bool] = []

    @property
    def plain(self) -> Plain:
        """The plain pictures and what is seen in them."""
        if self._plain is None:
            kept = self.make() if self.folder is None else kept_pictures(self.folder, len(self.prompts), self.make)
            judges, embed = (JUDGES, clip_vectors) if self.world else ({}, None)
            made = Plain.of(self.prompts, lambda: kept, judges, embed, domains=self.domains)
            self._plain = replace(made, make=self.make)
        return self._plain

    def pace(self) -> float:
        """Seconds that a picture takes; draws a few if none were drawn yet."""
        if self.seconds is None:
            self._timed(self.prompts[: self.batch])
        assert self.seconds is not None
        return self.seconds

    def measure(self, built: Built, name: str, concepts: Sequence[Concept], cost: Overhead | None = None) -> Outcome:
        """Draws under an erasure and compares.

        Args:
            built: the erasure.
            name: of the method.
            concepts: what it erases.
            cost: time and memory, if they were measured.
        """
        plain = self.plain
        gated = built.erasing is not None and all(e.gate is not None for s in built.erasing.sites for e in s.edits)
        self._watched = built.erasing if gated else None
        try:
            return plain.measure(
                built.enter, concepts, name, opened=(lambda: self._opened) if gated else None,
                overhead=cost,
            )  # fmt: skip
        finally:
            self._watched = None

    def cost(self, built: Built, concepts: Sequence[Concept], turns: int) -> Overhead:
        """Time and memory of drawing a few pictures that ask for what is erased."""
        some = [one for one in self.prompts if one.asks_for(concepts)][: min(4, self.batch)]
        texts, seeds = [one.text for one in some], [one.seed for one in some]

        def run() -> None:
            self.pipeline.generate(texts, seeds, **{**self.given, "output_type": "latent"})

        return overhead(run, built.enter, turns=turns, device=self.pipeline.device.type)

    def make(self) -> list[Image.Image]:
        """The pictures, in what context it is called."""
        return self._timed(self.prompts)

    def _timed(self, prompts: Sequence[Prompt]) -> list[Image.Image]:
        self._opened = []
        begun = time.perf_counter()
        with tqdm(total=len(prompts), desc=self.name or "pictures", unit="img", leave=False) as bar:

            def after(n: int) -> None:
                bar.update(n)
                self._note()

            made = draw(self.pipeline, prompts, self.batch, after, **self.given)
        self.seconds = (time.perf_counter() - begun) / max(1, len(prompts))
        return made

    def _note(self) -> None:
        """For which pictures of the batch that was just drawn any gate opened."""
        if self._watched is None or self._watched.editing is None:
            return
        editing = self._watched.editing
        gates = [editing.opened(s, e) for s, one in enumerate(editing.sites) for e in range(len(one.edits))]
        self._opened += [any(told) for told in zip(*(gate.tolist() for gate in gates), strict=True)]
