"""What a tier of kernels offers to dictionaries. A tier is right when it equals `Reference` (`tests/ops`)."""

from typing import Protocol

from torch import Tensor

from visae.ops.nesting import Nesting
from visae.ops.rules import Rule
from visae.ops.sparse import Coded


class Ops(Protocol):
    """Encode, select and decode, differentiable in every tensor that wants gradients.

    Shapes: `u` `[n, d]` inputs, `weight` `[F, d]` rows, encoder `bias` `[F]`, `shift` and decoder `bias` `[d]`.
    """

    name: str

    def encode_select(
        self, u: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, rule: Rule, among: Tensor | None = None
    ) -> Coded:
        """Codes `max(0, (u - shift) weight^T + bias)` (no max where the rule is signed) where the rule keeps them.

        Args:
            u: inputs.
            weight: encoder rows.
            bias: encoder bias.
            shift: subtracted from the inputs.
            rule: which entries are kept.
            among: `[m]` int64 latents; only they take part (for losses on dead latents).
        """
        ...

    def select(self, pre: Tensor, rule: Rule) -> Coded:
        """The same from pre-activations `[n, F]` of an encoder that is not one matrix product."""
        ...

    def decode(self, codes: Coded, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`codes @ weight + bias`, `[n, d]`."""
        ...

    def reconstruct(
        self, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decodes and compares with the inputs, in one pass where the tier can.

        Args:
            u: `[n, d]` inputs.
            codes: of the inputs.
            weight: `[F, d]` atoms.
            bias: `[d]` of the decoder.
            nesting: several reconstructions from parts of the codes; None takes one from all.

        Returns:
            The reconstruction from all codes `[n, d]`, detached, and the losses `[n]`, differentiable: the mean over
            dimensions of the squared error, averaged over levels by their weights.
        """
        ...
