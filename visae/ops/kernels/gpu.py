"""The kernels of a step for GPUs, in Triton; one program per row of the batch, or per latent in the update.

Rows live in registers from the first read to the last write, and no kernel waits for the host. Without a GPU they run
in Triton's interpreter (`TRITON_INTERPRET=1`), which is how they are tested.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visae.ops.kernels.base import Part
from visae.ops.nesting import constant
from visae.ops.rules import Above, BatchTopK
from visae.ops.sparse import Pattern, gather_sum

WIDEST = 65_536
"""Longest row that a program keeps in registers; wider ones are searched by stock torch."""


@triton.jit
def _top(pre, bias, out, width, k, BY_SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The k largest of a row: the k-th key is found bit by bit, counting how many reach each trial."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(pre + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias + columns, mask=inside, other=0.0)
    if BY_SIZE:
        x = tl.abs(x)
    bits = x.to(tl.int32, bitcast=True)
    # unsigned keys in the order of the values; 0 is below every number
    key = tl.where(bits >= 0, bits ^ -2147483648, ~bits).to(tl.uint32, bitcast=True)
    key = tl.where(inside, tl.maximum(key, 1), 0)
    cut, bit = tl.full((), 0, tl.uint32), tl.full((), 2147483648, tl.uint32)
    for _ in range(32):
        trial = cut | bit
        cut = tl.where(tl.sum((key >= trial).to(tl.int32)) >= k, trial, cut)
        bit = bit >> 1
    above, tie = key > cut, key == cut
    room = k - tl.sum(above.to(tl.int32))
    keep = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= room))
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(out + row * k + place, columns.to(tl.int64), mask=keep)


@triton.jit
def _dots(left, table, columns, offsets, out, d, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside = dims < d
    x = tl.load(left + row * d + dims, mask=inside, other=0.0)
    for e in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        atom = tl.load(table + tl.load(columns + e) * d + dims, mask=inside, other=0.0)
        tl.store(out + e, tl.sum(x * atom))


@triton.jit
def _reconstruct(  # type: ignore[no-untyped-def]
    u, values, columns, cuts, shares, atoms, bias, recon, errors, to_values, losses, d,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `visae_reconstruct` in kernels.cpp; `cuts` `[n, LEVELS + 1]` says where the entries of each level begin."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside = dims < d
    total = tl.load(bias + dims, mask=inside, other=0.0)
    x = tl.load(u + row * d + dims, mask=inside, other=0.0)
    mine, own = cuts + row * (LEVELS + 1), errors + row * LEVELS * d
    loss = tl.full((), 0.0, tl.float32)
    for level in range(LEVELS):
        for e in range(tl.load(mine + level), tl.load(mine + level + 1)):
            atom = tl.load(atoms + tl.load(columns + e) * d + dims, mask=inside, other=0.0)
            total += tl.load(values + e) * atom
        miss, share = total - x, tl.load(shares + level)
        loss += share * tl.sum(miss * miss) / d
        tl.store(own + level * d + dims, miss * share * 2 / d, mask=inside)
    tl.store(recon + row * d + dims, total, mask=inside)
    tl.store(losses + row, loss)
    rest = tl.zeros((BLOCK,), tl.float32)
    for back in range(LEVELS):
        level = LEVELS - 1 - back
        rest += tl.load(own + level * d + dims, mask=inside, other=0.0)
        tl.store(own + level * d + dims, rest, mask=inside)
        for e in range(tl.load(mine + level), tl.load(mine + level + 1)):
            atom = tl.load(atoms + tl.load(columns + e) * d + dims, mask=inside, other=0.0)
            tl.store(to_values + e, tl.sum(rest * atom))


@triton.jit
def _gathered(g, ends, rows, factors, inputs, latent, dims, inside, d):  # type: ignore[no-untyped-def]
    for e in range(tl.load(ends + latent), tl.load(ends + latent + 1)):
        source = tl.load(rows + e).to(tl.int64)
        g += tl.load(factors + e) * tl.load(inputs + source * d + dims, mask=inside, other=0.0)
    return g


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    weight, first, second, dense, copy, ends, rows, factors, inputs, more_ends, more_rows, more_factors, more_inputs,
    d, lr, low, high, eps, first_scale, second_scale,
    PARTS: tl.constexpr, DENSE: tl.constexpr, COPY: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside, at = dims < d, latent * d + dims
    g = tl.zeros((BLOCK,), tl.float32)
    if DENSE:
        g += tl.load(dense + at, mask=inside, other=0.0)
    if PARTS > 0:
        g = _gathered(g, ends, rows, factors, inputs, latent, dims, inside, d)
    if PARTS > 1:
        g = _gathered(g, more_ends, more_rows, more_factors, more_inputs, latent, dims, inside, d)
    w = tl.load(weight + at, mask=inside, other=0.0)
    if UNIT:
        g -= tl.sum(g * w) * w
    m = low * tl.load(first + at, mask=inside, other=0.0) + (1 - low) * g
    v = high * tl.load(second + at, mask=inside, other=0.0) + (1 - high) * g * g
    w -= lr * (m * first_scale) / (tl.sqrt(v * second_scale) + eps)
    w = tl.where(inside, w, 0.0)
    if UNIT:
        w /= tl.maximum(tl.sqrt(tl.sum(w * w)), 1e-38)
    tl.store(weight + at, w, mask=inside)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    if COPY:
        bits = w.to(tl.int32, bitcast=True)
        tl.store(copy + at, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=inside)


class Triton:
    """See `visae.ops.kernels.base.Kernels`."""

    name = "triton"

    def top(self, pre: Tensor, bias: Tensor, k: int, by_size: bool) -> Tensor:
        """See `Kernels`."""
        n, width = pre.shape
        if width > WIDEST:
            key = pre + bias
            return (key.abs() if by_size else key).topk(k, dim=1, sorted=False).indices
        out = torch.empty(n, k, dtype=torch.int64, device=pre.device)
        block = triton.next_power_of_2(width)
        _top[(n,)](pre, bias.detach(), out, width, k, by_size, block, num_warps=min(32, max(4, block // 1024)))
        return out

    def top_of_batch(self, pre: Tensor, bias: Tensor, count: int, by_size: bool) -> Pattern:
        """See `Kernels`; by stock torch."""
        return BatchTopK(count / pre.shape[0], by_size).pick(pre + bias)

    def above(self, pre: Tensor, bias: Tensor, threshold: Tensor) -> Pattern:
        """See `Kernels`; by stock torch, which must ask the device how many there are."""
        return Above(threshold).pick(pre + bias)

    def dots(self, left: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        """See `Kernels`."""
        out = left.new_empty(pattern.columns.shape[0])
        d = left.shape[1]
        _dots[(pattern.n_rows,)](
            left, table.detach(), pattern.columns, pattern.offsets, out, d, triton.next_power_of_2(d)
        )
        return out

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
        """See `Kernels`."""
        (n, d), levels = u.shape, len(shares)
        recon, to_values, losses = torch.empty_like(u), torch.empty_like(values), u.new_empty(n)
        if level is None:
            cuts = torch.stack([pattern.offsets[:-1], pattern.offsets[1:]], 1)
        else:
            counts = torch.zeros(n * levels, dtype=torch.int64, device=u.device)
            counts.index_add_(0, pattern.rows * levels + level, torch.ones_like(level))
            cuts = pattern.offsets[:-1, None] + torch.nn.functional.pad(counts.view(n, levels).cumsum(1), (1, 0))
        _reconstruct[(n,)](
            u, values.detach(), pattern.columns, cuts.contiguous(), constant(tuple(shares), u.dtype, u.device),
            atoms.detach(), bias.detach(), recon, errors, to_values, losses, d, levels, triton.next_power_of_2(d),
        )  # fmt: skip
        return recon, errors, to_values, losses

    def transpose(self, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`; by a stable sort, so that sums have one order."""
        columns, order = torch.sort(pattern.columns.to(torch.int32), stable=True)
        bounds = torch.arange(pattern.n_latents + 1, dtype=torch.int32, device=columns.device)
        ends = torch.searchsorted(columns, bounds, out_int32=True)
        return order.to(torch.int32), pattern.rows[order].to(torch.int32), ends

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
        """See `Kernels`."""
        width, d = weight.shape
        for part in parts[2:]:  # the kernel takes two
            extra = gather_sum(part.inputs, part.rows, part.ends, part.factors)
            dense = extra if dense is None else dense + extra
        taken: list[Any] = [[p.ends, p.rows, p.factors.detach(), p.inputs.detach()] for p in parts[:2]]
        filled = [*taken, *[[weight.detach()] * 4] * (2 - len(taken))]  # never read
        low, high = betas
        _update[(width,)](
            weight.detach(), first, second, weight.detach() if dense is None else dense,
            weight.detach() if copy is None else copy.view(torch.int16), *filled[0], *filled[1], d,
            lr, low, high, eps, 1 / (1 - low**count), 1 / (1 - high**count),
            len(taken), dense is not None, copy is not None, unit, triton.next_power_of_2(d),
        )  # fmt: skip
