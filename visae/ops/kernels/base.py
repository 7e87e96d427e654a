"""What a set of compiled kernels offers to the fused tier; `visae/ops/reference.py` defines the results."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from visae.ops.sparse import Pattern


@dataclass(frozen=True)
class Part:
    """A sparse contribution to the gradient of a parameter `[F, d]`.

    Row j of the gradient gets the sum over its entries e of `factors[e] * inputs[rows[e]]`.

    Attributes:
        ends: `[F + 1]` int32; the entries of latent j are `ends[j]:ends[j + 1]`.
        rows: `[m]` int32 row of `inputs`.
        factors: `[m]` float32.
        inputs: `[r, d]` float32.
    """

    ends: Tensor
    rows: Tensor
    factors: Tensor
    inputs: Tensor


class Kernels(Protocol):
    """Float32 tensors, contiguous, on one device; `pre` may be bfloat16."""

    name: str

    def top(self, pre: Tensor, bias: Tensor, k: int, by_size: bool) -> Tensor:
        """Columns `[n, k]` int64, rising, of the k largest entries (by absolute value: `by_size`) of `pre + bias`.

        `pre` is `[n, F]`, `bias` `[F]` float32; adding it here is free, and a pass of its own over `pre` is not.
        """
        ...

    def top_of_batch(self, pre: Tensor, bias: Tensor, count: int, by_size: bool) -> Pattern:
        """The `count` largest entries of the whole of `pre + bias`."""
        ...

    def above(self, pre: Tensor, bias: Tensor, threshold: Tensor) -> Pattern:
        """The entries of `pre + bias` that exceed the threshold `[F]` of their latent."""
        ...

    def dots(self, left: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        """`<left[row], table[column]>` of each entry, `[m]`, from `[n, d]` and `[F, d]`."""
        ...

    def reconstruct(
        self,
        u: Tensor,
        values: Tensor,
        pattern: Pattern,
        level: Tensor | None,
        shares: list[float],
        atoms: Tensor,
        bias: Tensor,
        errors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nested reconstructions and the gradient of their losses, in one pass over the atoms.

        Args:
            u: `[n, d]` inputs.
            values: `[m]` codes.
            pattern: of the codes; entries of a row in the order of their levels.
            level: `[m]` int64 first reconstruction that uses an entry; None where there is one for all.
            shares: weight of each reconstruction.
            atoms: `[F, d]`.
            bias: `[d]`.
            errors: `[n, levels, d]` room for the second result.

        Returns:
            The last reconstruction `[n, d]`; `errors`: the gradient of a row's loss with respect to what entries of
            each level add; its gradient `[m]` with respect to the codes; the losses `[n]`.
        """
        ...

    def transpose(self, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """`Pattern.by_latent`: order `[m]`, rows `[m]`, ends `[F + 1]`, all int32."""
        ...

    def update(
        self,
        weight: Tensor,
        first: Tensor,
        second: Tensor,
        parts: list[Part],
        dense: Tensor | None,
        copy: Tensor | None,
        unit: bool,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        count: int,
    ) -> None:
        """A step of Adam on a parameter `[F, d]`, row after row, in place; no gradient of its size is made.

        Args:
            weight: the parameter.
            first: its first moment.
            second: its second moment.
            parts: sparse contributions to its gradient.
            dense: `[F, d]` dense one; None where there is none.
            copy: `[F, d]` bfloat16 that follows the parameter; None where nobody wants it.
            unit: whether rows keep length 1; their gradients are then projected first.
            lr: learning rate.
            betas: decay of the moments.
            eps: added to the root of the second moment.
            count: steps so far, this one included.
        """
        ...
