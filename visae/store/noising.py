"""Tokens of given images: noise is added at every collected timestep, and the denoiser is called once for each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visae.clock import CODES, noise_scale
from visae.pipelines import AdaptedPipeline
from visae.store.batches import Batch
from visae.store.generating import Collecting, rows_of
from visae.store.probing import first_call


def encoded(pipe: Any, pixels: Tensor) -> Tensor:
    """Latents `[n, c, h, w]` of pixels `[n, 3, H, W]` in -1 to 1, as the denoiser's process begins and ends with."""
    weights, config = next(pipe.vae.parameters()), pipe.vae.config
    out = pipe.vae.encode(pixels.to(pipe._execution_device, weights.dtype))
    latents: Tensor = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent
    return ((latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor).float()


def noised(latents: Tensor, noise: Tensor, sigma: float, scale: str) -> Tensor:
    """What a denoiser is given at a noise level: `(x + sigma e) / sqrt(1 + sigma^2)`, or `(1 - sigma) x + sigma e`."""
    if scale == "flow":
        return (1 - sigma) * latents + sigma * noise
    return (latents + sigma * noise) / (1 + sigma**2) ** 0.5


class Denoiser:
    """A pipeline's denoiser as the pipeline calls it for some prompts, at any timestep and on any latents.

    Args:
        model: the pipeline.
        prompts: as the pipeline takes them.
        seeds: one of every prompt; noise is drawn from them.
        given: further arguments of `AdaptedPipeline.generate`.

    Attributes:
        step: of the call that the pipeline made first.

    Raises:
        ValueError: if it cannot be told in which unit the denoiser takes its timestep.
    """

    def __init__(self, model: AdaptedPipeline, prompts: Sequence[Any], seeds: Sequence[int], given: dict[str, Any]):
        self.model, self.seeds = model, list(seeds)
        self._module: nn.Module = getattr(model.pipe, model.denoiser.name)
        self.step, self._call = first_call(model, prompts, seeds, given)
        self._sample = self._call.tensors[0]
        time = self._call.arguments["timestep"]
        self._time = time if isinstance(time, Tensor) else None
        if self._time is None:
            raise ValueError(f"{type(self._module).__name__} takes its timestep as a number, not as a tensor")
        self._unit = time_unit(self._module, model.pipe.scheduler, float(self._time.flatten()[0]))

    def packed(self, latents: Tensor) -> Tensor:
        """Latents `[n, c, h, w]` as the denoiser holds them."""
        if self._sample.dim() == 3:
            latents = self.model.pipe._pack_latents(latents, *latents.shape)
        return latents

    def noise(self, latents: Tensor, call: int) -> Tensor:
        """Noise of the shape of `latents`; the same for a seed and a call in any batch."""
        drawn = [
            torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed * 1009 + call))
            for seed in self.seeds
        ]
        return torch.stack(drawn).to(latents)

    def __call__(self, latents: Tensor, timestep: float) -> Any:
        """The denoiser's output for noisy latents, one of every prompt, at a timestep of the scheduler."""
        assert self._time is not None
        copies = self._sample.shape[0] // len(latents)
        sample = torch.cat([latents] * copies).to(self._sample)
        time = torch.full_like(self._time, timestep * self._unit)

        def change(_name: str, value: Tensor) -> Tensor:
            return sample if value is self._sample else time if value is self._time else value

        changed = self._call.mapped(change)
        return self._module(**changed.arguments)


def time_unit(module: nn.Module, scheduler: Any, given: float) -> float:
    """By what a scheduler's timesteps are multiplied for a denoiser.

    Args:
        module: the denoiser.
        scheduler: set to its timesteps.
        given: what the denoiser was called with at the first of them.

    Raises:
        ValueError: if the two do not fit in any unit that is known.
    """
    first = float(scheduler.timesteps[0])
    span = float(scheduler.config.get("num_train_timesteps", 1000))
    scaled = float(module.config.get("timestep_scale") or 1.0)  # type: ignore[operator, union-attr]
    for unit in (1.0, 1 / span, scaled):
        if abs(given - first * unit) <= 1e-2 * max(1e-3, abs(first * unit)):
            return unit
    raise ValueError(
        f"{type(module).__name__} was given {given:g} at timestep {first:g}: it cannot be told how it takes other "
        "timesteps, so it cannot be called on images with noise; collect while generating"
    )


class Noised(Collecting):
    """Adds noise to given images at every collected timestep and calls the denoiser once for each."""

    def _work(self, batch: Batch) -> None:
        collected, model = self._collected, self._model
        prompts = [prompt.text for prompt in batch.prompts]
        denoiser = Denoiser(model, prompts, [prompt.seed for prompt in batch.prompts], collected.arguments())
        clean = encoded(model.pipe, batch.pixels)
        scale, n = noise_scale(model.pipe.scheduler), len(prompts)
        present = {CODES[branch] for branch in denoiser.step.branch}
        for step in dict.fromkeys(slot.step for slot in collected.slots):
            slots = [slot for slot in collected.slots if slot.step == step and slot.branch in present]
            if not slots:
                continue
            noisy = noised(clean, denoiser.noise(clean, step), slots[0].sigma, scale)
            denoiser(denoiser.packed(noisy), slots[0].timestep)
            for slot in slots:
                self._keep(collected.places[step, slot.branch], rows_of(denoiser.step, slot.branch, n))
