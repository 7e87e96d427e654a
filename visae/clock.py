"""`StepClock`: where a diffusion run is, read from what the denoiser is called with, never from counted calls.

One scale of noise serves every scheduler of a kind. Schedulers that preserve variance bring
`x = sqrt(a) x0 + sqrt(1 - a) e` with `a` their cumulative alpha (Ho et al., "Denoising diffusion probabilistic models",
2020), and sigma is `sqrt((1 - a) / a)`, the noise that was added to x0 before the sum was scaled (Karras et al.,
"Elucidating the design space of diffusion-based generative models", 2022, table 1). Flow matching brings
`x = (1 - s) x0 + s e` (Lipman et al., 2023; Esser et al., 2024), and sigma is s, from 0 to 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from visae.compiling import shielded
from visae.readings import arguments

Branch = Literal["none", "uncond", "cond"]
Scale = Literal["variance", "flow"]

CODES: dict[Branch, int] = {"none": -1, "uncond": 0, "cond": 1}
"""Numbers under which tokens keep their branch."""

LEAST_ALPHA = 2.0**-24
"""Cumulative alphas are taken no smaller than this, which keeps sigma finite (4096) where a schedule ends in noise."""

CONDITION_FIRST = ("DiT", "Wuerstchen", "StableCascade", "Lumina")
"""How pipelines are called that batch [cond, uncond] (read in diffusers 0.42); all others batch [uncond, cond]."""


def noise_scale(scheduler: Any) -> Scale:
    """Whether a scheduler's sigmas are those of flow matching (0 to 1) or of a variance-preserving process (0 up)."""
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return "flow" if flow or "FlowMatch" in type(scheduler).__name__ else "variance"


def noise_level(scheduler: Any, timestep: float) -> float:
    """Sigma at a timestep, in the scheduler's own unit of time; between whole timesteps log sigma is interpolated.

    Raises:
        ValueError: if the scheduler says neither its cumulative alphas nor that it is one of flow matching.
    """
    if noise_scale(scheduler) == "flow":
        return float(timestep) / float(scheduler.config.get("num_train_timesteps", 1000))
    if type(scheduler).__name__.startswith("EDM") or scheduler.config.get("timestep_type") == "continuous":
        return float(np.exp(4 * timestep))  # Karras et al., table 1: c_noise = ln(sigma) / 4
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod and is none of flow matching, so sigma cannot be told; "
            "give the pipeline another scheduler"
        )
    known = np.maximum(np.asarray(alphas.cpu(), dtype=np.float64), LEAST_ALPHA)
    logs = 0.5 * np.log(np.maximum(1 - known, LEAST_ALPHA) / known)
    return float(np.exp(np.interp(timestep, np.arange(len(logs)), logs)))


@dataclass(frozen=True)
class Step:
    """One call of the denoiser.

    Attributes:
        call: its number in this generation, from 0.
        index: place of its timestep among the distinct timesteps of the generation, from 0.
        count: how many distinct timesteps there are.
        timestep: in the scheduler's own unit.
        sigma: noise level.
        scale: what sigma means.
        branch: of every row of the batch.
    """

    call: int
    index: int
    count: int
    timestep: float
    sigma: float
    scale: Scale
    branch: tuple[Branch, ...]

    @property
    def codes(self) -> Tensor:
        """Branch of every row as a number, `[rows]` int8."""
        return torch.tensor([CODES[branch] for branch in self.branch], dtype=torch.int8)

    def rows(self, *branches: Branch) -> list[int]:
        """Rows of the batch that belong to any of some branches."""
        return [row for row, branch in enumerate(self.branch) if branch in branches]

    @property
    def asked(self) -> list[int]:
        """Rows that follow the prompt: the conditional ones, or all of a run without guidance."""
        return self.rows("cond") or ([] if "uncond" in self.branch else self.rows("none"))


class _Table:
    """The timesteps that a scheduler was set to, on the host."""

    def __init__(self, timesteps: Tensor):
        self.source = timesteps
        self.all = np.asarray(timesteps.detach().cpu(), dtype=np.float64)
        order = dict.fromkeys(self.all.tolist())
        self.distinct = {value: place for place, value in enumerate(order)}


