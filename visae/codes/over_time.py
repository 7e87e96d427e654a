"""Codes over time: what a dictionary says at every step of a diffusion run, and the image as it emerges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from visae.clock import Branch, Step
from visae.emerging import Moment, decoded, emerging
from visae.first_calls import quiet
from visae.geometry import Geometry
from visae.pipelines import AdaptedPipeline
from visae.sae import Codes, Dictionary
from visae.sae.side import at_sigma
from visae.sites import Site
from visae.taps import tap


@dataclass(frozen=True)
class Course:
    """One image from noise to the end.

    Attributes:
        prompt: of the image.
        seed: of the image.
        sigmas: `[S]` noise level of every step.
        codes: of the site's tokens at every step, S of them.
        frames: the predicted clean image of every step, decoded.
        geometry: which pixels the tokens saw.
        prefix: tokens before those on the grid.
    """

    prompt: str
    seed: int
    sigmas: np.ndarray
    codes: list[Codes] = field(repr=False)
    frames: list[Image.Image] = field(repr=False)
    geometry: Geometry = field(repr=False)
    prefix: int = 0

    def mass(self) -> np.ndarray:
        """Sum of the values' sizes of every latent at every step, `[S, F]`."""
        return np.stack([_summed(codes) for codes in self.codes])

    def strongest(self, n: int) -> list[int]:
        """The latents with the largest sums over all steps."""
        total = self.mass().sum(0)
        order = np.argsort(-total, kind="stable")[:n]
        return [int(latent) for latent in order if total[latent] > 0]

    def maps(self, latents: Sequence[int]) -> np.ndarray:
        """Values of latents on the token grid at every step, `[L, S, rows, columns]`; 0 where one does not fire."""
        rows, columns = self.geometry.grid
        out = np.zeros((len(latents), len(self.codes), rows * columns), np.float32)
        for step, codes in enumerate(self.codes):
            for place, latent in enumerate(latents):
                hit = torch.where(codes.indices == latent, codes.values, 0).sum(1)
                out[place, step] = hit[self.prefix :].float().numpy()
        return out.reshape(len(latents), len(self.codes), rows, columns)

    def heats(self, latents: Sequence[int]) -> np.ndarray:
        """The same on the pixels of the frames, `[L, S, H, W]`."""
        hw = self.frames[0].height, self.frames[0].width
        maps = self.maps(latents)
        return np.stack([np.stack([self.geometry.to_image(grid, hw) for grid in latent]) for latent in maps])


def _summed(codes: Codes) -> np.ndarray:
    keep = codes.indices >= 0
    sums = torch.zeros(codes.n_latents)
    return sums.index_add_(0, codes.indices[keep], codes.values[keep].abs().float()).numpy()


class _Watch:
    """Encodes the wanted branch's tokens at every call of the denoiser; of several calls a step the first counts."""

    def __init__(self, sae: Dictionary, site: Site, taken: dict[str, torch.Tensor], branch: Branch | None):
        self.sae, self.site, self.taken, self.branch = sae, site, taken, branch
        self.device = next(sae.parameters()).device
        self.sigmas: list[float] = []
        self.codes: list[Codes] = []

    def __call__(self, step: Step) -> None:
        rows = step.rows(self.branch) if self.branch else step.asked
        if not rows or len(self.codes) > step.index:
            return
        tokens = self.taken[self.site.name][rows].to(self.device).float()
        side = at_sigma(self.sae, tokens.shape[1], step.sigma)
        self.sigmas.append(step.sigma)
        self.codes.append(_on_cpu(self.sae.encode(tokens[0], **side)))


def _on_cpu(codes: Codes) -> Codes:
    return Codes(codes.indices.cpu(), codes.values.cpu(), codes.n_latents, signed=codes.signed)


@torch.no_grad()
def watch(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str | Site,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    branch: Branch | None = None,
    after: Callable[[], object] | None = None,
) -> list[Course]:
    """Makes images and keeps what a dictionary says at every step.

    Args:
        pipeline: that makes them.
        sae: trained at the site.
        site: of the denoiser, with tokens on a grid.
        prompts: one of every image.
        seeds: one of every image.
        steps: denoising steps; None takes the pipeline's default.
        guidance: guidance scale; None takes the pipeline's default.
        branch: of guidance whose tokens are coded; None takes the conditional one where there are two.
        after: called when an image is done.

    Raises:
        ValueError: if the site's tokens have no place on the image, or the branch never ran.
    """
    found, courses = pipeline.site(site), []
    geometry = pipeline.geometry(found)
    height, width = pipeline.framing.input_hw
    for prompt, seed in zip(prompts, seeds, strict=True):
        with quiet(pipeline.pipe), tap(pipeline, found) as taken, emerging(pipeline.pipe) as moments:
            watching = _Watch(sae, found, taken, branch)
            with pipeline.clock(watching):
                pipeline.generate([prompt], [seed], steps=steps, guidance=guidance, output_type="latent")
        if not watching.codes:
            raise ValueError(f"branch {branch!r} of the guidance never ran; leave branch out, or set guidance above 1")
        sigmas = np.array(watching.sigmas)
        clean = torch.cat([_at(moments, sigma).clean for sigma in sigmas])
        frames = decoded(pipeline.pipe, clean, height, width)
        courses.append(Course(prompt, int(seed), sigmas, watching.codes, frames, geometry, len(found.prefix)))
        if after is not None:
            after()
    return courses


def _at(moments: Sequence[Moment], sigma: float) -> Moment:
    """The scheduler's first step at a noise level."""
    return min(moments, key=lambda moment: abs(moment.sigma - sigma))
