"""Whether an edit acts at all: tests of an image, at one call, that leave it untouched to the bit where they fail.

Thresholds come from prompts without the concept: `calibrated` lets through as many of them as are to be let through.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from visae.edit.moment import Moment
from visae.edit.surrogate import exceeds, looked_at, soft, straight_through
from visae.registry import Registry

G = TypeVar("G", bound="Gate")


@dataclass(frozen=True, eq=False)
class Gate(ABC):
    """Base of the gates: open for images whose score exceeds the threshold.

    Attributes:
        threshold: in the unit of the score.
        memory: `call` asks at every call anew; `run` stays open for an image, once it was, until its run ends.
        by: latents that are looked at; those of the edit if None.
        of_delta: whether the score depends on what the edit would change, and not on codes alone.
    """

    of_delta: ClassVar[bool] = False
    threshold: float = math.inf
    memory: Literal["call", "run"] = "run"
    by: tuple[int, ...] | None = None

    @abstractmethod
    def score(self, moment: Moment, latents: tuple[int, ...], delta: Tensor) -> Tensor:
        """`[R]` of every row.

        Args:
            moment: tokens and codes.
            latents: of the edit.
            delta: `[R, T, d]` what the edit would add.
        """

    def calibrated(self: G, scores: Sequence[float] | np.ndarray, false_positives: float = 0.01) -> G:
        """The same gate with the threshold that at most so many of these scores exceed.

        Args:
            scores: `[P]` the largest score of each prompt without the concept.
            false_positives: share of them that may open the gate.

        Raises:
            ValueError: without scores.
        """
        known = np.sort(np.asarray(scores, np.float64))
        if not len(known):
            raise ValueError("calibrating a gate needs the scores of at least one prompt without the concept, got none")
        allowed = math.floor(false_positives * len(known))
        return replace(self, threshold=float(known[len(known) - 1 - min(allowed, len(known) - 1)]))


GATES: Registry[type[Gate]] = Registry("gate")
"""Name -> gate."""


@GATES.register("error")
@dataclass(frozen=True, eq=False)
class ErrorGate(Gate):
    """Mean square of what the edit would change, over tokens and dimensions (Interpret-then-Deactivate)."""

    of_delta: ClassVar[bool] = True

    def score(self, moment: Moment, latents: tuple[int, ...], delta: Tensor) -> Tensor:  # noqa: ARG002
        """See `Gate.score`."""
        return looked_at(delta).square().mean((1, 2))


@GATES.register("share")
@dataclass(frozen=True, eq=False)
class ShareGate(Gate):
    """Share of an image's tokens in which any of the latents exceeds its own threshold (DSG).

    Attributes:
        above: thresholds of the latents, or one for all.
    """

    above: float | tuple[float, ...] = 0.0

    def score(self, moment: Moment, latents: tuple[int, ...], delta: Tensor) -> Tensor:  # noqa: ARG002
        """See `Gate.score`."""
        f = looked_at(moment.values(self.by or latents))
        return exceeds(f, f.new_tensor(self.above)).amax(-1).float().mean(1)


@GATES.register("strength")
@dataclass(frozen=True, eq=False)
class StrengthGate(Gate):
    """Weighted sum of the latents' values in the token where it is largest.

    Attributes:
        weights: of the latents, or one for all.
    """

    weights: float | tuple[float, ...] = 1.0

    def score(self, moment: Moment, latents: tuple[int, ...], delta: Tensor) -> Tensor:  # noqa: ARG002
        """See `Gate.score`."""
        f = looked_at(moment.values(self.by or latents))
        return (f * f.new_tensor(self.weights)).sum(-1).amax(1)


class Memory:
    """Which images of a run a gate has been open for, and the largest score of each."""

    def __init__(self) -> None:
        self.open = torch.zeros(0, dtype=torch.bool)
        self.largest = torch.zeros(0)

    def begin(self, images: int) -> None:
        """A new run of so many images."""
        self.open = torch.zeros(images, dtype=torch.bool)
        self.largest = torch.full((images,), -math.inf)

    def ask(self, gate: Gate, samples: Tensor, scores: Tensor) -> Tensor:
        """`[R]` whether each row is let through, 1.0 or 0.0; an image is let through in all its rows.

        Derivatives are those of `visae.edit.surrogate`, with respect to the image's largest score at this call.
        """
        told = scores.detach().float().cpu()
        self.largest = self.largest.scatter_reduce(0, samples, told, "amax")
        now = torch.zeros_like(self.open).index_put((samples,), told > gate.threshold, accumulate=True)
        self.open = self.open | now
        through = (self.open if gate.memory == "run" else now)[samples].to(scores)
        if not soft(scores):
            return through
        place = samples.to(scores.device)
        most = scores.new_full((len(self.open),), -math.inf).scatter_reduce(0, place, scores, "amax")[place]
        return straight_through(through, most, gate.threshold)
