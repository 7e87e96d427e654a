"""The fused tier: `Eager` with compiled kernels, and gradients of large parameters that never exist as tensors.

What `Eager` writes into a gradient `[F, d]`, this tier keeps as sparse contributions (`Part`) of parameters that were
`adopt`ed, until `Adam` consumes them row by row. Parameters that were not adopted get ordinary gradients.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from visae.ops.eager import Eager
from visae.ops.kernels import Kernels, Part
from visae.ops.nesting import Nesting
from visae.ops.rules import Above, BatchTopK, Rule, TopK
from visae.ops.sparse import Coded, Pattern, Ragged, gather_sum

COMPILED = (TopK, BatchTopK, Above)
"""Rules that the kernels know; others are applied by stock torch."""
Place = tuple[torch.device, int, int, int]
"""Device and shape of room that is lent."""


class _Reconstructed(torch.autograd.Function):
    """Losses of (nested) reconstructions; the kernel leaves their gradient behind on its way."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        values: Tensor,
        atoms: Tensor,
        bias: Tensor,
        pattern: Pattern,
        level: Tensor | None,
        shares: list[float],
        ops: "Fused",
    ) -> tuple[Tensor, Tensor]:
        recon, errors, to_values, losses = ops.kernels.reconstruct(
            u, values, pattern, level, shares, atoms, bias, ops.lend(u, len(shares))
        )
        ctx.pattern, ctx.level, ctx.ops = pattern, level, ops
        ctx.save_for_backward(values, atoms, errors, to_values)
        ctx.mark_non_differentiable(recon)
        return recon, losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[1].contiguous()
        values, atoms, errors, to_values = ctx.saved_tensors
        wants_u, wants_values, wants_atoms, wants_bias = ctx.needs_input_grad[:4]
        per_entry = grad[ctx.pattern.rows]
        to_atoms = None
        if wants_atoms:
            levels = errors.shape[1]
            inputs = errors.view(-1, errors.shape[2])
            to_atoms = ctx.ops.row_gradients(atoms, inputs, ctx.pattern, values * per_entry, ctx.level, levels)
        return (
            -grad[:, None] * errors[:, 0] if wants_u else None,
            to_values * per_entry if wants_values else None,
            to_atoms,
            grad @ errors[:, 0] if wants_bias else None,
            None,
            None,
            None,
            None,
        )


