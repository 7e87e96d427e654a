"""The fast tier of stock torch operations: no graph over `[n, F]`, gradients from the k entries of a row only.

One dense product is left per step, the encoder's. Its result goes into a buffer that lives as long as the trainer,
in bfloat16 where the machine multiplies that faster; the values kept are then computed again in float32, so bfloat16
decides only which latents are kept, among near-ties.
"""

from typing import Any

import torch
from torch import Tensor

from visae.ops.nesting import Nesting, add_up
from visae.ops.rules import Rule
from visae.ops.sparse import Coded, Dense, Pattern, Ragged, gather_sum


def entry_dots(left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
    """`<left[row], right[column]>` for every entry of a pattern, `[m]`, without gathering rows.

    This is what torch computes for the gradient of `per_sample_weights` of an embedding bag; measured here 5 to 18
    times faster than a gather and a batched product.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, right, pattern.columns, pattern.offsets[:-1], pattern.rows, 0
    )


class _Encoded(torch.autograd.Function):
    """Values picked out of a linear encoder (`x` is `u - shift`), with the sparse backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        _u: Tensor,
        weight: Tensor,
        _bias: Tensor,
        _shift: Tensor,
        x: Tensor,
        pattern: Pattern,
        values: Tensor,
        ops: "Eager",
    ) -> Tensor:
        ctx.pattern, ctx.ops = pattern, ops
        ctx.save_for_backward(x, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wants_u, wants_weight, wants_bias, wants_shift = ctx.needs_input_grad[:4]
        pattern, grad = ctx.pattern, grad.contiguous()
        to_u = gather_sum(weight, pattern.columns, pattern.offsets, grad) if wants_u else None
        to_weight = ctx.ops.row_gradients(weight, x, pattern, grad) if wants_weight else None
        summed = torch.zeros_like(weight[:, 0]).index_add_(0, pattern.columns, grad)
        # every row of the batch sees the same shift: one matrix-vector product instead of a dense one
        to_shift = -(summed @ weight) if wants_shift else None
        return to_u, to_weight, summed if wants_bias else None, to_shift, None, None, None, None


class _Decoded(torch.autograd.Function):
    """Sparse codes times a dictionary, with the sparse backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern, ops: "Eager") -> Tensor:
        ctx.pattern, ctx.ops = pattern, ops
        ctx.save_for_backward(values, weight)
        return gather_sum(weight, pattern.columns, pattern.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        values, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_values = ctx.ops._dots(grad, weight, ctx.pattern) if ctx.needs_input_grad[0] else None
        to_weight = ctx.ops.row_gradients(weight, grad, ctx.pattern, values) if ctx.needs_input_grad[1] else None
        return to_values, to_weight, None, None


class Ready:
    """Pre-activations `[n, F]` that were computed elsewhere, for the first inputs that ask for theirs."""

    def __init__(self, pre: Tensor):
        self._pre = pre
        self._u: Tensor | None = None

    def take(self, u: Tensor) -> Tensor | None:
        """Those of `u`; None for other inputs."""
        self._u = u if self._u is None else self._u
        return self._pre if self._u is u else None


class Eager:
    """Sparse forward and backward from stock torch operations.

    Args:
        precision: `fp32` or `bf16`, of the encoder's matrix product; inputs of another dtype than float32 (float64 in
            tests) are multiplied as they are.

    Attributes:
        ready: pre-activations of the coming batch, where a `visae.ops.stack.Stack` has computed them.
        product_has_bias: whether these hold the encoder's bias.
    """

    name = "eager"
    product_has_bias = True

    def __init__(self, precision: str = "fp32"):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision of the encoder product is fp32 or bf16, got {precision!r}")
        self.precision = precision
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.ready: Ready | None = None

    def product_dtype(self, inputs: torch.dtype) -> torch.dtype:
        """Dtype in which inputs of a dtype are multiplied with the encoder's weight."""
        return torch.bfloat16 if self.precision == "bf16" and inputs == torch.float32 else inputs

    def _selected(
        self, x: Tensor, weight: Tensor, bias: Tensor, rule: Rule, ready: Tensor | None
    ) -> tuple[Pattern, Tensor]:
        """Entries of `x weight^T + bias` (or `ready`, if that was computed) that the rule keeps, and their values."""
        pre = self._buffer(x, weight.shape[0]) if ready is None else ready
        if ready is None:
            rows = self.half(weight) if pre.dtype == torch.bfloat16 else weight.to(pre.dtype)
            torch.addmm(bias.to(pre.dtype), x.to(pre.dtype), rows.T, out=pre)
        pattern = rule.pick(pre)
        if pre.dtype == x.dtype:
            return pattern, pre.view(-1)[pattern.rows * pre.shape[1] + pattern.columns]
        return pattern, entry_dots(x, weight, pattern) + bias[pattern.columns]

    def _buffer(self, x: Tensor, width: int) -> Tensor:
        """Room for pre-activations `[n, width]`, overwritten by the next call: new pages would double the cost."""
        dtype, size = self.product_dtype(x.dtype), x.shape[0] * width
        buffer = self._buffers.get((dtype, x.device))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[dtype, x.device] = torch.empty(size, dtype=dtype, device=x.device)
        return buffer[:size].view(x.shape[0], width)

    def half(self, weight: Tensor) -> Tensor:
        """A bfloat16 copy of a weight."""
        return weight.to(torch.bfloat16)

    def row_gradients(self, _weight: Tensor, inputs: Tensor, pattern: Pattern, factors: Tensor) -> Tensor | None:
        """`[F, d]` gradient: row j is the sum over the entries e of latent j of `factors[e] * inputs[row of e]`."""
        order, rows, offsets = pattern.by_latent
        return gather_sum(inputs, rows, offsets, factors[order])

    def _dots(self, left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
        return entry_dots(left, right, pattern)

    def encode_select(
        self, u: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, rule: Rule, among: Tensor | None = None
    ) -> Coded:
        """See `visae.ops.base.Ops`."""
        with torch.no_grad():
            x = u - shift
            rows, offset = (weight, bias) if among is None else (weight[among], bias[among])
            ready = None if among is not None or self.ready is None else self.ready.take(u)
            pattern, values = self._selected(x, rows, offset, rule, ready)
            if among is not None:
                pattern = Pattern(among[pattern.columns], pattern.offsets, weight.shape[0])
        values = _Encoded.apply(u, weight, bias, shift, x, pattern, values, self)
        return Ragged(pattern, values if rule.signed else values.relu())

    def select(self, pre: Tensor, rule: Rule) -> Coded:
        """See `visae.ops.base.Ops`."""
        pattern = rule.pick(pre.detach())
        values = pre[pattern.rows, pattern.columns]
        return Ragged(pattern, values if rule.signed else values.relu())

    def decode(self, codes: Coded, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `visae.ops.base.Ops`."""
        out = (
            codes.values @ weight
            if isinstance(codes, Dense)
            else _Decoded.apply(codes.values, weight, codes.pattern, self)
        )
        return out if bias is None else out + bias

    def reconstruct(
        self, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `visae.ops.base.Ops`."""
        return add_up(self, u, codes, weight, bias, nesting)
