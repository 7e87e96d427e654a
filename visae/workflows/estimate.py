"""What a training run will cost in rows, disk, memory and time, before anything runs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from visae import store
from visae.data import load_data
from visae.model import load_model
from visae.sae import kind_options, make_sae
from visae.store.errors import human
from visae.store.estimate import duration
from visae.tokens import TokenPolicy
from visae.train import TrainConfig, Trainer
from visae.workflows.run import pick_device


@dataclass(frozen=True)
class TrainingEstimate:
    """Cost of training one dictionary.

    Attributes:
        n_latents: width F.
        rows: rows to train on.
        steps: optimiser steps.
        memory: bytes of weights, moments and working copies of a step.
        seconds: of all steps, from a few timed ones; None if they were not timed.
    """

    n_latents: int
    rows: int
    steps: int
    memory: int
    seconds: float | None

    def __str__(self) -> str:
        text = f"{self.steps:,} steps on {self.rows:,} rows, {self.n_latents:,} latents: {human(self.memory)} of memory"
        return text if self.seconds is None else f"{text}; about {duration(self.seconds)}"


@dataclass(frozen=True)
class Costs:
    """Both halves of a run; prints as two lines."""

    extraction: store.Estimate
    training: TrainingEstimate

    def __str__(self) -> str:
        return f"extraction: {self.extraction}\ntraining:   {self.training}"


def estimate(
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str = "world:train?n=4000&objects=1",
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: str = "topk",
    latents: int | None = None,
    expansion: float = 8,
    k: int = 32,
    rows: int | None = None,
    passes: float = 8,
    batch: int = 4096,
    out: Path = Path("runs"),
    image_batch: int = 64,
    pretrained: bool = True,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> Costs:
    """Say what a run will cost in rows, disk, memory and time, before anything runs.

    Example:
        visae estimate --model open_clip:ViT-B-16 --no-pretrained --data "photos/*.jpg" --site blocks.9

    Args:
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`.
        data: images, see `visae extract --help`.
        tokens: kinds of token to keep.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows on disk.
        kind: kind of dictionary.
        latents: width of the dictionary; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token, for kinds that have it.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data.
        batch: rows per step.
        out: where the activations would lie; its disk is asked for free space.
        image_batch: images per forward pass.
        pretrained: trained weights; costs do not depend on them.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    adapted = load_model(model, pretrained=pretrained, image_size=image_size, device=pick_device(device))
    images = load_data(data)
    policy = TokenPolicy.parse(tokens, per_image=per_image)
    first = store.estimate(adapted, site, images, out, policy=policy, dtype=dtype, batch=image_batch)
    budget = rows or round(passes * first.rows)
    width = latents or round(expansion * first.d)
    options = {"k": k} if "k" in kind_options(kind) else {}
    return Costs(first, training_estimate(kind, first.d, width, options, budget, batch, pick_device(device)))


def training_estimate(
    kind: str, d: int, n_latents: int, options: dict[str, Any], rows: int, batch: int, device: str, timed: bool = True
) -> TrainingEstimate:
    """Memory from the shapes; time from a few steps on noise."""
    steps = max(1, -(-rows // batch))
    parameters = 2 * n_latents * d + n_latents + d
    # float32 weights and two moments, the encoder's bfloat16 copy, pre-activations and a few copies of the batch
    memory = 12 * parameters + 2 * n_latents * d + 2 * batch * n_latents + 16 * batch * d
    seconds = _step_seconds(kind, d, n_latents, options, batch, device) * steps if timed else None
    return TrainingEstimate(n_latents, rows, steps, memory, seconds)


def _step_seconds(kind: str, d: int, n_latents: int, options: dict[str, Any], batch: int, device: str) -> float:
    """Median duration of a training step after warm-up."""
    sae = make_sae(kind, d, n_latents, **options)
    stamps: list[float] = []

    class Clocked(list[torch.Tensor]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for rows in super().__iter__():
                stamps.append(time.perf_counter())
                yield rows

    noise = Clocked(torch.randn(batch, d, generator=torch.Generator().manual_seed(i)) for i in range(2))
    config = TrainConfig(steps=6, batch=batch, stat_rows=min(batch, 4096), calibration_rows=1, device=device)
    Trainer(sae, config, progress=False).fit(noise)
    gaps = sorted(b - a for a, b in zip(stamps[-6:], stamps[-5:], strict=False))
    return gaps[len(gaps) // 2]
