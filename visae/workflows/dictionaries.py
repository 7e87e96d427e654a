"""The dictionaries that erasing methods need: opened where runs are named, else trained, modestly, and kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visae.erasers import Method
from visae.erasers.base import Part
from visae.model import drawing, load_model
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.workflows.collecting import Weights
from visae.workflows.extract import announce
from visae.workflows.run import Run, pick_device
from visae.workflows.train import train
from visae.workflows.vocabulary import vocabulary_prompts, write_prompts

SITES = ("unet.up_blocks.1.attentions.1",)
"""Sites that are taken where a pipeline has them; else the middle block of the denoiser."""
RECIPE: dict[str, Any] = {
    "kind": "batch_topk", "expansion": 16, "k": 32, "batch": 1024, "options": {"aux": 0.125},
}  # fmt: skip
"""How dictionaries are trained where none are given; everything else is `visae train`'s default."""
WORDS: dict[str, Any] = {"k": 4, "passes": 4.0}
"""What differs at the input of a text encoder, where a token is a word and a place and nothing else."""
TEXT_BATCH = 64
"""Prompts that a text encoder reads at a time, at least."""
FOLDERS: dict[Part, str] = {"denoiser": "sae", "text": "text-sae", "words": "word-sae"}
"""Where dictionaries are kept that were trained for methods."""


@dataclass(frozen=True)
class Place:
    """A pipeline, as it is loaded.

    Attributes:
        name: of the model.
        image_size: height and width of its images; None for its own.
        weights: type of its weights.
        device: where it computes.
    """

    name: str
    image_size: tuple[int, int] | None = None
    weights: Weights = "float32"
    device: str = "auto"

    def load(self) -> AdaptedPipeline:
        """The pipeline."""
        import torch

        return drawing(
            load_model(self.name, image_size=self.image_size, device=pick_device(self.device),
                       dtype=getattr(torch, self.weights))
        )  # fmt: skip


def default_sites(pipeline: AdaptedPipeline) -> dict[Part, tuple[str, ...]]:
    """Where dictionaries are trained: of the denoiser, within the first text encoder, and at the inputs of them all."""
    sites = pipeline.sites()

    def blocks(part: str, stream: str, kind: str = "output") -> list[str]:
        mine = {name: s for name, s in sites.items() if s.path.partition(".")[0] == part}
        return [name for name, s in mine.items() if s.kind == kind and s.stream == stream]

    own = blocks(pipeline.denoiser.name, "image")
    known = [name for name in SITES if name in sites] or own[len(own) // 2 :]
    texts = blocks(pipeline.texts[0].name, "text")[-2:] if pipeline.texts else []
    words = [name for part in pipeline.texts for name in blocks(part.name, "text", "input")[:1]]
    return {"denoiser": tuple(known[:1]), "text": tuple(texts[:1]), "words": tuple(words)}


def dictionaries(
    place: Place,
    pipeline: AdaptedPipeline,
    methods: Iterable[Method],
    folder: Path,
    *,
    runs: Mapping[Part, Sequence[Path]],
    data: str,
    texts: str,
    said: Sequence[str],
    given: Mapping[str, Any],
    batch: int = 8,
) -> dict[str, Dictionary]:
    """Site -> dictionary, for what the methods need; what is trained is kept in the folder, see `FOLDERS`.

    Args:
        place: how the pipeline is loaded.
        pipeline: the pipeline.
        methods: that will be used.
        folder: where runs are kept; stopped, the same call goes on where they were.
        runs: instead of training any for a part.
        data: prompts to train on, those of the denoiser.
        texts: the same within text encoders, which cost little.
        said: prompts that dictionaries at the inputs of text encoders see beside all words of the vocabulary.
        given: steps and guidance of the images that are trained on.
        batch: images made at a time.

    Raises:
        ValueError: if a run is of another pipeline.
    """
    needed = {part for method in methods for part in method.needs}
    found: dict[str, Dictionary] = {}
    for part, sites in default_sites(pipeline).items():
        opened = [Run.open(path) for path in runs.get(part, ())]
        if not opened and part in needed:
            run = {key: given.get(key) for key in ("steps", "guidance")}
            how: dict[str, Any] = {"data": data, "image_batch": batch, **run}
            if part != "denoiser":
                how = {"data": texts, "collect": "text", "tokens": "text", "image_batch": max(batch, TEXT_BATCH)}
            for number, site in enumerate(sites):
                kept = folder / (FOLDERS[part] + (f"-{number + 1}" if number else ""))
                if part == "words":
                    spoken = [*vocabulary_prompts(pipeline, site), *said]
                    how |= {**WORDS, "data": write_prompts(kept.with_suffix(".txt"), spoken)}
                announce(f"training a dictionary of {site} on {how['data']}, kept in {kept}")
                opened.append(_trained(place, kept, site, {**RECIPE, **how}))
        found |= {one.card.site["name"]: one.sae(pipeline).to(pipeline.device).eval() for one in opened}
    return found


def _trained(place: Place, folder: Path, site: str, how: Mapping[str, Any]) -> Run:
    return train(
        folder, model=place.name, site=site, image_size=place.image_size, weights=place.weights, device=place.device,
        **how,
    ).run  # fmt: skip
