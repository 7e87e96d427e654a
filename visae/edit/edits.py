"""`Edit`: a change of codes, with where, when, to whom and whether; edits are composed, saved and applied as one.

ablate([17, 204]).where(active()).when(sigma=(0.3, 5.0)).who("cond")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from visae.edit.changes import (
    Ablate,
    Add,
    Change,
    Clamp,
    KeepOnly,
    NegativeOfMean,
    Reconstruct,
    Replace,
    Scale,
    Swap,
    Transport,
)
from visae.edit.gates import Gate, Memory
from visae.edit.moment import Moment
from visae.edit.places import AboveMean, AtLevels, OnTokens, Place, WhereActive, joint
from visae.edit.surrogate import soft

Who = Literal["both", "cond", "uncond", "opposed"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change with its conditions.

    Attributes:
        change: what happens to the codes.
        places: masks that are multiplied; none means every token.
        sigmas: lowest and highest noise level at which it acts, both included; None for all.
        steps: first step and the one behind the last, of the run's timesteps; None for all.
        branches: of guidance: rows of the prompt (`cond`), of the negative one (`uncond`), `both`, or `opposed`: as
            it is on the prompt's and with the opposite sign on the other's. Runs without guidance are always edited.
        samples: numbers of the images of a batch it acts on; None for all.
        gate: lets it act on an image, or not.
        strength: factor of the whole change, one for all images or one for each; 0 leaves every bit as it was.
    """

    change: Change
    places: tuple[Place, ...] = ()
    sigmas: tuple[float, float] | None = None
    steps: tuple[int, int] | None = None
    branches: Who = "both"
    samples: tuple[int, ...] | None = None
    gate: Gate | None = None
    strength: float | tuple[float, ...] = 1.0

    @property
    def latents(self) -> tuple[int, ...]:
        """What it is about."""
        return self.change.latents

    def where(self, *places: Place) -> "Edit":
        """The same edit under further masks."""
        return replace(self, places=(*self.places, *places))

    def when(self, *, sigma: tuple[float, float] | None = None, steps: tuple[int, int] | None = None) -> "Edit":
        """The same edit at some noise levels, or steps, only."""
        return replace(self, sigmas=sigma or self.sigmas, steps=steps or self.steps)

    def who(self, branches: Who | None = None, *, samples: Iterable[int] | None = None) -> "Edit":
        """The same edit on some branches of guidance, or some images of the batch, only."""
        chosen = self.samples if samples is None else tuple(samples)
        return replace(self, branches=branches or self.branches, samples=chosen)

    def whether(self, gate: Gate) -> "Edit":
        """The same edit behind a gate."""
        return replace(self, gate=gate)

    def times(self, strength: float | Sequence[float]) -> "Edit":
        """The same edit, so many times as strong, for all images or for each."""
        return replace(self, strength=strength if isinstance(strength, int | float) else tuple(strength))

    def acts(self, sigma: float | None, index: int) -> bool:
        """Whether it does anything at this noise level and step."""
        levels = self.sigmas is None or sigma is None or self.sigmas[0] <= sigma <= self.sigmas[1]
        return levels and (self.steps is None or self.steps[0] <= index < self.steps[1])

    def weights(self, moment: Moment) -> Tensor:
        """`[R]` factor of every row, with the sign of its branch, on the CPU: nothing waits for a GPU to look at it.

        Raises:
            ValueError: if the strengths are not as many as the images.
        """
        signs = {"cond": self.branches != "uncond", "uncond": self.branches in ("uncond", "both"), "none": True}
        weights = torch.tensor([float(signs[branch]) for branch in moment.branch])
        if self.branches == "opposed":
            weights = weights - torch.tensor([float(branch == "uncond") for branch in moment.branch])
        if self.samples is not None:
            weights = weights * torch.isin(moment.samples, moment.samples.new_tensor(self.samples))
        if isinstance(self.strength, tuple):
            images = int(moment.samples.max()) + 1
            if len(self.strength) < images:
                raise ValueError(
                    f"{len(self.strength)} strengths for a batch of {images} images: give one each, or one"
                )
            return weights * weights.new_tensor(self.strength)[moment.samples]
        return weights * self.strength

    def delta(self, moment: Moment, memory: Memory) -> Tensor | None:
        """What it adds to the tokens `[R, T, d]`, None where it leaves all as they are."""
        weights = self.weights(moment)
        if not bool(weights.any()):
            return None
        weights = weights.to(moment.x)
        delta = self.change.delta(moment, joint(self.places, moment, self.latents))
        if self.gate is not None:
            seen = self.gate.score(moment, self.latents, delta)
            weights = weights * memory.ask(self.gate, moment.samples, seen)
            if not (bool(weights.any()) or soft(weights)):
                return None
        return delta * weights.view(-1, 1, 1)


