"""What edits do to codes: every change says how it would alter tokens, and where it may is said elsewhere.

A change of codes f to f' is applied as `x' = x + (f' - f) D` with D the dictionary's directions: what the dictionary
does not explain stays as it is (delta form, all in float32).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from visae.edit.moment import Moment
from visae.edit.surrogate import exceeds, looked_at
from visae.levels import at_level
from visae.registry import Registry


@dataclass(frozen=True, eq=False)
class Change(ABC):
    """Base of the changes.

    Attributes:
        latents: numbers of the latents that it is about, m of them.
    """

    latents: tuple[int, ...]

    @abstractmethod
    def delta(self, moment: Moment, mask: Tensor | None) -> Tensor:
        """What is added to the tokens, `[R, T, d]`.

        Args:
            moment: tokens and codes.
            mask: `[R, T, 1]` or `[R, T, m]` how far each token, or each latent of it, is changed; None changes all.
        """


CHANGES: Registry[type[Change]] = Registry("change")
"""Name -> change."""


class CodeChange(Change):
    """A change of the values of its own latents."""

    @abstractmethod
    def new(self, f: Tensor, moment: Moment) -> Tensor:
        """New values `[R, T, m]` for those that are there."""

    def delta(self, moment: Moment, mask: Tensor | None) -> Tensor:
        """See `Change.delta`."""
        f = moment.values(self.latents)
        change = self.new(f, moment) - f
        return moment.decoded(self.latents, change if mask is None else change * mask)


@CHANGES.register("ablate")
@dataclass(frozen=True, eq=False)
class Ablate(CodeChange):
    """`f' = 0`."""

    def new(self, f: Tensor, moment: Moment) -> Tensor:  # noqa: ARG002
        """See `CodeChange.new`."""
        return torch.zeros_like(f)


@CHANGES.register("scale")
@dataclass(frozen=True, eq=False)
class Scale(CodeChange):
    """`f' = factor f`: 0 ablates, below 0 pushes away (Interpret-then-Deactivate has -8), above 1 strengthens.

    Attributes:
        factor: of all latents, or of each.
    """

    factor: float | tuple[float, ...] = 0.0

    def new(self, f: Tensor, moment: Moment) -> Tensor:  # noqa: ARG002
        """See `CodeChange.new`."""
        return f * f.new_tensor(self.factor)


@CHANGES.register("clamp")
@dataclass(frozen=True, eq=False)
class Clamp(CodeChange):
    """`f' = min(max(f, low), high)`; `low = high` sets values, also of latents that were silent (SAUCE).

    Attributes:
        low: of all latents, or of each; minus infinity for no limit.
        high: likewise.
    """

    low: float | tuple[float, ...] = float("-inf")
    high: float | tuple[float, ...] = float("inf")

    def new(self, f: Tensor, moment: Moment) -> Tensor:  # noqa: ARG002
        """See `CodeChange.new`."""
        return torch.minimum(torch.maximum(f, f.new_tensor(self.low)), f.new_tensor(self.high))


@CHANGES.register("negative_of_mean")
@dataclass(frozen=True, eq=False)
class NegativeOfMean(CodeChange):
    """`f' = factor mu f` with mu the latent's mean on the concept at the noise level (SAeUron, with factor -1).

    Attributes:
        factor: below 0 to push away.
        levels: `[S]` noise levels of the table.
        means: `[S, m]` mean value of each latent on prompts with the concept.
    """

    factor: float = -1.0
    levels: Tensor = None  # type: ignore[assignment]
    means: Tensor = None  # type: ignore[assignment]

    def new(self, f: Tensor, moment: Moment) -> Tensor:
        """See `CodeChange.new`."""
        mean = at_level(self.levels, self.means, moment.level(self.levels))
        return f * (self.factor * mean.to(f))


@CHANGES.register("add")
@dataclass(frozen=True, eq=False)
class Add(CodeChange):
    """`f' = f + amounts`: steering, also of tokens in which the latents are silent.

    Attributes:
        amounts: of each latent, or the same for all.
        per_token: `[T, m]` or None: further factors of each token (the weights of a prompt's own codes in Concept
            Steerers, a brush).
    """

    amounts: float | tuple[float, ...] = 0.0
    per_token: Tensor | None = None

    def new(self, f: Tensor, moment: Moment) -> Tensor:  # noqa: ARG002
        """See `CodeChange.new`."""
        added = f.new_tensor(self.amounts).expand_as(f)
        return f + (added if self.per_token is None else added * self.per_token.to(f))


@CHANGES.register("swap")
@dataclass(frozen=True, eq=False)
class Swap(CodeChange):
    """The first half of the latents and the second exchange their values, pair by pair."""

    def __post_init__(self) -> None:
        if len(self.latents) % 2 or len(set(self.latents)) < len(self.latents):
            raise ValueError(
                f"swap takes pairs of different latents, first all firsts, then all seconds; got {self.latents}"
            )

    def new(self, f: Tensor, moment: Moment) -> Tensor:  # noqa: ARG002
        """See `CodeChange.new`."""
        return f.roll(f.shape[-1] // 2, dims=-1)


@CHANGES.register("transport")
@dataclass(frozen=True, eq=False)
class Transport(CodeChange):
    """Values of one image of the batch go to the same tokens of others, branch by branch (Surkov et al. 2025).

    Attributes:
        source: number of the image they are taken from; it stays as it is.
    """

    source: int = 0

    def new(self, f: Tensor, moment: Moment) -> Tensor:
        """See `CodeChange.new`.

        Raises:
            ValueError: if the batch has no such image.
        """
        at = moment.samples == self.source
        if not bool(at.any()):
            raise ValueError(
                f"transport takes image {self.source} of the batch, which has {int(moment.samples.max()) + 1}"
            )
        rows = {branch: row for row, branch in enumerate(moment.branch) if at[row]}
        return f[torch.tensor([rows.get(branch, row) for row, branch in enumerate(moment.branch)], device=f.device)]


@CHANGES.register("keep_only")
@dataclass(frozen=True, eq=False)
class KeepOnly(Change):
    """All latents but these become 0; what the dictionary does not explain stays."""

    def delta(self, moment: Moment, mask: Tensor | None) -> Tensor:
        """See `Change.delta`.

        Raises:
            ValueError: for a mask of single latents, which says nothing about the others.
        """
        if mask is not None and mask.shape[-1] != 1:
            raise ValueError("keep_only changes all other latents, so it takes masks of tokens, not of its own latents")
        removed = -moment.without(self.latents)[1]
        return removed if mask is None else removed * mask


@CHANGES.register("reconstruct")
@dataclass(frozen=True, eq=False)
class Reconstruct(Change):
    """What the dictionary does not explain is dropped, and `f' = factor f` for the latents: `x' = decode(f')`.

    Attributes:
        factor: of the latents; 1 only reconstructs.
    """

    factor: float = 1.0

    def delta(self, moment: Moment, mask: Tensor | None) -> Tensor:
        """See `Change.delta`."""
        change = (self.factor - 1.0) * moment.values(self.latents)
        dropped = moment.sae.decode(moment.codes).to(moment.x).view_as(moment.x) - moment.x
        if mask is None:
            return dropped + moment.decoded(self.latents, change)
        return dropped * mask.amax(-1, keepdim=True) + moment.decoded(self.latents, change * mask)


@CHANGES.register("replace")
@dataclass(frozen=True, eq=False)
class Replace(Change):
    """Tokens in which the concept is detected give way to tokens without it (after "Look But Don't Touch", 2026).

    Detected is a token where any latent exceeds its threshold. In its place stands the mean of the image's own other
    tokens; or, where a table is given, what is known of prompts without the concept at the noise level.

    Attributes:
        thresholds: of each latent, or of all.
        levels: `[S]` noise levels of the table, or None.
        tokens: `[S, d]` mean token on prompts without the concept at each level, or `[S, T, d]` one for every place;
            or None.
    """

    thresholds: float | tuple[float, ...] = 0.0
    levels: Tensor | None = None
    tokens: Tensor | None = None

    def delta(self, moment: Moment, mask: Tensor | None) -> Tensor:
        """See `Change.delta`."""
        f, x = moment.values(self.latents), moment.x
        found = exceeds(looked_at(f), f.new_tensor(self.thresholds)).amax(-1, keepdim=True)
        if self.levels is not None and self.tokens is not None:
            other = self._instead(at_level(self.levels, self.tokens, moment.level(self.levels)).to(x), x)
        else:
            rest = 1 - found.detach()
            count = rest.sum(1, keepdim=True)
            mean = (x * rest).sum(1, keepdim=True) / count.clamp(min=1)
            other = torch.where(count > 0, mean, moment.sae.mean.to(x)).expand_as(x)
        changed = (other - x) * found
        return changed if mask is None else changed * mask.amax(-1, keepdim=True)

    @staticmethod
    def _instead(other: Tensor, x: Tensor) -> Tensor:
        """A token, or one for every place, at the places there are: text encoders are given prompts of any length."""
        if other.ndim == 2 and len(other) < x.shape[1]:
            raise ValueError(
                f"this edit knows what to put at {len(other)} places, and there are {x.shape[1]}: prompts are padded "
                "to more tokens than when it was made"
            )
        return (other if other.ndim == 1 else other[: x.shape[1]]).expand_as(x)
