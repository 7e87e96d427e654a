"""What a training run will cost in rows, disk, memory and time, before anything runs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from visae import store
from visae.sae import Dictionary, Rows, initialise, make_sae
from visae.sae.side import SIDE
from visae.store.errors import human
from visae.store.estimate import duration
from visae.tokens import TokenPolicy
from visae.train import TrainConfig, Trainer
from visae.workflows.collecting import Branch, Collect, Weights, ground
from visae.workflows.options import kind_choices
from visae.workflows.run import pick_device

PROBE = {False: 4 * 10**9, True: 10**12}
"""Operations of the encoder's product in a timed step, off and on a GPU: some 50 ms where a GPU is not at hand."""


@dataclass(frozen=True)
class TrainingEstimate:
    """Cost of training one dictionary.

    Attributes:
        n_latents: width F.
        rows: rows to train on.
        steps: optimiser steps.
        memory: bytes of weights, moments and working copies of a step.
        seconds: of all steps, from a few timed ones.
    """

    n_latents: int
    rows: int
    steps: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps on {self.rows:,} rows, {self.n_latents:,} latents: {human(self.memory)} of memory; "
            f"about {duration(max(1, self.seconds))}"
        )


@dataclass(frozen=True)
class Costs:
    """Both halves of a run; prints as two lines.

    Attributes:
        extraction: of the activations.
        training: on them.
        streamed: whether every pass makes them anew, and nothing lies on disk.
    """

    extraction: store.Estimate
    training: TrainingEstimate
    streamed: bool = False

    def __str__(self) -> str:
        told, first = str(self.extraction), self.extraction
        if self.streamed:
            took = f"; about {duration(first.seconds)} a pass" if first.seconds is not None else ""
            told = f"{first.rows:,} rows a pass, streamed (on disk, with --shards, {human(first.bytes)}){took}"
        return f"extraction: {told}\ntraining:   {self.training}"


def estimate(
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str | None = None,
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: str = "topk",
    latents: int | None = None,
    expansion: float = 8,
    k: float = 32,
    options: dict[str, float | str] = {},  # noqa: B006 (read only)
    rows: int | None = None,
    passes: float | None = None,
    shards: bool = False,
    batch: int = 4096,
    out: Path = Path("runs"),
    collect: Collect = "generate",
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: tuple[int, ...] = (),
    branch: Branch = "cond",
    image_batch: int | None = None,
    pretrained: bool = True,
    weights: Weights = "float32",
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> Costs:
    """Say what a run will cost in rows, disk, memory and time, before anything runs.

    Example:
        visae estimate --model open_clip:ViT-B-16 --no-pretrained --data "photos/*.jpg" --site blocks.9

    Args:
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`.
        data: images, or prompts for a pipeline, see `visae extract --help`.
        tokens: kinds of token to keep.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows on disk.
        kind: kind of dictionary.
        latents: width of the dictionary; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token, for kinds that have it.
        options: further options of the kind, see `visae train --help`.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data; 8, and 1 of a pipeline that makes its images while it trains, if not given.
        shards: of a pipeline: activations go to disk instead, see `visae train --help`.
        batch: rows per step.
        out: where the activations would lie; its disk is asked for free space.
        collect: of a pipeline: `generate` collects while it makes images of prompts, `noise` from given images with
            noise added (one call per step), `text` from its text encoders alone.
        steps: of a pipeline: denoising steps; its own number if not given.
        guidance: of a pipeline: guidance scale; its own if not given.
        collect_steps: of a pipeline: collect at these of its timesteps, counted from 0, or from -1 backwards; all if
            not given.
        branch: of a pipeline's guidance: tokens of the prompt (`cond`), of the negative one (`uncond`), or `both`.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        pretrained: trained weights; costs do not depend on them.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    on = ground(
        model, site, data, collect=collect, steps=steps, guidance=guidance, collect_steps=collect_steps, branch=branch,
        image_batch=image_batch, pretrained=pretrained, weights=weights, image_size=image_size, device=device,
    )  # fmt: skip
    policy = TokenPolicy.parse(tokens, per_image=per_image)
    first = store.estimate(
        on.model,
        site,
        on.data,
        None if on.streams(False, shards, None) else out,
        policy=policy,
        dtype=dtype,
        batch=on.batch,
        sampling=on.collected,
    )
    budget = rows or round(on.passes(passes, shards, None) * first.rows)
    width = latents or round(expansion * first.d)
    chosen = kind_choices(kind, k, options)
    training = training_estimate(kind, first.d, width, chosen, budget, batch, pick_device(device))
    return Costs(first, training, on.streams(False, shards, None))


def training_estimate(
    kind: str,
    d: int,
    n_latents: int,
    options: Mapping[str, Any],
    rows: int,
    batch: int,
    device: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
    processes: int = 1,
) -> TrainingEstimate:
    """Memory from the shapes; time from a few steps on noise, which take seconds at any size.

    Of several processes, each on `batch` rows per step, all must ask at once: their steps wait for one another.

    Raises:
        ValueError: for options or settings (of `TrainConfig`) that the kind cannot have: nothing was computed yet.
    """
    steps = max(1, -(-rows // (batch * processes)))
    sae = make_sae(kind, d, n_latents, **options)
    parameters = sum(parameter.numel() for parameter in sae.parameters())
    # float32 weights and two moments, bfloat16 copies, a few copies of the batch
    memory = 14 * parameters + 16 * batch * d
    # pre-activations: in bfloat16 where the kernels pick codes, else in float32 with codes, masks and gradients
    memory += (2 if sae.encoder.linear and sae.train().activation.rule() is not None else 24) * batch * n_latents
    seconds = steps * step_seconds(sae, batch, device, settings)
    return TrainingEstimate(n_latents, rows, steps, memory, seconds)


def step_seconds(sae: Dictionary, batch: int, device: str, settings: Mapping[str, Any] = MappingProxyType({})) -> float:
    """Duration of a training step, from small batches where a step would take long.

    A step costs something per row (products, selection) and something per weight (the update), so two small batches
    tell what a large one takes.

    Args:
        sae: an empty dictionary; its weights are spent.
        batch: rows per step.
        device: where.
        settings: of `TrainConfig`.
    """
    small = max(64, PROBE[torch.device(device).type == "cuda"] // (2 * sae.n_latents * sae.d))
    trainer = Trainer(sae, TrainConfig(steps=1000, batch=batch, device=device, **settings), progress=False)
    noise = _noise(sae, min(batch, 2 * small), trainer.device)
    with trainer.randomness:
        initialise(trainer.sae, noise[:4096])
        if batch <= 2 * small:
            return _seconds(trainer, noise)
        less, more = _seconds(trainer, noise[:small]), _seconds(trainer, noise)
    return max(more, less + (more - less) * (batch - small) / small)


def _noise(sae: Dictionary, n: int, device: torch.device) -> torch.Tensor | Rows:
    """Tokens of noise, with side information of the right shapes where the kind asks for it."""
    generator = torch.Generator().manual_seed(0)

    def draw(wide: bool) -> torch.Tensor:
        return torch.rand((n, sae.d) if wide else (n,), generator=generator).to(device)

    x = torch.randn(n, sae.d, generator=generator).to(device)
    return Rows(x, {name: draw(SIDE[name][0]) for name in sae.needs}) if sae.needs else x


def _seconds(trainer: Trainer, x: torch.Tensor | Rows) -> float:
    """The quickest of three steps after one to warm up."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        losses = trainer.grade(x)
        trainer.update()
        trainer.sae.activation.observe(losses.codes)
        trainer.sae.count(losses.codes)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
