"""Does a pipeline still behave when a site's activations are replaced by a dictionary's reconstructions of them?

With M the error of the denoiser on noisy latents whose clean ones are known (mean square of its output against its
target), `recovered = (M(ablated) - M(reconstructed)) / (M(ablated) - M(plain))`: 1 where nothing is lost, 0 where the
reconstruction is worth no more than the ablation. Ablated by the mean of the dictionary's data and by zero, both told,
with M itself, since the ratio hides large losses. Clean latents are those that the pipeline makes of the prompts.

| target of a denoiser (x clean, e noise, a = 1 / (1 + sigma^2)) | |
|---|---|
| epsilon | `e` |
| v | `sqrt(a) e - sqrt(1 - a) x` |
| sample | `x` |
| flow | `e - x` |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visae.clock import CODES, Branch, noise_scale
from visae.data.sample import Prompt
from visae.emerging import decoded, prediction
from visae.evaluate.blocks import Judge
from visae.evaluate.pictures import DISTANCES
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.sae.side import at_sigma
from visae.sites import Site
from visae.store.noising import Denoiser, noised
from visae.store.sampling import Collection
from visae.taps import tap

Replace = Callable[[Tensor, float], Tensor]
"""From tokens `[n, d]` float32 and their noise level to what stands in their place."""
Embed = Callable[[Sequence[Image.Image]], Tensor]
"""From pictures to vectors `[n, e]`."""


@dataclass
class Now:
    """Where a run is: noise level and branch of every row of the batch."""

    sigma: float = 0.0
    branch: tuple[Branch, ...] = ()


def reconstruction(sae: Dictionary) -> Replace:
    """Tokens by what a dictionary makes of them."""

    def replace(x: Tensor, sigma: float) -> Tensor:
        return sae.decode(sae.encode(x.to(sae.mean.device), **at_sigma(sae, len(x), sigma))).to(x)

    return replace


def ablation(sae: Dictionary, how: str) -> Replace:
    """Tokens by the mean of the dictionary's data (`mean`) or by `zero`."""
    return lambda x, _: sae.mean.to(x).expand_as(x) if how == "mean" else torch.zeros_like(x)


@contextmanager
def replaced(
    pipeline: AdaptedPipeline, site: Site, collected: Collection, replace: Replace, now: Callable[[], Any]
) -> Iterator[None]:
    """Replaces a site's tokens in every run inside the `with`, as `x + (new - x)` in float32, cast back.

    Replaced are the branches that were collected, at noise levels between the lowest and the highest collected.

    Args:
        pipeline: the pipeline.
        site: of the denoiser.
        collected: what the dictionary was trained on.
        replace: what stands in place of tokens.
        now: tells noise level (`sigma`) and branch of every row (`branch`) of the present call.
    """
    branches = {slot.branch for slot in collected.slots}
    levels = [slot.sigma for slot in collected.slots]
    low, high = min(levels) * 0.999, max(levels) * 1.001
    prefix = len(site.prefix)

    def rewrite(tokens: Tensor) -> Tensor:
        step = now()
        rows = [row for row, branch in enumerate(step.branch) if CODES[branch] in branches]
        if not rows or not low <= step.sigma <= high:
            return tokens
        x = tokens[rows, prefix:].float()
        new = replace(x.flatten(0, 1), step.sigma).view_as(x)
        out = tokens.clone()
        out[rows, prefix:] = (x + (new - x)).to(tokens.dtype)
        return out

    with tap(pipeline, site, rewrite=rewrite):
        yield


