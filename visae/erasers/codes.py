"""What methods that edit codes have in common: statistics of the tuning prompts, a selection, edits at its site."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from visae.codes.build import fingerprint
from visae.edit import Edit, EditedSite, Erasing
from visae.edit.changes import Ablate
from visae.edit.saving import packed
from visae.edit.scores import gate_scores
from visae.erasers.base import Erasure, Method, Part, Request, Tools, Unsuitable
from visae.erasers.tools import concept_latents
from visae.json_files import write_json
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics


@dataclass(frozen=True)
class Known:
    """What a method that edits codes learns before it edits.

    Attributes:
        pipeline: the pipeline.
        request: the concept and its tuning prompts.
        tools: of the caller.
        site: where codes are edited.
        sae: the dictionary there.
    """

    pipeline: AdaptedPipeline
    request: Request
    tools: Tools
    site: str
    sae: Dictionary

    @cached_property
    def target(self) -> PromptStatistics:
        """Statistics of the prompts with the concept."""
        return self.tools.statistics(self.site, self.request.prompts("target"), self.request.seed)

    @cached_property
    def retain(self) -> PromptStatistics:
        """Statistics of the prompts without it."""
        return self.tools.statistics(self.site, self.request.prompts("retain"), self.request.seed)

    def scores(self, edit: Edit, which: str) -> np.ndarray:
        """What an edit's gate says of the tuning prompts `target` or `retain`, `[P]`.

        Scores of codes alone are kept in the folder of the tools: they are the same however strong the edit is.
        """
        assert edit.gate is not None
        prompts = self.request.prompts(which)
        seeds = [self.request.seed + i for i in range(len(prompts))]

        def found(asked: Edit) -> np.ndarray:
            return gate_scores(
                self.pipeline, self.sae, self.site, asked, prompts, seeds, batch=self.tools.batch,
                given=dict(self.request.given),
            )  # fmt: skip

        if edit.gate.of_delta or self.tools.folder is None:
            return found(edit)
        bare = replace(edit, change=Ablate(edit.latents), places=(), strength=1.0)
        about = [
            packed(bare.whether(replace(edit.gate, threshold=0.0)), {}, ""), self.pipeline.revision, self.site,
            fingerprint(self.sae), prompts, seeds, self.request.given, self.tools.batch,
        ]  # fmt: skip
        told = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        file = self.tools.folder / "gates" / f"{told}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found(bare).tolist())
        return np.array(json.loads(file.read_text(encoding="utf8")))

    def gated(self, edit: Edit, false_positives: float) -> Edit:
        """The edit with its gate calibrated to let through this share of the retain prompts."""
        assert edit.gate is not None
        return edit.whether(edit.gate.calibrated(self.scores(edit, "retain"), false_positives))


@dataclass(frozen=True)
class CodeMethod(Method):
    """Base of the methods that edit codes at one site.

    Attributes:
        score: name of the score that selects latents, see `visae.select.CONTRASTS`.
        top_m: latents, at every noise level or in all.
        per_level: whether they are selected at every noise level for itself.
        text: whether the site is the one of a text encoder.
    """

    score: str = "f1"
    top_m: int = 2
    per_level: bool = False
    text: bool = False

    @abstractmethod
    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """The edits for a selection."""

    def select(self, known: Known) -> Selection:
        """The latents of the concept."""
        return concept_latents(
            known.target, known.retain, score=self.score, top_m=self.top_m, per_level=self.per_level,
            concept=known.request.concept, **self.score_options,
        )  # fmt: skip

    @property
    def score_options(self) -> dict[str, Any]:
        """Further options of the score."""
        return {}

    @property
    def needs(self) -> frozenset[Part]:
        """See `Method.needs`."""
        return frozenset({"text" if self.text else "denoiser"})

    def erasing(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> tuple[Erasing, list[Selection]]:
        """Edits that can be entered, installed and exported, and the selection that each site's are about.

        Raises:
            Unsuitable: if there is no such site, no dictionary, no prompts, or no latent that means the concept.
        """
        site = tools.text_site if self.text else tools.site
        if not site:
            what = "a text encoder" if self.text else pipeline.denoiser.name
            raise Unsuitable(f"{type(self).__name__} edits codes at a site of {what}; name it in Tools")
        known = Known(pipeline, request, tools, site, tools.sae(site))
        selection = self.select(known)
        edits = tuple(self.edits(known, selection))
        return Erasing(pipeline, [EditedSite(known.sae, site, edits)], self.about(request)), [selection]

    def about(self, request: Request) -> dict[str, Any]:
        """What an export tells of the edits."""
        return {"concept": request.concept, "method": type(self).__name__, "settings": self.settings}

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; needs target and retain prompts, a site, its dictionary and statistics."""
        erasing, selections = self.erasing(pipeline, request, tools)

        @contextmanager
        def enter() -> Iterator[None]:
            with erasing:
                yield

        return Erasure(enter, self.settings, {"selections": [one.to_dict() for one in selections]})
