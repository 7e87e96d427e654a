"""Work on rows for numba: products of entries, reconstruction with its gradient, the update; see `kernels.cpp`."""

from typing import Any

import numpy as np
from numba import prange

from visae.ops.kernels.compiled import Array, inline, parallel, part


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


@part
def _add4(total: Array, f: Array, a: Array, b: Array, c: Array, e: Array) -> None:
    f0, f1, f2, f3 = f[0], f[1], f[2], f[3]
    for i in range(total.shape[0]):
        total[i] += (f0 * a[i] + f1 * b[i]) + (f2 * c[i] + f3 * e[i])


@part
def _dots4(left: Array, a: Array, b: Array, c: Array, e: Array, out: Array) -> None:
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(left.shape[0]):
        s0 += left[i] * a[i]
        s1 += left[i] * b[i]
        s2 += left[i] * c[i]
        s3 += left[i] * e[i]
    out[0], out[1], out[2], out[3] = s0, s1, s2, s3


@part
def _row_dots(left: Array, table: Array, columns: Array, out: Array) -> None:
    m = columns.shape[0]
    whole = m // 4 * 4
    for e in range(0, whole, 4):
        _dots4(left, table[columns[e]], table[columns[e + 1]], table[columns[e + 2]], table[columns[e + 3]], out[e:])
    for e in range(whole, m):
        out[e] = _dot(left, table[columns[e]])


@part
def _row_sum(total: Array, factors: Array, table: Array, rows: Array) -> None:
    m = rows.shape[0]
    whole = m // 4 * 4
    for e in range(0, whole, 4):
        _add4(total, factors[e:], table[rows[e]], table[rows[e + 1]], table[rows[e + 2]], table[rows[e + 3]])
    for e in range(whole, m):
        _add(total, factors[e], table[rows[e]])


@parallel
def dots(left: Array, table: Array, columns: Array, offsets: Array, out: Array) -> None:
    """See `Kernels.dots`."""
    for r in prange(left.shape[0]):
        _row_dots(left[r], table, columns[offsets[r] : offsets[r + 1]], out[offsets[r] : offsets[r + 1]])


@parallel
def reconstruct(
    u: Array, values: Array, columns: Array, offsets: Array, level: Array, shares: Array, atoms: Array, bias: Array,
    recon: Array, errors: Array, to_values: Array, losses: Array,
) -> None:  # fmt: skip
    """See `Kernels.reconstruct`; `level` is empty where there is one reconstruction."""
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


@part
def transpose(columns: Array, offsets: Array, order: Array, rows: Array, ends: Array) -> None:
    """See `Kernels.transpose`: a counting sort."""
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


@parallel
def update(
    weight: Array, first: Array, second: Array, dense: Array, copy: Array,
    ends: Array, rows: Array, factors: Array, inputs: Array,
    more_ends: Array, more_rows: Array, more_factors: Array, more_inputs: Array, unit: bool,
    lr: float, low: float, high: float, eps: float, first_scale: float, second_scale: float, chunks: int,
) -> None:  # fmt: skip
    """See `Kernels.update`: up to two sparse contributions; arrays of length 0 stand for what is not there."""
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
