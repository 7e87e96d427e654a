"""The kernels of `kernels.cpp` for machines without a compiler, by numba; same results up to rounding.

Each function is compiled on first use, which takes some seconds, and kept in numba's cache.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from visae.ops.kernels import jit_rows, jit_select
from visae.ops.kernels.base import Part
from visae.ops.kernels.compiled import Array
from visae.ops.sparse import Pattern, gather_sum


def _bits(pre: Tensor) -> tuple[Array, bool]:
    half = pre.dtype == torch.bfloat16
    return (pre.view(torch.int16) if half else pre).detach().numpy(), half


def _array(tensor: Tensor | None, empty: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return np.empty(empty, dtype) if tensor is None else tensor.detach().numpy()


def _threads() -> int:
    """Lets numba use as many threads as torch does; returns how many."""
    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(count)
    return count


def _entries(part: Part) -> tuple[Array, ...]:
    return tuple(t.detach().numpy() for t in (part.ends, part.rows, part.factors, part.inputs))


class Numba:
    """See `visae.ops.kernels.base.Kernels`."""

    name = "numba"

    def __init__(self) -> None:
        # numba's first launch sets the number of OpenMP's threads, which are torch's too: it has to be put back
        threads = torch.get_num_threads()
        one = torch.zeros(1, 1)
        self.dots(one, one, Pattern.rectangular(one.long(), 1))
        torch.set_num_threads(threads)

    def top(self, pre: Tensor, bias: Tensor, k: int, by_size: bool) -> Tensor:
        """See `Kernels`."""
        out = np.empty((pre.shape[0], k), np.int64)
        bits, half = _bits(pre)
        jit_select.top(bits, bias.detach().numpy(), k, by_size, half, out, 4 * _threads())
        return torch.from_numpy(out)

    def top_of_batch(self, pre: Tensor, bias: Tensor, count: int, by_size: bool) -> Pattern:
        """See `Kernels`."""
        (n, width), chunks = pre.shape, 4 * _threads()
        (bits, half), shift = _bits(pre), bias.detach().numpy()
        best = np.empty((n, -(-width // 64)), np.float32)
        jit_select.batch_maxima(bits, shift, by_size, half, best)
        cut = -np.inf if best.size < count else np.partition(best, best.size - count, axis=None)[best.size - count]
        offsets = np.zeros(n + 1, np.int64)
        found, columns = np.empty(0, np.float32), np.empty(0, np.int64)
        jit_select.above(bits, shift, by_size, half, np.float32(cut), offsets, False, found, columns, chunks)
        offsets = offsets.cumsum()
        found, columns = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.int64)
        jit_select.above(bits, shift, by_size, half, np.float32(cut), offsets, True, found, columns, chunks)
        keep = np.ones(found.size, bool)
        if found.size > count:
            cut = np.partition(found, found.size - count)[found.size - count]
            ties = np.flatnonzero(found == cut)
            keep = found > cut
            keep[ties[: count - keep.sum()]] = True
        kept = np.concatenate([[0], keep.cumsum()])[offsets]
        return Pattern(torch.from_numpy(columns[keep]), torch.from_numpy(kept), width)

    def above(self, pre: Tensor, bias: Tensor, threshold: Tensor) -> Pattern:
        """See `Kernels`."""
        (n, width), chunks = pre.shape, 4 * _threads()
        (bits, half), shift, limit = _bits(pre), bias.detach().numpy(), threshold.numpy()
        offsets = np.zeros(n + 1, np.int64)
        jit_select.over(bits, shift, limit, half, offsets, False, np.empty(0, np.int64), chunks)
        offsets = offsets.cumsum()
        columns = np.empty(offsets[-1], np.int64)
        jit_select.over(bits, shift, limit, half, offsets, True, columns, chunks)
        return Pattern(torch.from_numpy(columns), torch.from_numpy(offsets), width)

    def dots(self, left: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        """See `Kernels`."""
        out = np.empty(pattern.columns.shape[0], np.float32)
        _threads()
        jit_rows.dots(
            left.detach().numpy(), table.detach().numpy(), pattern.columns.numpy(), pattern.offsets.numpy(), out
        )
        return torch.from_numpy(out)

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
        recon, to_values, losses = torch.empty_like(u), torch.empty_like(values), torch.empty(u.shape[0])
        _threads()
        jit_rows.reconstruct(
            u.detach().numpy(), values.detach().numpy(), pattern.columns.numpy(), pattern.offsets.numpy(),
            _array(level, (0,), np.int64), np.asarray(shares, np.float32), atoms.detach().numpy(),
            bias.detach().numpy(), recon.numpy(), errors.numpy(), to_values.numpy(), losses.numpy(),
        )  # fmt: skip
        return recon, errors, to_values, losses

    def transpose(self, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        m, width = pattern.columns.shape[0], pattern.n_latents
        order, rows, ends = (torch.empty(size, dtype=torch.int32) for size in (m, m, width + 1))
        jit_rows.transpose(pattern.columns.numpy(), pattern.offsets.numpy(), order.numpy(), rows.numpy(), ends.numpy())
        return order, rows, ends

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
        none = Part(
            torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0), torch.zeros(0, d)
        )
        main, more, *rest = [*parts, *[none] * (2 - len(parts))]
        for part in rest:  # numba takes two at a time
            extra = gather_sum(part.inputs, part.rows, part.ends, part.factors)
            dense = extra if dense is None else dense + extra
        if main is none:
            main = Part(torch.zeros(width + 1, dtype=torch.int32), none.rows, none.factors, none.inputs)
        low, high = betas
        jit_rows.update(
            weight.detach().numpy(), first.numpy(), second.numpy(), _array(dense, (0, d)),
            _array(None if copy is None else copy.view(torch.uint16), (0, d), np.uint16),
            *_entries(main), *_entries(more), unit,
            *(np.float32(x) for x in (lr, low, high, eps, 1 / (1 - low**count), 1 / (1 - high**count))), 4 * _threads(),
        )  # fmt: skip
