"""The kernels of `kernels.cpp` for machines without a compiler, by numba; same results up to rounding.

bfloat16 comes in as its bits, int16. Each function is compiled on first use, which takes some seconds, and kept in
numba's cache.
"""

from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from visae.ops.kernels.base import Part
from visae.ops.sparse import Pattern, gather_sum

Array = Any
"""A numpy array inside compiled code."""
FLAGS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity mean what they mean
jit: Any = njit(parallel=True, fastmath=FLAGS, cache=True, error_model="numpy")
inline: Any = njit(fastmath=FLAGS, cache=True, inline="always", error_model="numpy")
part_of_jit: Any = njit(fastmath=FLAGS, cache=True, error_model="numpy")


@inline
def _half(bits: Any, bias: Any, by_size: bool) -> Any:
    """What an entry is ranked by: its value, from the bits of a bfloat16, with its bias; or the size of that."""
    x = np.int32(np.int32(bits) << np.int32(16)).view(np.float32) + bias
    return abs(x) if by_size else x


@inline
def _single(value: Any, bias: Any, by_size: bool) -> Any:
    """The same for float32."""
    x = value + bias
    return abs(x) if by_size else x


@part_of_jit
def _keys(row: Array, bias: Array, by_size: bool, half: bool, keys: Array) -> None:
    """Keys of a whole row."""
    if half:
        for i in range(row.shape[0]):
            keys[i] = _half(row[i], bias[i], by_size)
    else:
        for i in range(row.shape[0]):
            keys[i] = _single(row[i], bias[i], by_size)


@part_of_jit
def _group_maxima(row: Array, bias: Array, by_size: bool, half: bool, stride: int, best: Array) -> None:
    """Group j holds the j-th entry of each segment of `stride` columns: its maxima need no sum across a register."""
    for j in range(stride):
        best[j] = -np.inf
    for first in range(0, row.shape[0], stride):
        n = min(stride, row.shape[0] - first)
        x, b = row[first : first + n], bias[first : first + n]
        if half:
            for j in range(n):
                key = _half(x[j], b[j], by_size)
                best[j] = key if key > best[j] else best[j]
        else:
            for j in range(n):
                key = _single(x[j], b[j], by_size)
                best[j] = key if key > best[j] else best[j]


@part_of_jit
def _collect(
    row: Array,
    bias: Array,
    by_size: bool,
    half: bool,
    stride: int,
    best: Array,
    cut: float,
    found: Array,
    columns: Array,
) -> int:
    """Keys of at least `cut` and their columns, looked for only in groups whose maximum is."""
    count = 0
    for j in range(stride):
        if best[j] >= cut:
            for column in range(j, row.shape[0], stride):
                if half:
                    key = _half(row[column], bias[column], by_size)
                else:
                    key = _single(row[column], bias[column], by_size)
                found[count] = key
                columns[count] = column
                count += key >= cut
    return count


