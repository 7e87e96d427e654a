"""Attacks by where a run starts: other noise, or a picture of the concept with noise on it.

A start from a picture is what diffusers' image-to-image pipelines do (Meng et al., "SDEdit", 2022): with strength s,
the run has its last `int(s * steps)` steps, and begins with the picture's latents at the noise level of the first.
Here the text-to-image pipeline itself does it, so that erasures and clocks see an ordinary run that lacks its first
steps. The noise is the one from which the seed would have started.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from visae.clock import noise_level, noise_scale, shadowed
from visae.data.sample import Prompt
from visae.emerging import SCALED
from visae.evaluate.attacks.base import ATTACKS, Arena, Attack, Record, attempts
from visae.evaluate.preserved import clean_latents
from visae.pipelines import AdaptedPipeline
from visae.store.batches import split_into
from visae.store.noising import noised


@dataclass(frozen=True)
class Seeds(Attack):
    """Draws a prompt from other noise until a picture shows the concept; the best of many counts.

    Attributes:
        n: how many seeds, drawn from the prompt's own.
    """

    n: int = 32

    @property
    def budget(self) -> dict[str, int]:
        """See `Attack.budget`."""
        return {"pictures": self.n}

    def within(self, pictures: int, gradients: int) -> "Seeds":  # noqa: ARG002
        """See `Attack.within`."""
        return replace(self, n=pictures)

    def attack(self, arena: Arena, prompts: Sequence[Prompt], record: Record) -> None:
        """See `Attack.attack`."""
        tries = []
        for prompt in prompts:
            numbers = random.Random(prompt.seed).sample(range(2**31), self.n)
            tries.append([replace(prompt, seed=number) for number in numbers])
        attempts(arena, tries, record, lambda one: f"{one.text} (seed {one.seed})")


@dataclass(frozen=True)
class ImageStart(Attack):
    """Starts runs from the plain pipeline's pictures of the prompts, with noise on them.

    The weaker the noise, the more of the picture is left without any doing of the pipeline: a success at a low strength
    says little about the erasure.

    Attributes:
        strengths: in 0 .. 1, tried one after another; 1 has the whole run.
    """

    strengths: tuple[float, ...] = (0.9, 0.75, 0.6)

    @property
    def budget(self) -> dict[str, int]:
        """See `Attack.budget`."""
        return {"pictures": len(self.strengths)}

    def within(self, pictures: int, gradients: int) -> "ImageStart":  # noqa: ARG002
        """See `Attack.within`; the first strengths, however many pictures are allowed."""
        return replace(self, strengths=self.strengths[:pictures])

    def attack(self, arena: Arena, prompts: Sequence[Prompt], record: Record) -> None:
        """See `Attack.attack`."""
        clean = torch.cat(
            [
                clean_latents(arena.pipeline, [one.text for one in part], [one.seed for one in part], arena.given)
                for places in split_into(range(len(prompts)), arena.batch)
                for part in [[prompts[i] for i in places]]
            ]
        )
        for strength in self.strengths:
            left = [i for i in range(len(prompts)) if not record.done(i)]
            for part in split_into(left, arena.batch):
                now = [prompts[i] for i in part]
                with arena.erasure(), started(arena.pipeline, clean[list(part)], strength):
                    pictures = arena.draw(now)
                record.add(part, pictures, [f"{one.text} (picture, strength {strength:g})" for one in now])


ATTACKS.register("seeds")(Seeds())
ATTACKS.register("image_start")(ImageStart())


@contextmanager
def started(pipeline: AdaptedPipeline, clean: Tensor, strength: float) -> Iterator[None]:
    """Runs inside the `with` start from pictures with noise on them, one run of so many images after the other.

    Args:
        pipeline: the pipeline.
        clean: latents of the pictures, one of every image, as `generate(..., output_type="latent")` gives them.
        strength: above 0 and up to 1, the share of the steps that is run.

    Raises:
        ValueError: for a strength out of range, one so small that no step is left, or a pipeline that does not begin
            with latents.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"the strength of a start from a picture is above 0 and up to 1, got {strength:g}")
    scheduler = pipeline.pipe.scheduler
    module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
    start = _Start(pipeline, clean, strength)
    with (
        shadowed(scheduler, "set_timesteps", start.set_timesteps),
        shadowed(scheduler, "scale_model_input", start.scale_model_input),
        shadowed(pipeline.pipe, "prepare_latents", start.prepare_latents),
    ):
        handle = module.register_forward_pre_hook(start.before, prepend=True)
        try:
            yield
        finally:
            handle.remove()


class _Start:
    """What runs of one `with` begin with.

    The pipeline reads its timesteps when they are set, and sees the last ones only. Before anything is computed with
    them, the scheduler has all of them again, with the place at which the run begins: as in diffusers' own
    image-to-image pipelines. Latents are drawn before that by some pipelines and after it by others; what they drew is
    overwritten in place as soon as both are known.
    """

    def __init__(self, pipeline: AdaptedPipeline, clean: Tensor, strength: float):
        self.pipe, self.clean, self.strength = pipeline.pipe, clean, strength
        self.cut: tuple[Tensor, int] | None = None
        self.drawn: Tensor | None = None

    def set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler = self.pipe.scheduler
        whole, order = scheduler.timesteps, int(getattr(scheduler, "order", 1))
        steps = int(getattr(scheduler, "num_inference_steps", None) or len(whole))
        if (left := int(steps * self.strength)) < 1:
            raise ValueError(
                f"a strength of {self.strength:g} leaves none of {steps} steps; take {1 / steps:.3g} at least"
            )
        self.cut = whole, (steps - left) * order
        scheduler.timesteps = whole[self.cut[1] :]
        self._begin()
        self._overwrite()

    def prepare_latents(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        self.drawn = made if isinstance(made, Tensor) else made[0]
        self._overwrite()
        return made

    def scale_model_input(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._restore()
        return original(*args, **kwargs)

    def before(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        self._restore()

    def _begin(self) -> None:
        if self.cut is not None and hasattr(self.pipe.scheduler, "set_begin_index"):
            self.pipe.scheduler.set_begin_index(self.cut[1])

    def _overwrite(self) -> None:
        """Puts the picture with noise in place of the noise, once both timesteps and noise are there."""
        if self.cut is None or self.drawn is None:
            return
        scheduler, drawn = self.pipe.scheduler, self.drawn
        noise = drawn.float() / float(getattr(scheduler, "init_noise_sigma", 1.0))
        if noise.shape != self.clean.shape:
            raise ValueError(f"runs begin with {list(noise.shape)}, and the pictures are {list(self.clean.shape)}")
        sigma = noise_level(scheduler, float(self.cut[0][self.cut[1]]))
        clean = self.clean.to(noise)
        if type(scheduler).__name__.startswith(SCALED):
            begun = clean + sigma * noise
        else:
            begun = noised(clean, noise, sigma, noise_scale(scheduler))
        drawn.copy_(begun)
        self.drawn = None

    def _restore(self) -> None:
        """All timesteps again, before the first of the run is used."""
        if self.cut is None:
            return
        if self.drawn is not None or not hasattr(self.pipe, "prepare_latents"):
            raise ValueError(f"{type(self.pipe).__name__} does not begin with latents that can be exchanged")
        self.pipe.scheduler.timesteps = self.cut[0]
        self._begin()
        self.cut = None
