"""Encoder parts: from centred inputs to pre-activations. A new one defines `pre`; nothing else is asked of it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Base of the encoder parts.

    Attributes:
        linear: whether `pre` is `(u - shift) weight^T + bias`, which lets the sparse kernels do the work.
    """

    linear: bool = False

    @abstractmethod
    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """Pre-activations `[n, F]` of inputs `[n, d]`; `shift` `[d]` is the decoder's bias."""

    @abstractmethod
    def initialise(self, atoms: Tensor) -> None:
        """Starts as the transpose of the dictionary `[F, d]`; `rescale` follows."""

    @abstractmethod
    def rescale(self, factor: Tensor) -> None:
        """Multiplies the pre-activations by a positive scalar, exactly (the first step's least-squares scale)."""


class Linear(Encoder):
    """`a = (u - b_dec) W_enc^T + b_enc`, with `W_enc` `[F, d]`."""

    linear = True

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, d: int, n_latents: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_latents, d))
        self.bias = nn.Parameter(torch.zeros(n_latents))

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        return nn.functional.linear(u - shift, self.weight, self.bias)

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Encoder.initialise`."""
        self.weight.copy_(atoms)
        self.bias.zero_()

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Encoder.rescale`."""
        self.weight.mul_(factor)
        self.bias.mul_(factor)
