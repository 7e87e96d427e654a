"""The dictionaries that erasing methods need: opened where runs are named, else trained, modestly, and kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visae.erasers import Method
from visae.erasers.codes import CodeMethod
from visae.erasers.crisp import Crisp
from visae.model import drawing, load_model
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.workflows.collecting import Weights
from visae.workflows.extract import announce
from visae.workflows.run import Run, pick_device
from visae.workflows.train import train

SITES = ("unet.up_blocks.1.attentions.1",)
"""Sites that are taken where a pipeline has them; else the middle block of the denoiser."""
RECIPE: dict[str, Any] = {
    "kind": "batch_topk", "expansion": 16, "k": 32, "batch": 1024, "options": {"aux": 0.125},
}  # fmt: skip
"""How dictionaries are trained where none are given; everything else is `visae train`'s default."""


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


def default_sites(pipeline: AdaptedPipeline) -> tuple[str, str]:
    """Where dictionaries are trained: of the denoiser, and of the first text encoder (empty where there is none)."""
    sites = pipeline.sites()

    def blocks(part: str, stream: str) -> list[str]:
        mine = {name: s for name, s in sites.items() if s.path.partition(".")[0] == part}
        return [name for name, s in mine.items() if s.kind == "output" and s.stream == stream]

    own = blocks(pipeline.denoiser.name, "image")
    known = [name for name in SITES if name in sites] or own[len(own) // 2 :]
    texts = blocks(pipeline.texts[0].name, "text")[-2:] if pipeline.texts else []
    return known[0], next(iter(texts), "")


def needed(methods: Iterable[Method]) -> tuple[bool, bool]:
    """Whether any of the methods needs a dictionary of the denoiser, and of a text encoder."""
    known = [method for method in methods if isinstance(method, CodeMethod | Crisp)]
    texts = [isinstance(method, CodeMethod) and method.text for method in known]
    return False in texts, True in texts


def dictionaries(
    place: Place,
    pipeline: AdaptedPipeline,
    methods: Iterable[Method],
    folder: Path,
    *,
    sae: Path | None,
    text_sae: Path | None,
    data: str,
    given: Mapping[str, Any],
    batch: int = 8,
) -> dict[str, Dictionary]:
    """Site -> dictionary, for what the methods need; what is trained is kept in `sae` and `text-sae` of the folder.

    Args:
        place: how the pipeline is loaded.
        pipeline: the pipeline.
        methods: that will be used.
        folder: where runs are kept; stopped, the same call goes on where they were.
        sae: a run on a site of the denoiser, instead of training one.
        text_sae: a run on a site of a text encoder, likewise.
        data: prompts to train on.
        given: steps and guidance of the images that are trained on.
        batch: images made at a time.

    Raises:
        ValueError: if a run is of another pipeline.
    """
    found: dict[str, Dictionary] = {}
    sites = default_sites(pipeline)
    runs = zip(("sae", "text-sae"), needed(methods), (sae, text_sae), sites, strict=True)
    for name, wanted, given_run, site in runs:
        if given_run is None and (not wanted or not site):
            continue
        if given_run is None:
            announce(f"training a dictionary of {site} on {data}, kept in {folder / name}")
            how: dict[str, Any] = {key: given.get(key) for key in ("steps", "guidance")}
            if name == "text-sae":
                how = {"collect": "text", "tokens": "text"}
            run = train(
                folder / name, model=place.name, site=site, data=data, image_batch=batch,
                image_size=place.image_size, weights=place.weights, device=place.device, **RECIPE, **how,
            ).run  # fmt: skip
        else:
            run = Run.open(given_run)
        found[run.card.site["name"]] = run.sae(pipeline).to(pipeline.device).eval()
    return found