@part_of_jit
def _reached_by(numbers: Array, count: int) -> Any:
    """The value that `count` of the numbers reach; the numbers are reordered (quickselect)."""
    low, high, place = 0, numbers.shape[0] - 1, count - 1
    while low < high:
        pivot = numbers[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return numbers[place]


@part_of_jit
def _keep_largest(found: Array, columns: Array, count: int, scratch: Array, out: Array) -> tuple[int, float]:
    """Keeps the `count` largest, of equal ones the first; returns how many there were, and the smallest kept key."""
    m, cut, ties = found.shape[0], -np.inf, found.shape[0]
    if m >= count:
        scratch[:m] = found
        cut = _reached_by(scratch[:m], count)
        ties = count
        for i in range(m):
            ties -= found[i] > cut
    place = 0
    for i in range(m):
        if found[i] > cut or (found[i] == cut and ties > 0):
            ties -= found[i] == cut
            out[place] = columns[i]
            place += 1
    return place, cut


@jit
def _top(pre: Array, bias: Array, k: int, by_size: bool, half: bool, out: Array, chunks: int) -> None:
    n, width = pre.shape
    segments = 16
    while segments > 1 and width // segments < 4 * k:
        segments //= 2
    stride = (width + segments - 1) // segments
    for chunk in prange(chunks):
        found, scratch = np.empty(width + 1, np.float32), np.empty(width + 1, np.float32)
        columns, best = np.empty(width + 1, np.int32), np.empty(stride, np.float32)
        guess = np.inf
        for r in range(chunk * n // chunks, (chunk + 1) * n // chunks):
            _group_maxima(pre[r], bias, by_size, half, stride, best)
            m = _collect(pre[r], bias, by_size, half, stride, best, guess, found, columns)
            if m < k:  # the k-th largest maximum is reached by at least k entries
                scratch[:stride] = best
                cut = _reached_by(scratch[:stride], k)
                m = _collect(pre[r], bias, by_size, half, stride, best, cut, found, columns)
            kept, cut = _keep_largest(found[:m], columns[:m], k, scratch, out[r])
            for i in range(kept, k):
                out[r, i] = width - 1
            guess = cut - 0.05 * abs(cut)


@jit
def _batch_maxima(pre: Array, bias: Array, by_size: bool, half: bool, best: Array) -> None:
    n = pre.shape[0]
    for r in prange(n):
        _group_maxima(pre[r], bias, by_size, half, best.shape[1], best[r])


@jit
def _above(
    pre: Array, bias: Array, by_size: bool, half: bool, cut: float, offsets: Array, fill: bool,
    found: Array, columns: Array, chunks: int,
) -> None:  # fmt: skip
    """Counts the entries of each row that reach `cut` into `offsets[r + 1]`; with `fill` writes them from there on."""
    n, width = pre.shape
    for chunk in prange(chunks):
        keys = np.empty(width, np.float32)
        for r in range(chunk * n // chunks, (chunk + 1) * n // chunks):
            _keys(pre[r], bias, by_size, half, keys)
            if not fill:
                count = 0
                for i in range(width):
                    count += keys[i] >= cut
                offsets[r + 1] = count
            else:
                place = offsets[r]
                for i in range(width):
                    if keys[i] >= cut:
                        found[place] = keys[i]
                        columns[place] = i
                        place += 1


@jit
def _over(
    pre: Array, bias: Array, threshold: Array, half: bool, offsets: Array, fill: bool, columns: Array, chunks: int
) -> None:
    """Counts the entries of each row above the threshold of their column; with `fill` writes them."""
    n, width = pre.shape
    for chunk in prange(chunks):
        keys = np.empty(width, np.float32)
        for r in range(chunk * n // chunks, (chunk + 1) * n // chunks):
            _keys(pre[r], bias, False, half, keys)
            if not fill:
                count = 0
                for i in range(width):
                    count += keys[i] > threshold[i]
                offsets[r + 1] = count
            else:
                place = offsets[r]
                for i in range(width):
                    if keys[i] > threshold[i]:
                        columns[place] = i
                        place += 1


@inline
def _add(total: Array, factor: float, row: Array) -> None:
    for i in range(total.shape[0]):
        total[i] += factor * row[i]


@inline
def _dot(left: Array, right: Array) -> Any:
    total = np.float32(0)
    for i in range(left.shape[0]):
        total += left[i] * right[i]
    return total


@part_of_jit
def _add4(total: Array, f: Array, a: Array, b: Array, c: Array, e: Array) -> None:
    f0, f1, f2, f3 = f[0], f[1], f[2], f[3]
    for i in range(total.shape[0]):
        total[i] += (f0 * a[i] + f1 * b[i]) + (f2 * c[i] + f3 * e[i])


@part_of_jit
def _dots4(left: Array, a: Array, b: Array, c: Array, e: Array, out: Array) -> None:
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(left.shape[0]):
        s0 += left[i] * a[i]
        s1 += left[i] * b[i]
        s2 += left[i] * c[i]
        s3 += left[i] * e[i]
    out[0], out[1], out[2], out[3] = s0, s1, s2, s3


@part_of_jit
def _row_dots(left: Array, table: Array, columns: Array, out: Array) -> None:
    m = columns.shape[0]
    whole = m // 4 * 4
    for e in range(0, whole, 4):
        _dots4(left, table[columns[e]], table[columns[e + 1]], table[columns[e + 2]], table[columns[e + 3]], out[e:])
    for e in range(whole, m):
        out[e] = _dot(left, table[columns[e]])


@part_of_jit
def _row_sum(total: Array, factors: Array, table: Array, rows: Array) -> None:
    m = rows.shape[0]
    whole = m // 4 * 4
    for e in range(0, whole, 4):
        _add4(total, factors[e:], table[rows[e]], table[rows[e + 1]], table[rows[e + 2]], table[rows[e + 3]])
    for e in range(whole, m):
        _add(total, factors[e], table[rows[e]])


@jit
def _dots(left: Array, table: Array, columns: Array, offsets: Array, out: Array) -> None:
    for r in prange(left.shape[0]):
        _row_dots(left[r], table, columns[offsets[r] : offsets[r + 1]], out[offsets[r] : offsets[r + 1]])


@jit
def _reconstruct(
    u: Array, values: Array, columns: Array, offsets: Array, level: Array, shares: Array, atoms: Array, bias: Array,
    recon: Array, errors: Array, to_values: Array, losses: Array,
) -> None:  # fmt: skip
    n, d = u.shape
    levels = shares.shape[0]
    for r in prange(n):
        total, start, end = recon[r], offsets[r], offsets[r + 1]
        for i in range(d):
            total[i] = bias[i]
        ends = np.empty(levels + 1, np.int64)
        ends[0] = start
        loss = np.float32(0)
        for stage in range(levels):
            stop = end
            if level.shape[0]:
                stop = ends[stage]
                while stop < end and level[stop] <= stage:
                    stop += 1
            ends[stage + 1] = stop
            _row_sum(total, values[ends[stage] : stop], atoms, columns[ends[stage] : stop])
            squares, factor, error = np.float32(0), shares[stage] * np.float32(2 / d), errors[r, stage]
            for i in range(d):
                miss = total[i] - u[r, i]
                squares += miss * miss
                error[i] = factor * miss
            loss += shares[stage] * squares / np.float32(d)
        losses[r] = loss
        for stage in range(levels - 1, -1, -1):
            if stage + 1 < levels:
                _add(errors[r, stage], np.float32(1), errors[r, stage + 1])
            low, high = ends[stage], ends[stage + 1]
            _row_dots(errors[r, stage], atoms, columns[low:high], to_values[low:high])


@part_of_jit
def _transpose(columns: Array, offsets: Array, order: Array, rows: Array, ends: Array) -> None:
    place = np.zeros(ends.shape[0], np.int32)
    for e in range(columns.shape[0]):
        place[columns[e] + 1] += 1
    for j in range(1, place.shape[0]):
        place[j] += place[j - 1]
    ends[:] = place
    for r in range(offsets.shape[0] - 1):
        for e in range(offsets[r], offsets[r + 1]):
            p = place[columns[e]]
            place[columns[e]] += 1
            order[p] = e
            rows[p] = r


@jit
def _update(
    weight: Array, first: Array, second: Array, dense: Array, copy: Array,
    ends: Array, rows: Array, factors: Array, inputs: Array,
    more_ends: Array, more_rows: Array, more_factors: Array, more_inputs: Array, unit: bool,
    lr: float, low: float, high: float, eps: float, first_scale: float, second_scale: float, chunks: int,
) -> None:  # fmt: skip
    width, d = weight.shape
    one = np.float32(1)
    for chunk in prange(chunks):
        g = np.empty(d, np.float32)
        for j in range(chunk * width // chunks, (chunk + 1) * width // chunks):
            w, m, v = weight[j], first[j], second[j]
            if dense.shape[0]:
                g[:] = dense[j]
            else:
                g[:] = 0
            _row_sum(g, factors[ends[j] : ends[j + 1]], inputs, rows[ends[j] : ends[j + 1]])
            if more_ends.shape[0]:
                start, end = more_ends[j], more_ends[j + 1]
                _row_sum(g, more_factors[start:end], more_inputs, more_rows[start:end])
            if unit:
                _add(g, -_dot(g, w), w)
            squares = np.float32(0)
            for i in range(d):
                m[i] = low * m[i] + (one - low) * g[i]
                v[i] = high * v[i] + (one - high) * g[i] * g[i]
                w[i] -= lr * (m[i] * first_scale) / (np.sqrt(v[i] * second_scale) + eps)
                squares += w[i] * w[i]
            if unit:
                scale = one / max(np.sqrt(squares), np.float32(1e-38))
                for i in range(d):
                    w[i] *= scale
            if copy.shape[0]:
                bits = w.view(np.uint32)
                for i in range(d):
                    odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
                    copy[j, i] = (bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16)


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

    def top(self, pre: Tensor, bias: Tensor, k: int, by_size: bool) -> Tensor:
        """See `Kernels`."""
        out = np.empty((pre.shape[0], k), np.int64)
        bits, half = _bits(pre)
        _top(bits, bias.detach().numpy(), k, by_size, half, out, 4 * _threads())
        return torch.from_numpy(out)

    def top_of_batch(self, pre: Tensor, bias: Tensor, count: int, by_size: bool) -> Pattern:
        """See `Kernels`."""
        (n, width), chunks = pre.shape, 4 * _threads()
        (bits, half), shift = _bits(pre), bias.detach().numpy()
        best = np.empty((n, -(-width // 64)), np.float32)
        _batch_maxima(bits, shift, by_size, half, best)
        cut = -np.inf if best.size < count else np.partition(best, best.size - count, axis=None)[best.size - count]
        offsets = np.zeros(n + 1, np.int64)
        found, columns = np.empty(0, np.float32), np.empty(0, np.int64)
        _above(bits, shift, by_size, half, np.float32(cut), offsets, False, found, columns, chunks)
        offsets = offsets.cumsum()
        found, columns = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.int64)
        _above(bits, shift, by_size, half, np.float32(cut), offsets, True, found, columns, chunks)
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
        _over(bits, shift, limit, half, offsets, False, np.empty(0, np.int64), chunks)
        offsets = offsets.cumsum()
        columns = np.empty(offsets[-1], np.int64)
        _over(bits, shift, limit, half, offsets, True, columns, chunks)
        return Pattern(torch.from_numpy(columns), torch.from_numpy(offsets), width)

    def dots(self, left: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        """See `Kernels`."""
        out = np.empty(pattern.columns.shape[0], np.float32)
        _threads()
        _dots(left.detach().numpy(), table.detach().numpy(), pattern.columns.numpy(), pattern.offsets.numpy(), out)
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
        _reconstruct(
            u.detach().numpy(), values.detach().numpy(), pattern.columns.numpy(), pattern.offsets.numpy(),
            _array(level, (0,), np.int64), np.asarray(shares, np.float32), atoms.detach().numpy(),
            bias.detach().numpy(), recon.numpy(), errors.numpy(), to_values.numpy(), losses.numpy(),
        )  # fmt: skip
        return recon, errors, to_values, losses

    def transpose(self, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        m, width = pattern.columns.shape[0], pattern.n_latents
        order, rows, ends = (torch.empty(size, dtype=torch.int32) for size in (m, m, width + 1))
        _transpose(pattern.columns.numpy(), pattern.offsets.numpy(), order.numpy(), rows.numpy(), ends.numpy())
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
        _update(
            weight.detach().numpy(), first.numpy(), second.numpy(), _array(dense, (0, d)),
            _array(None if copy is None else copy.view(torch.uint16), (0, d), np.uint16),
            *_entries(main), *_entries(more), unit,
            *(np.float32(x) for x in (lr, low, high, eps, 1 / (1 - low**count), 1 / (1 - high**count))), 4 * _threads(),
        )  # fmt: skip