class Fused(Eager):
    """See the module.

    Encoder biases are not part of the product: the selection adds them on its way, which saves a pass.

    Args:
        kernels: compiled kernels.
        precision: of the encoder's matrix product, see `Eager`.
    """

    product_has_bias = False

    def __init__(self, kernels: Kernels, precision: str = "fp32"):
        super().__init__(precision)
        self.kernels = kernels
        self.name = kernels.name
        self._adopted: dict[int, tuple[Tensor, list[Part]]] = {}
        self._halves: dict[int, tuple[tuple[int, int], Tensor]] = {}
        self._spare: dict[Place, Tensor] = {}
        self._lent: dict[Place, Tensor] = {}

    # -- gradients of adopted parameters

    def adopt(self, parameters: Iterable[Tensor]) -> None:
        """Keeps the sparse gradients of these `[F, d]` parameters until `take` is called for each, every step."""
        self._adopted = {id(parameter): (parameter, []) for parameter in parameters}

    def take(self, parameter: Tensor) -> list[Part]:
        """What has come together for an adopted parameter since the last time."""
        parts = list(self._adopted[id(parameter)][1])
        self._adopted[id(parameter)][1].clear()
        return parts

    def _home(self, weight: Tensor) -> int | None:
        """Which adopted parameter this tensor is; compared by memory, since autograd hands out other objects."""
        place = weight.data_ptr()
        return next((key for key, (own, _) in self._adopted.items() if own.data_ptr() == place), None)

    def lend(self, u: Tensor, levels: int) -> Tensor:
        """Room `[n, levels, d]` for errors of inputs `[n, d]`, until the update; touching new pages costs more."""
        key = (u.device, u.shape[0], levels, u.shape[1])
        room = self._spare.pop(key, None)
        self._lent[key] = u.new_empty(key[1:]) if room is None else room
        return self._lent[key]

    def reclaim(self) -> None:
        """Takes back what was lent: the update is done."""
        self._spare.update(self._lent)
        self._lent.clear()

    def half(self, weight: Tensor) -> Tensor:
        """A bfloat16 copy of a weight, made anew only where the weight changed in another way than by `Adam`."""
        home = self._home(weight)
        if home is None:
            return super().half(weight)
        stamp, copy = self._halves.get(home, (None, None))
        if copy is None or stamp != (weight.data_ptr(), weight._version):
            copy = super().half(weight.detach())
            self._halves[home] = ((weight.data_ptr(), weight._version), copy)
        return copy

    def half_of(self, parameter: Tensor) -> Tensor | None:
        """The copy that `half` keeps of a parameter, for the update to write; None where there is none."""
        found = self._halves.get(id(parameter))
        return None if found is None else found[1]

    def row_gradients(
        self,
        weight: Tensor,
        inputs: Tensor,
        pattern: Pattern,
        factors: Tensor,
        level: Tensor | None = None,
        levels: int = 1,
    ) -> Tensor | None:
        """See `Eager.row_gradients`; None, and a contribution kept, where the weight was adopted.

        Args:
            weight: whose gradient it is.
            inputs: `[n * levels, d]`.
            pattern: of the codes.
            factors: `[m]`, in the pattern's order.
            level: `[m]` which of a row's inputs an entry takes; None where there is one.
            levels: inputs per row.
        """
        if not self._able(inputs):
            return super().row_gradients(weight, inputs, pattern, factors)
        if "by_latent" not in vars(pattern):
            pattern.by_latent = self.kernels.transpose(pattern)
        order, rows, ends = pattern.by_latent
        if level is not None:
            rows = rows * levels + level[order].to(torch.int32)
        part = Part(ends, rows, factors[order], inputs)
        home = self._home(weight)
        if home is None:
            return gather_sum(inputs, rows, ends, part.factors)
        self._adopted[home][1].append(part)
        return None

    # -- kernels

    @staticmethod
    def _able(*tensors: Tensor) -> bool:
        """Whether the kernels take these: float32 (float64 in tests goes the eager way)."""
        return all(t.dtype == torch.float32 for t in tensors)

    def _selected(
        self, x: Tensor, weight: Tensor, bias: Tensor, rule: Rule, ready: Tensor | None
    ) -> tuple[Pattern, Tensor]:
        if not self._able(x, weight):
            return super()._selected(x, weight, bias, rule, ready)
        pre = self._buffer(x, weight.shape[0]) if ready is None else ready
        if ready is None:
            torch.mm(x.to(pre.dtype), (self.half(weight) if pre.dtype == torch.bfloat16 else weight).T, out=pre)
        if isinstance(rule, COMPILED):
            pattern = self._pick(pre, bias, rule)
        else:
            pattern = rule.pick(pre + bias.to(pre.dtype))
        if pre.dtype == x.dtype:
            values = pre.view(-1)[pattern.rows * pre.shape[1] + pattern.columns]
        else:
            values = self.kernels.dots(x, weight.contiguous(), pattern)
        return pattern, values + bias[pattern.columns]

    def _pick(self, pre: Tensor, bias: Tensor, rule: TopK | BatchTopK | Above) -> Pattern:
        if isinstance(rule, Above):
            return self.kernels.above(pre, bias, rule.threshold.detach().float().expand_as(bias).contiguous())
        if isinstance(rule, BatchTopK):
            return self.kernels.top_of_batch(pre, bias, rule.count(pre), rule.signed)
        k = min(rule.k, pre.shape[1])
        return Pattern.rectangular(self.kernels.top(pre, bias, k, rule.signed), pre.shape[1])

    def select(self, pre: Tensor, rule: Rule) -> Coded:
        """See `visae.ops.base.Ops`."""
        if not self._able(pre) or not isinstance(rule, COMPILED):
            return super().select(pre, rule)
        pattern = self._pick(pre.detach().contiguous(), pre.new_zeros(pre.shape[1]), rule)
        values = pre[pattern.rows, pattern.columns]
        return Ragged(pattern, values if rule.signed else values.relu())

    def _dots(self, left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
        if self._able(left, right):
            return self.kernels.dots(left.contiguous(), right.contiguous(), pattern)
        return super()._dots(left, right, pattern)

    def reconstruct(
        self, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `visae.ops.base.Ops`."""
        if not isinstance(codes, Ragged) or not self._able(u, codes.values, weight):
            return super().reconstruct(u, codes, weight, bias, nesting)
        pattern, values, level, shares = codes.pattern, codes.values, None, [1.0]
        if nesting is not None:
            level, shares = nesting.levels(codes), nesting.shares()
            pattern, values, level = _by_level(pattern, values, level)
        return _Reconstructed.apply(  # type: ignore[no-any-return]
            u.contiguous(), values.contiguous(), weight.contiguous(), bias, pattern, level, shares, self
        )


def _by_level(pattern: Pattern, values: Tensor, level: Tensor) -> tuple[Pattern, Tensor, Tensor]:
    """The entries of each row in the order of their levels."""
    order = pattern.sorted(level)
    return Pattern(pattern.columns[order], pattern.offsets, pattern.n_latents), values[order], level[order]