def _numbers(latents: Iterable[int]) -> tuple[int, ...]:
    found = tuple(int(latent) for latent in latents)
    if not found:
        raise ValueError("an edit needs at least one latent, got none")
    return found


def ablate(latents: Iterable[int]) -> Edit:
    """`f' = 0`."""
    return Edit(Ablate(_numbers(latents)))


def scale(latents: Iterable[int], factor: float | Sequence[float]) -> Edit:
    """`f' = factor f`, one factor for all latents or one for each."""
    return Edit(Scale(_numbers(latents), _each(factor)))


def clamp(
    latents: Iterable[int], low: float | Sequence[float] = -torch.inf, high: float | Sequence[float] = torch.inf
) -> Edit:
    """`f'` no lower than `low` and no higher than `high`."""
    return Edit(Clamp(_numbers(latents), _each(low), _each(high)))


def negative_of_mean(latents: Iterable[int], levels: Tensor, means: Tensor, factor: float = -1.0) -> Edit:
    """`f' = factor mu f` with means `[S, m]` of the latents on the concept at noise levels `[S]` (SAeUron)."""
    return Edit(NegativeOfMean(_numbers(latents), factor, levels, means))


def add(latents: Iterable[int], amounts: float | Sequence[float], per_token: Tensor | None = None) -> Edit:
    """`f' = f + amounts`, in silent tokens too; `per_token` `[T, m]` multiplies the amounts."""
    return Edit(Add(_numbers(latents), _each(amounts), per_token))


def keep_only(latents: Iterable[int]) -> Edit:
    """All other latents become 0."""
    return Edit(KeepOnly(_numbers(latents)))


def swap(first: Iterable[int], second: Iterable[int]) -> Edit:
    """Pairs of latents exchange their values."""
    return Edit(Swap(_numbers([*first, *second])))


def transport(latents: Iterable[int], source: int = 0) -> Edit:
    """All images of the batch get the values of one of them, token by token."""
    return Edit(Transport(_numbers(latents), source))


def reconstruct(latents: Iterable[int], factor: float = 1.0) -> Edit:
    """Tokens give way to what the dictionary makes of them, with `f' = factor f`: the error is dropped."""
    return Edit(Reconstruct(_numbers(latents), factor))


def replace_tokens(
    latents: Iterable[int],
    thresholds: float | Sequence[float] = 0.0,
    levels: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Edit:
    """Tokens in which a latent exceeds its threshold give way to tokens without the concept; see `Replace`."""
    return Edit(Replace(_numbers(latents), _each(thresholds), levels, tokens))


def active(thresholds: float | Sequence[float] = 0.0, by: Iterable[int] | None = None) -> Place:
    """Tokens in which any of the edit's latents, or of those in `by`, exceeds its threshold."""
    return WhereActive(_each(thresholds), None if by is None else _numbers(by))


def above_mean(levels: Tensor, means: Tensor) -> Place:
    """Latents above their means `[S, m]` at noise levels `[S]`."""
    return AboveMean(levels, means)


def at_levels(levels: Tensor, chosen: Tensor) -> Place:
    """Latents only at the noise levels `[S]` for which they were chosen, `[S, m]` bool."""
    return AtLevels(levels, chosen)


def on_tokens(weights: Tensor) -> Place:
    """Given tokens, see `OnTokens`."""
    return OnTokens(weights)


def _each(value: float | Sequence[float]) -> float | tuple[float, ...]:
    return float(value) if isinstance(value, int | float) else tuple(float(v) for v in value)
