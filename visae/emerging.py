"""The image while it emerges: at every step, what the denoiser would have the clean latents be (the prediction of x0).

Read from what the scheduler's `step` is given, so that it is the same for any pipeline. With `a` the cumulative alpha
and `o` the denoiser's output after guidance (Ho et al. 2020; Salimans & Ho 2022 for v; Lipman et al. 2023 for flows):

    variance-preserving   epsilon: (x - sqrt(1 - a) o) / sqrt(a)     v: sqrt(a) x - sqrt(1 - a) o     sample: o
    scaled by sigma       epsilon: x - s o    v: x / (s^2 + 1) - o s / sqrt(s^2 + 1)    sample: o    (s^2 = (1 - a) / a)
    flow matching         x - s o
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visae.clock import noise_level, noise_scale, shadowed

if TYPE_CHECKING:
    from PIL import Image

SCALED = ("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE", "EDM")
"""Schedulers whose samples are x0 + sigma noise, by the words in their names (read in diffusers 0.42)."""


def prediction(output: Tensor, like: Tensor) -> Tensor:
    """The part of a denoiser's output that is a prediction, without learned variances, as a view.

    Args:
        output: `[n, c, h, w]` or `[n, t, c]`.
        like: what was denoised, or clean, whose channels are those of a prediction, at most.
    """
    axis = 1 if output.dim() == 4 else output.dim() - 1
    return output.narrow(axis, 0, min(output.shape[axis], like.shape[axis]))


def predicted_clean(scheduler: Any, output: Tensor, timestep: Tensor | float, sample: Tensor) -> Tensor:
    """What a denoiser's output says that the clean latents are.

    Args:
        scheduler: of diffusers, set to its timesteps.
        output: the denoiser's, after guidance, `[n, ...]`.
        timestep: at which it was called, in the scheduler's own unit.
        sample: noisy latents at that timestep, as the scheduler keeps them.

    Raises:
        ValueError: if the scheduler predicts something that is not known here.
    """
    output, sample = output.float(), sample.float()
    sigma = noise_level(scheduler, float(timestep))
    if noise_scale(scheduler) == "flow":
        return sample - sigma * output
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return output
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{type(scheduler).__name__} predicts {kind!r}; clean latents are known for epsilon, v_prediction, sample "
            "and flow matching"
        )
    along = 1 / (1 + sigma**2) ** 0.5  # sqrt(a); sqrt(1 - a) is sigma times that
    if type(scheduler).__name__.startswith(SCALED):
        sample = sample * along  # from here on as a variance-preserving process has it
    if kind == "epsilon":
        return (sample - sigma * along * output) / along
    return along * sample - sigma * along * output


@dataclass(frozen=True)
class Moment:
    """One step of a scheduler.

    Attributes:
        timestep: in the scheduler's own unit.
        sigma: noise level, see `visae.clock`.
        clean: predicted clean latents, as the denoiser holds them (`[n, c, h, w]`, or packed tokens).
    """

    timestep: float
    sigma: float
    clean: Tensor


@contextmanager
def emerging(pipe: Any) -> Iterator[list[Moment]]:
    """Collects the predicted clean latents of every step of the scheduler inside the `with`; changes no bit of it.

    Example:
        >>> with emerging(pipeline.pipe) as moments:
        ...     pipeline.generate(["a red square"], [0], steps=20)
        >>> moments[-1].clean.shape
    """
    moments: list[Moment] = []

    def step(original: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            clean = predicted_clean(pipe.scheduler, model_output, timestep, sample)
            moments.append(Moment(float(timestep), noise_level(pipe.scheduler, float(timestep)), clean.cpu()))
        return original(model_output, timestep, sample, *args, **kwargs)

    with shadowed(pipe.scheduler, "step", step):
        yield moments


@torch.no_grad()
def decoded(pipe: Any, latents: Tensor, height: int, width: int) -> list["Image.Image"]:
    """Clean latents as pictures, by the pipeline's own autoencoder.

    Args:
        pipe: of diffusers, with a `vae`.
        latents: `[n, c, h, w]`, or packed tokens `[n, t, c]` as FLUX holds them.
        height: of the pictures in pixels; only packed tokens need it.
        width: likewise.
    """
    from PIL import Image

    if latents.dim() == 3:
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    vae, config = pipe.vae, pipe.vae.config
    weights = next(vae.parameters())
    latents = latents.to(pipe._execution_device, weights.dtype) / config.scaling_factor
    latents = latents + (config.get("shift_factor") or 0.0)
    pixels = vae.decode(latents, return_dict=False)[0].float().div(2).add(0.5).clamp(0, 1)
    shown = pixels.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in shown]