@dataclass
class Losses:
    """Sums of squared errors of the denoiser at one noise level.

    Attributes:
        n: numbers summed over.
        plain: of the denoiser as it is.
        reconstructed: with reconstructions.
        mean: with the mean of the dictionary's data in place of the tokens.
        zero: with zeros.
    """

    n: int = 0
    plain: float = 0.0
    reconstructed: float = 0.0
    mean: float = 0.0
    zero: float = 0.0

    def recovered(self, ablated: str) -> float:
        """Share of the loss that is recovered from an ablation (`mean` or `zero`); NaN where none is lost."""
        lost = getattr(self, ablated)
        return (lost - self.reconstructed) / (lost - self.plain) if lost != self.plain else float("nan")

    def to_dict(self) -> dict[str, float | None]:
        """Means, and what is recovered; None where nothing is lost."""
        told: dict[str, float] = {
            name: getattr(self, name) / self.n for name in ("plain", "reconstructed", "mean", "zero")
        }
        told |= {f"recovered_{how}": self.recovered(how) for how in ("mean", "zero")}
        return {name: value if np.isfinite(value) else None for name, value in told.items()}


@dataclass
class Preserved:
    """What was kept; see the module.

    Attributes:
        prompts: the prompts, with their seeds.
        plain: pictures of the pipeline as it is.
        reconstructed: of the same seeds, with reconstructions.
        losses: noise level -> losses; rising.
        distances: name -> mean distance of the pictures, see `visae.evaluate.pictures`; with vectors, `embedding` is
            one less the cosine.
        kept: factor -> share of the pictures in which the judge sees what it sees in the plain ones.
        agreement_plain: share of what prompts ask for that the judge sees in plain pictures; None without a judge.
        agreement_reconstructed: the same of those with reconstructions.
    """

    prompts: list[Prompt] = field(default_factory=list)
    plain: list[Image.Image] = field(default_factory=list)
    reconstructed: list[Image.Image] = field(default_factory=list)
    losses: dict[float, Losses] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    agreement_plain: float | None = None
    agreement_reconstructed: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the pictures."""
        return {
            "n": len(self.prompts),
            "agreement_plain": self.agreement_plain,
            "agreement_reconstructed": self.agreement_reconstructed,
            "kept": self.kept,
            "distances": self.distances,
            "losses": {f"{sigma:.4g}": losses.to_dict() for sigma, losses in self.losses.items()},
        }


@torch.no_grad()
def preserved(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str | Site,
    collected: Collection,
    prompts: Sequence[Prompt],
    *,
    judge: Judge | None = None,
    embed: Embed | None = None,
    batch: int = 8,
    n_losses: int | None = None,
    after: Callable[[int], object] | None = None,
) -> Preserved:
    """Makes the images of the same seeds with and without reconstructions, and measures what is lost.

    Args:
        pipeline: the pipeline.
        sae: the dictionary.
        site: where it was trained.
        collected: how the pipeline ran then.
        prompts: what images are made of.
        judge: tells what pictures show; None asks nobody.
        embed: brings pictures to vectors; None compares pixels alone.
        batch: images made at a time.
        n_losses: prompts, from the first on, on which the denoiser's loss is measured too, which costs some four runs;
            None takes all.
        after: called with the number of images done.

    Raises:
        ValueError: if the pipeline does not give latents, or its denoiser's target is not known.
    """
    place, found = pipeline.site(site), Preserved(list(prompts))
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        texts, seeds = [one.text for one in part], [one.seed for one in part]
        plain = clean_latents(pipeline, texts, seeds, collected.arguments())
        with (
            pipeline.clock() as clock,
            replaced(pipeline, place, collected, reconstruction(sae), partial(getattr, clock, "now")),
        ):
            other = clean_latents(pipeline, texts, seeds, collected.arguments())
        for latents, pictures in ((plain, found.plain), (other, found.reconstructed)):
            pictures += decoded(pipeline.pipe, latents, *collected.image_hw)
        m = len(part) if n_losses is None else max(0, min(len(part), n_losses - start))
        if m:
            _denoise(pipeline, sae, place, collected, texts[:m], seeds[:m], plain[:m].float(), found.losses)
        if after is not None:
            after(len(part))
    found.losses = dict(sorted(found.losses.items()))
    found.distances = {name: float(d(found.plain, found.reconstructed).mean()) for name, d in DISTANCES.items()}
    if embed is not None:
        alike = torch.cosine_similarity(embed(found.plain).double(), embed(found.reconstructed).double(), dim=1)
        found.distances["embedding"] = float(1 - alike.mean())
    if judge is not None:
        before, now = judge(found.plain), judge(found.reconstructed)
        found.kept = {f: float(np.mean([a == b for a, b in zip(before[f], now[f], strict=True)])) for f in before}
        found.agreement_plain = agreement(found.prompts, before)
        found.agreement_reconstructed = agreement(found.prompts, now)
    return found


def agreement(prompts: Sequence[Prompt], seen: Mapping[str, Sequence[str]]) -> float | None:
    """Share of what prompts ask for, one value of a factor at a time, that is seen; None if they ask for nothing."""
    hits = [
        seen[factor][i] == values[0]
        for i, prompt in enumerate(prompts)
        for factor, values in prompt.labels.items()
        if factor in seen and len(values) == 1
    ]
    return float(np.mean(hits)) if hits else None


def clean_latents(
    pipeline: AdaptedPipeline, texts: Sequence[Any], seeds: Sequence[int], given: Mapping[str, Any]
) -> Tensor:
    """Clean latents at the end of a generation.

    Args:
        pipeline: the pipeline.
        texts: the prompts.
        seeds: one of every prompt.
        given: further arguments of `AdaptedPipeline.generate`.

    Raises:
        ValueError: if the pipeline does not give latents.
    """
    with quiet(pipeline.pipe):
        made = pipeline.generate(texts, seeds, **({"output_type": "latent"} | dict(given)))
    if not isinstance(made, Tensor):
        raise ValueError(f"{type(pipeline.pipe).__name__} gives no latents as images, and they are needed here")
    return made


def _denoise(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: Site,
    collected: Collection,
    texts: Sequence[Any],
    seeds: Sequence[int],
    clean: Tensor,
    losses: dict[float, Losses],
) -> None:
    """Adds the denoiser's losses at every collected noise level."""
    denoiser, scheduler = Denoiser(pipeline, texts, seeds, collected.arguments()), pipeline.pipe.scheduler
    rows = denoiser.step.asked[: len(texts)]
    now = Now(branch=denoiser.step.branch)
    ways = {"reconstructed": reconstruction(sae), "mean": ablation(sae, "mean"), "zero": ablation(sae, "zero")}
    for slot in {slot.step: slot for slot in collected.slots}.values():
        now.sigma = slot.sigma
        noise = denoiser.noise(clean, slot.step)
        noisy = noised(clean, noise, slot.sigma, noise_scale(scheduler))
        wanted_output = target(scheduler, clean, noise, slot.sigma)
        sums = losses.setdefault(slot.sigma, Losses())
        sums.n += clean.numel()
        sums.plain += _error(denoiser(noisy, slot.timestep), rows, wanted_output)
        for name, replace in ways.items():
            with replaced(pipeline, site, collected, replace, lambda: now):
                error = _error(denoiser(noisy, slot.timestep), rows, wanted_output)
            setattr(sums, name, getattr(sums, name) + error)


def target(scheduler: Any, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """What a denoiser should give for noisy latents; see the module.

    Raises:
        ValueError: if the scheduler predicts something that is not known here.
    """
    if noise_scale(scheduler) == "flow":
        return noise - clean
    kind = scheduler.config.get("prediction_type", "epsilon")
    along = 1 / (1 + sigma**2) ** 0.5
    targets = {"epsilon": noise, "v_prediction": along * noise - sigma * along * clean, "sample": clean}
    if kind not in targets:
        raise ValueError(f"{type(scheduler).__name__} predicts {kind!r}; known are {', '.join(targets)} and flow")
    return targets[kind]


def _error(output: Any, rows: list[int], wanted: Tensor) -> float:
    """Sum of squared errors of some rows of a denoiser's output; of learned variances, only the mean counts."""
    return float((prediction(output[0][rows].double(), wanted) - wanted.double()).square().sum())
