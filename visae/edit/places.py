"""Where an edit acts: masks over tokens, or over single latents of tokens, multiplied with one another."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from visae.edit.moment import Moment
from visae.edit.surrogate import exceeds, looked_at
from visae.levels import at_level, nearest_level
from visae.registry import Registry


class Place(ABC):
    """Base of the masks."""

    @abstractmethod
    def mask(self, moment: Moment, latents: tuple[int, ...]) -> Tensor:
        """`[R or 1, T or 1, 1 or m]` in 0 .. 1, for an edit's latents."""


PLACES: Registry[type[Place]] = Registry("place")
"""Name -> mask."""


@PLACES.register("tokens")
@dataclass(frozen=True, eq=False)
class OnTokens(Place):
    """Given tokens: a brush, a segmentation, words of a prompt.

    Attributes:
        weights: `[T]` or `[rows, columns]` in 0 .. 1, or `[B, T]` or `[B, rows, columns]`, one for each image.
    """

    weights: Tensor

    def mask(self, moment: Moment, latents: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """See `Place.mask`.

        Raises:
            ValueError: if the weights fit neither the tokens nor the images.
        """
        t, grid = moment.x.shape[1], moment.grid
        weights = self.weights.to(moment.x)
        if grid is not None and tuple(weights.shape[-2:]) == grid and weights.ndim in (2, 3):
            weights = weights.flatten(-2)
        if weights.ndim not in (1, 2) or weights.shape[-1] != t:
            where = f"{grid[0]} x {grid[1]}" if grid else str(t)
            raise ValueError(
                f"a mask for {where} tokens, or one for each image, is needed; got {list(self.weights.shape)}"
            )
        if weights.ndim == 2:
            if len(weights) <= int(moment.samples.max()):
                raise ValueError(
                    f"{len(weights)} masks for a batch of {int(moment.samples.max()) + 1} images: give one each"
                )
            weights = weights[moment.samples]
        return weights.view(-1, t, 1)


@PLACES.register("active")
@dataclass(frozen=True, eq=False)
class WhereActive(Place):
    """Tokens in which any of some latents exceeds its threshold.

    Attributes:
        thresholds: of each latent, or of all.
        by: the latents; those of the edit if None.
    """

    thresholds: float | tuple[float, ...] = 0.0
    by: tuple[int, ...] | None = None

    def mask(self, moment: Moment, latents: tuple[int, ...]) -> Tensor:
        """See `Place.mask`."""
        f = looked_at(moment.values(self.by or latents))
        return exceeds(f, f.new_tensor(self.thresholds)).amax(-1, keepdim=True).to(moment.x)


@PLACES.register("above_mean")
@dataclass(frozen=True, eq=False)
class AboveMean(Place):
    """Each latent of a token where it is above its mean over all prompts at the noise level (SAeUron).

    Attributes:
        levels: `[S]` noise levels of the table.
        means: `[S, m]` means of the edit's latents.
    """

    levels: Tensor
    means: Tensor

    def mask(self, moment: Moment, latents: tuple[int, ...]) -> Tensor:
        """See `Place.mask`."""
        f = looked_at(moment.values(latents))
        return exceeds(f, at_level(self.levels, self.means, moment.level(self.levels)).to(f)).to(moment.x)


@PLACES.register("at_levels")
@dataclass(frozen=True, eq=False)
class AtLevels(Place):
    """Each latent only at the noise levels for which it was selected.

    Attributes:
        levels: `[S]` noise levels.
        active: `[S, m]` bool.
    """

    levels: Tensor
    active: Tensor

    def mask(self, moment: Moment, latents: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """See `Place.mask`."""
        return self.active[nearest_level(self.levels, moment.level(self.levels))].to(moment.x).view(1, 1, -1)


def joint(places: tuple[Place, ...], moment: Moment, latents: tuple[int, ...]) -> Tensor | None:
    """The product of several masks, None where there is none."""
    found: Tensor | None = None
    for place in places:
        one = place.mask(moment, latents)
        found = one if found is None else found * one
    return None if found is None else found.expand(*torch.broadcast_shapes(found.shape, (*moment.x.shape[:2], 1)))
