"""Activation parts in which every code depends on its own pre-activation alone, so training may leave most out."""

import copy

import torch
from torch import Tensor

from visae import ops
from visae.ops import Coded, Ragged
from visae.sae.activations import Activation

SPARSE = 1 / 40
"""Share of entries below which sparse kernels beat dense products, by the bytes and operations of both."""


class Elementwise(Activation):
    """Base of the parts without a rule in which every code depends on its own pre-activation alone.

    Once few of them matter, training makes only those: the step then costs what that of a rule costs.

    Attributes:
        reached: share of the entries of the last batch whose code or gradient could differ from 0.
    """

    reached: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reached", torch.tensor(1.0))

    def reach(self) -> ops.Above:
        """Which entries these are."""
        return ops.Above(torch.zeros_like(self.reached))

    def at(self, values: Tensor, columns: Tensor) -> Tensor:
        """`forward` of pre-activations `[m]` of the latents `columns` `[m]`."""
        del columns
        return self(values)  # type: ignore[no-any-return]

    @property
    def sparse(self) -> bool:
        """Whether so few matter that the sparse kernels pay; on a GPU, looking costs a synchronisation."""
        return self.training and bool(self.reached < SPARSE)

    @torch.no_grad()
    def watch(self, entries: Coded) -> None:
        """Takes note of how many entries of a batch matter, from all pre-activations or from those that do."""
        if isinstance(entries, Ragged):
            self.reached.fill_(entries.values.shape[0] / max(1, entries.n_rows * entries.pattern.n_latents))
        else:
            self.reached.copy_(self.reach().mask(entries.values).mean(dtype=self.reached.dtype))
        self.reached.copy_(ops.share().all.mean(self.reached))


class ReLU(Elementwise):
    """`z = max(0, a)`; sparse only through a penalty."""

    shards = True

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        return pre.relu()

    def scaled(self, gain: Tensor) -> "ReLU":
        """See `Activation.scaled`."""
        del gain
        return copy.deepcopy(self)
