"""One call of a denoiser as its pipeline makes it, on latents and at a noise level of our choice, with gradients.

The pipeline is run as always, encodes its prompts, and is ended when its denoiser has been called once, with our
latents and timestep in place of its own. Whatever an erasure does to prompts, to text encoders, to the denoiser's
weights or to what flows through it is therefore at work, and gradients lead through it. What it does to the sum of both
branches of guidance, or to the scheduler, is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.clock import noise_level, noise_scale
from visae.emerging import prediction
from visae.evaluate.preserved import target
from visae.first_calls import FirstCall, Stopped, quiet
from visae.pipelines import AdaptedPipeline
from visae.readings import arguments
from visae.store.noising import noised, time_unit


@dataclass(frozen=True)
class Noised:
    """Latents with noise at one of a run's timesteps.

    Attributes:
        clean: `[n, ...]` clean latents, as `generate(..., output_type="latent")` gives them.
        noise: of the same shape.
        place: where in the run, from 0 for its first timestep to, but without, 1.
    """

    clean: Tensor
    noise: Tensor
    place: float


@dataclass(frozen=True)
class Said:
    """What a denoiser said.

    Attributes:
        output: `[n, ...]` float32 for the prompts' rows, without learned variances.
        target: `[n, ...]` what it should have said of the latents, see `visae.evaluate.preserved`.
        sigma: noise level.
    """

    output: Tensor
    target: Tensor
    sigma: float


def asked(pipeline: AdaptedPipeline, prompts: Sequence[str], given: Mapping[str, Any], at: Noised) -> Said:
    """Runs a pipeline up to its denoiser's first call, on noised latents, and tells what that says.

    Gradients flow from where they were enabled inside the run, see `visae.evaluate.attacks.words.Words.embedded`.

    Args:
        pipeline: the pipeline.
        prompts: one of every image.
        given: further arguments of `AdaptedPipeline.generate`.
        at: the latents.

    Raises:
        ValueError: if it cannot be told how the denoiser takes its timestep, or what it predicts.
    """
    run = _Run(pipeline, at)
    with pipeline.clock() as run.clock:
        handles = [
            run.module.register_forward_pre_hook(run.before, with_kwargs=True, prepend=True),
            run.module.register_forward_hook(run.after),
        ]
        try:
            with quiet(pipeline.pipe):
                pipeline.generate(list(prompts), [0] * len(prompts), **given)
        finally:
            for handle in handles:
                handle.remove()
    if run.said is None:
        raise ValueError(f"{type(pipeline.pipe).__name__} made an image without calling its denoiser for a prompt")
    return run.said


class _Run:
    """The hooks of one run; before all others they see its arguments, and after all others its output."""

    def __init__(self, pipeline: AdaptedPipeline, at: Noised):
        self.scheduler, self.at = pipeline.pipe.scheduler, at
        self.module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
        self.clock: Any = None
        self.said: Said | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        call = FirstCall(arguments(module, args, kwargs))
        sample, time = call.tensors[0], call.arguments.get("timestep")
        if not isinstance(time, Tensor):
            raise ValueError(f"{type(module).__name__} takes no timestep as a tensor, so it cannot be asked at others")
        distinct = list(dict.fromkeys(self.scheduler.timesteps.tolist()))
        self.timestep = float(distinct[int(self.at.place * len(distinct))])
        sigma = noise_level(self.scheduler, self.timestep)
        noisy = noised(self.at.clean, self.at.noise, sigma, noise_scale(self.scheduler))
        ours = torch.cat([noisy] * (sample.shape[0] // len(noisy))).to(sample)
        if ours.shape != sample.shape:
            raise ValueError(f"{type(module).__name__} takes {list(sample.shape)}, and latents are {list(ours.shape)}")
        when = torch.full_like(time, self.timestep * time_unit(module, self.scheduler, float(time.flatten()[0])))
        changed = call.mapped(lambda _, value: ours if value is sample else when if value is time else value)
        return (), changed.arguments

    def after(self, _module: nn.Module, _args: Any, out: Any) -> None:
        rows = self.clock.now.asked
        if not rows:
            return
        sigma = noise_level(self.scheduler, self.timestep)
        wanted = target(self.scheduler, self.at.clean.float(), self.at.noise.float(), sigma)
        given = prediction(out[0][rows].float(), wanted)
        self.said = Said(given, wanted.to(given), sigma)
        raise Stopped
