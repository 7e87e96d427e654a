"""Penalties: further terms of the loss, each a function of one training pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from visae.ops import Coded, Dense, Ops, Ragged

if TYPE_CHECKING:
    from visae.sae.dictionary import Dictionary


@dataclass
class Pass:
    """What one training pass leaves for the penalties.

    Attributes:
        sae: the dictionary.
        u: `[n, d]` normalised inputs, as the encoder took them.
        pre: `[n, F]` pre-activations where they exist as a tensor of the graph (dense kinds, other encoders).
        codes: the codes.
        recon: `[n, d]` reconstruction in the space of `u`, detached.
        dead: `[m]` int64 dead latents; None where there are none.
        progress: share of the training budget spent, 0 to 1.
        ops: the kernels in use.
        side: what came beside the inputs, raw; see `visae.sae.side`.
        partner: codes of the other token of each pair, for kinds that compare pairs; set by `Other`.
        near: of an elementwise activation on its sparse path, the pre-activations that matter.
    """

    sae: "Dictionary"
    u: Tensor
    pre: Tensor | None
    codes: Coded
    recon: Tensor
    dead: Tensor | None
    progress: float
    ops: Ops
    side: Mapping[str, Tensor] = field(default_factory=dict)
    near: Ragged | None = None
    partner: Coded | None = None

    def dense_pre(self) -> Tensor:
        """`[n, F]` pre-activations of a kind whose activation is dense.

        Raises:
            ValueError: for a kind whose kernels keep no such tensor: it cannot carry a penalty that reads them.
        """
        if self.pre is None:
            raise ValueError(f"kind {self.sae.kind!r} keeps no pre-activations for this penalty: its codes are sparse")
        return self.pre

    def entries(self) -> Coded:
        """Pre-activations of an elementwise activation: all, or those whose code or gradient may differ from 0."""
        return Dense(self.dense_pre()) if self.near is None else self.near


class Penalty(nn.Module, ABC):
    """Base of the penalties: a value that already has its coefficient.

    Attributes:
        name: in the logs.
        needs: names of the side information that it reads in `Pass.side`.
        warmup: share of training over which the term rises linearly from 0; None for terms that are there at once.
            `TrainConfig.sparsity_warmup` sets it for all that have one.
        shards: see `visae.sae.slices`.
    """

    name: str
    shards: bool = False
    needs: tuple[str, ...] = ()
    warmup: float | None = None

    @abstractmethod
    def forward(self, run: Pass) -> Tensor | None:
        """The weighted term, a scalar; None where it does not apply in this step."""
