"""Difference of means: the baseline at the very place where dictionaries act.

Target and retain prompts bring tokens at a site; with m and n their means and d = m - n over its length, at every noise
level, tokens x become

    project    x - strength d (d . (x - n))
    subtract   x - strength (m - n)

(the first as in Arditi et al., "Refusal in language models is mediated by a single direction", 2024). Either way, with
strength 1, the mean of the target tokens becomes that of the retain tokens; projecting leaves the retain tokens' mean
where it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from visae.clock import Step, StepClock
from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.first_calls import quiet
from visae.levels import at_level
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.taps import tap


@dataclass(frozen=True)
class Means:
    """Mean tokens at noise levels.

    Attributes:
        levels: `[S]` sigma.
        values: `[S, d]` float64 on the CPU.
    """

    levels: Tensor
    values: Tensor

    def at(self, sigma: float) -> Tensor:
        """Mean `[d]` at a noise level."""
        return at_level(self.levels, self.values, sigma)


@dataclass(frozen=True)
class MeanDifference(Method):
    """Difference of means at `Tools.site`, see the module; it acts on the branch of the prompt.

    Attributes:
        how: `project` or `subtract`.
        strength: 1 takes the difference away.
    """

    how: Literal["project", "subtract"] = "project"
    strength: float = 1.0

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; needs target and retain prompts and a site of the denoiser."""
        if tools.site.partition(".")[0] != pipeline.denoiser.name:
            raise Unsuitable(
                f"a difference of means acts at a site of {pipeline.denoiser.name}, got {tools.site!r}; give one with "
                "Tools(site=...)"
            )
        site = pipeline.site(tools.site)
        target, retain = (
            means(pipeline, site, request.prompts(which), request.seed, tools.batch, dict(request.given))
            for which in ("target", "retain")
        )

        @contextmanager
        def enter() -> Iterator[None]:
            with (
                pipeline.clock() as clock,
                tap(pipeline, site, rewrite=partial(self._without, clock, site, target, retain)),
            ):
                yield

        return Erasure(enter, self.settings, {"site": site.name})

    def _without(self, clock: StepClock, site: Site, target: Means, retain: Means, tokens: Tensor) -> Tensor:
        rows, start = clock.now.asked, len(site.prefix)
        if not rows:
            return tokens
        x = tokens[rows, start:].float()
        mean = retain.at(clock.now.sigma)
        apart = (target.at(clock.now.sigma) - mean).to(x)
        new = x - self.strength * apart
        if self.how == "project":
            way = apart / apart.norm().clamp(min=1e-12)
            new = x - self.strength * ((x - mean.to(x)) @ way)[..., None] * way
        out = tokens.clone()
        out[rows, start:] = new.to(tokens.dtype)
        return out


METHODS.register("mean_difference")(MeanDifference())


@torch.no_grad()
def means(
    pipeline: AdaptedPipeline, site: Site, prompts: Sequence[Any], seed: int, batch: int, given: dict[str, Any]
) -> Means:
    """Mean tokens of the prompts' branch at a site at every noise level of runs on prompts, one image each."""
    sums: dict[float, Tensor] = {}
    counts: dict[float, int] = {}

    def add(step: Step) -> None:
        rows = step.asked
        if rows:
            found = taken[site.name][rows, len(site.prefix) :].double().flatten(0, 1)
            sums[step.sigma] = sums.get(step.sigma, 0) + found.sum(0).cpu()
            counts[step.sigma] = counts.get(step.sigma, 0) + len(found)

    with pipeline.clock(after=add), tap(pipeline, site) as taken, quiet(pipeline.pipe):
        for start in range(0, len(prompts), batch):
            some = list(prompts[start : start + batch])
            seeds = range(seed + start, seed + start + len(some))
            pipeline.generate(some, list(seeds), **{"output_type": "latent", **given})
    levels = sorted(sums)
    return Means(
        torch.tensor(levels, dtype=torch.float64), torch.stack([sums[level] / counts[level] for level in levels])
    )