class StepClock:
    """Tells timestep, sigma, index and branch at every call of a pipeline's denoiser.

    A generation begins where the scheduler's timesteps were set anew, or where they jump back.

    Attributes:
        pipe: the diffusers pipeline.
        denoiser: name of its denoiser.
        images: images in the batch that is being made, where known; it tells guidance from images that are alike.
        after: called with every `Step`, when the denoiser has run.
    """

    def __init__(self, pipe: Any, denoiser: str, after: Callable[[Step], None] | None = None):
        self.pipe, self.denoiser, self.after = pipe, denoiser, after
        self.images: int | None = None
        self._encoded, self._context = 0, ""
        self.reset()

    def reset(self) -> None:
        """Forgets the generation."""
        self._table: _Table | None = None
        self._now: Step | None = None
        self._layout: tuple[int, tuple[Branch, ...]] | None = None

    @property
    def now(self) -> Step:
        """The latest call of the denoiser.

        Raises:
            RuntimeError: if there was none yet.
        """
        if self._now is None:
            raise RuntimeError(
                f"the clock has seen no call of {self.denoiser}; run the pipeline inside `with ...clock()`"
            )
        return self._now

    @contextmanager
    def running(self, lasting: bool = False) -> Iterator["StepClock"]:
        """Watches the denoiser while entered; on exit nothing is left on the pipeline.

        Args:
            lasting: see `visae.taps.tap`.
        """
        module: nn.Module = getattr(self.pipe, self.denoiser)
        before = shielded(self._before, lasting)
        handles = [module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)]
        if self.after is not None:
            handles.append(module.register_forward_hook(shielded(self._done, lasting)))
        try:
            with shadowed(module, "cache_context", self._named), shadowed(self.pipe, "encode_prompt", self._encodes):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def making(self, images: int) -> Iterator[None]:
        """A new generation, of so many images, lasts as long as this is entered."""
        self.reset()
        self.images = images
        try:
            yield
        finally:
            self.images = None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = arguments(module, args, kwargs)
        sample = next(value for value in given.values() if isinstance(value, Tensor))
        if "timestep" not in given:
            raise ValueError(f"{type(module).__name__} takes no argument timestep, so a clock cannot read it")
        scheduler = self.pipe.scheduler
        if self._table is None or self._table.source is not scheduler.timesteps:
            self.reset()
            self._table = _Table(scheduler.timesteps)
        table = self._table
        timestep = self._find(given["timestep"], table)
        index = table.distinct[timestep]
        if self._now is not None and index < self._now.index:
            self._now = self._layout = None
        call = 0 if self._now is None else self._now.call + 1
        branch = self._branches(module, sample, again=self._now is not None and self._now.index == index)
        sigma = noise_level(scheduler, timestep)
        self._now = Step(call, index, len(table.distinct), timestep, sigma, noise_scale(scheduler), branch)

    def _done(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        assert self.after is not None
        self.after(self.now)

    def _find(self, given: Tensor | float, table: _Table) -> float:
        """The scheduler's timestep that the denoiser was given, maybe in another unit and rounded."""
        value = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
        span = float(self.pipe.scheduler.config.get("num_train_timesteps", 1000))
        scale = float(getattr(self.pipe, self.denoiser).config.get("timestep_scale") or 1.0)
        readings = np.array([value, value * span, value / scale, (1 - value) * span])
        eps = torch.finfo(given.dtype).eps if isinstance(given, Tensor) and given.is_floating_point() else 0.0
        near = max(1e-3, 2 * eps * span)
        place = getattr(self.pipe.scheduler, "step_index", None)
        if place is None:
            place = getattr(self.pipe.scheduler, "begin_index", None)
        if place is not None and place < len(table.all) and np.abs(readings - table.all[place]).min() <= near:
            return float(table.all[place])
        apart = np.abs(readings[:, None] - table.all[None])
        if apart.min() > near:
            raise ValueError(
                f"{self.denoiser} was called at timestep {value:g}, which is none of the {len(table.all)} that "
                f"{type(self.pipe.scheduler).__name__} was set to ({table.all[:3]}, ...)"
            )
        return float(table.all[np.unravel_index(apart.argmin(), apart.shape)[1]])

    def _branches(self, module: nn.Module, sample: Tensor, again: bool) -> tuple[Branch, ...]:
        rows = sample.shape[0]
        guided = getattr(self.pipe, "do_classifier_free_guidance", None)
        if self._context in ("cond", "uncond"):
            if guided is None:
                guided = self._encoded != 1
            return _all(("cond" if self._context == "cond" else "uncond") if guided else "none", rows)
        if guided is False:
            return _all("none", rows)
        if self._layout is None or self._layout[0] != rows:
            self._layout = rows, self._batched(module, sample)
        known = self._layout[1]
        if guided and set(known) == {"none"}:
            return _all("uncond" if again else "cond", rows)
        return known

    def _batched(self, module: nn.Module, sample: Tensor) -> tuple[Branch, ...]:
        """Branches of the rows of one call, from the copies of the latents in it."""
        rows = sample.shape[0]
        copies = rows // self.images if self.images else _copies(module, sample)
        if copies < 2:
            return _all("none", rows)
        first = type(self.pipe).__name__.startswith(CONDITION_FIRST)
        each = rows // copies
        pair = _all("cond" if first else "uncond", each) + _all("uncond" if first else "cond", each)
        return pair + _all("none", rows - 2 * each)

    @contextmanager
    def _named(self, original: Callable[..., Any], name: str, **more: Any) -> Iterator[Any]:
        """Notes the name under which a pipeline announces a call."""
        self._context = name
        try:
            with original(name, **more) as entered:
                yield entered
        finally:
            self._context = ""

    def _encodes(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Counts the prompts that are encoded for one generation: a second one is the negative prompt."""
        self._encoded = 1 if self._now is not None else self._encoded + 1
        self.reset()
        return original(*args, **kwargs)


def _all(branch: Branch, rows: int) -> tuple[Branch, ...]:
    return (branch,) * rows


def _copies(module: nn.Module, sample: Tensor) -> int:
    """How often the latents stand in a batch: 2 with guidance, 3 where a pipeline adds another branch."""
    latents = sample[:, : module.config.get("out_channels")] if sample.dim() == 4 else sample  # type: ignore[operator, union-attr]
    for copies in (3, 2):
        if len(latents) % copies == 0:
            first, *others = latents.chunk(copies)
            if all(torch.equal(first, other) for other in others):
                return copies
    return 1


@contextmanager
def shadowed(owner: Any, name: str, instead: Callable[..., Any]) -> Iterator[None]:
    """Puts a function, which is given the original first, before an object's method of that name, if it has one."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    had = vars(owner).get(name)
    object.__setattr__(owner, name, update_wrapper(partial(instead, original), original))  # keeps its signature
    try:
        yield
    finally:
        if had is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, had)
