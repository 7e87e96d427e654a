"""Dictionary parts: the atoms that codes are summed over, and the bias."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from visae.ops import unit_rows


class Decoder(nn.Module, ABC):
    """Base of the dictionary parts.

    Attributes:
        unit: names of `[F, d]` parameters whose rows the optimiser keeps at length 1.
        bias: `[d]`, zero at the start, because the mean of the data is a buffer of the dictionary.
    """

    unit: tuple[str, ...] = ()
    bias: nn.Parameter

    @abstractmethod
    def atoms(self) -> Tensor:
        """`[F, d]` rows in the space of normalised inputs, differentiable."""

    @abstractmethod
    def initialise(self, atoms: Tensor) -> None:
        """Starts from these unit rows `[F, d]`."""


class Free(Decoder):
    """Rows of any length, for objectives that weight by it."""

    def __init__(self, d: int, n_latents: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_latents, d))
        self.bias = nn.Parameter(torch.zeros(d))

    def atoms(self) -> Tensor:
        """See `Decoder.atoms`."""
        return self.weight

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Decoder.initialise`."""
        self.weight.copy_(atoms)
        unit_rows(self.weight)
        self.bias.zero_()


class UnitNorm(Free):
    """Rows of length 1: the optimiser projects their gradient and renormalises them in every step."""

    unit = ("weight",)
