"""What a job collects tokens from: a vision model and images, or a pipeline and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from visae.data import load_data, load_prompts
from visae.data.sample import ImageData, PromptData
from visae.model import AdaptedModel, load_model
from visae.pipelines import AdaptedPipeline
from visae.store import Collection, Sampling
from visae.store.probing import check_site, collection
from visae.train import TrainConfig
from visae.workflows.run import pick_device

IMAGES = "world:train?n=4000&objects=1"
PROMPTS = "world:prompts?n=400&objects=1"
"""What is trained on where nothing is named."""
PASSES, PASSES_MADE = 8, 1
"""Over stored or seen images, and over images that are made on the way, where nothing is said."""

Collect = Literal["generate", "noise", "text"]
Weights = Literal["float32", "float16", "bfloat16"]
Branch = Literal["cond", "uncond", "both"]


@dataclass(frozen=True)
class Ground:
    """A model and its data.

    Attributes:
        model: one that sees images, or a pipeline that makes them.
        data: images, or prompts.
        collected: how the pipeline runs; None for a model that sees images.
        batch: images per forward pass, or made at a time.
    """

    model: AdaptedModel | AdaptedPipeline
    data: ImageData | PromptData
    collected: Collection | None
    batch: int

    def streams(self, stream: bool, shards: bool, activations: Path | None) -> bool:
        """Whether activations are computed while training: asked for, or made by a pipeline and not kept as shards.

        Raises:
            ValueError: if both are asked for.
        """
        if stream and shards:
            raise ValueError("give stream (activations are not stored) or shards (they are), not both")
        return stream or (self.collected is not None and not shards and activations is None)

    def passes(self, passes: float | None, shards: bool, activations: Path | None) -> float:
        """Passes over the data where none are given: a pipeline that streams makes every image anew in each."""
        made = self.collected is not None and self.streams(False, shards, activations)
        return passes if passes is not None else PASSES_MADE if made else PASSES


def ground(
    model: str,
    site: str | Sequence[str],
    data: str | None,
    *,
    collect: Collect = "generate",
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: Sequence[int] = (),
    branch: Branch = "cond",
    image_batch: int | None = None,
    pretrained: bool = True,
    weights: Weights = "float32",
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> Ground:
    """Loads model and data, and starts a pipeline once to see how it runs; of several sites each must run in it.

    Raises:
        ValueError: for options of pipelines where the model is none, or sites or data that do not fit.
    """
    place, dtype = pick_device(device), getattr(torch, weights)
    adapted = load_model(model, pretrained=pretrained, image_size=image_size, device=place, dtype=dtype)
    asked = Sampling(collect, steps, guidance, None, tuple(collect_steps), branch)
    return ground_of(adapted, [site] if isinstance(site, str) else site, data, asked, image_batch)


def ground_of(
    adapted: AdaptedModel | AdaptedPipeline,
    sites: Sequence[str],
    data: str | None,
    asked: Sampling | Collection,
    image_batch: int | None = None,
) -> Ground:
    """The data for a model that is loaded, and how a pipeline runs: as is known, or as one start shows.

    Raises:
        ValueError: see `ground`.
    """
    if isinstance(adapted, AdaptedModel):
        if asked != Sampling():
            raise ValueError(
                f"{adapted.id} sees images and makes none, so it has no steps, guidance or branch to collect from; "
                "leave these options out, or name a pipeline (diffusers:...)"
            )
        return Ground(adapted, load_data(data or IMAGES), None, image_batch or 64)
    found = [adapted.site(site) for site in sites]
    if not found:
        raise ValueError(f"no site of {adapted.id} is named: name those to read, see `visae sites {adapted.id}`")
    for site in found:
        check_site(adapted, site, asked.mode)
    known = asked if isinstance(asked, Collection) else collection(adapted, found[0], asked)
    noise = known.mode == "noise"
    given: ImageData | PromptData = load_data(data or IMAGES) if noise else load_prompts(data or PROMPTS)
    return Ground(adapted, given, known, image_batch or 8)


def looks(collected: Collection | None, n_rows: int) -> dict[str, Any]:
    """Of a pipeline's rows, which cost most to make, no more than a pass for statistics before and after training."""
    if collected is None:
        return {}
    plain = TrainConfig(steps=1)
    return {name: min(getattr(plain, name), n_rows) for name in ("stat_rows", "calibration_rows")}
