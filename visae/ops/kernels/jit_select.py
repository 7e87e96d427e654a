"""Selection for numba: the largest entries of rows and batches, and those above thresholds; see `kernels.cpp`.

bfloat16 comes in as its bits, int16.
"""

from typing import Any

import numpy as np
from numba import prange

from visae.ops.kernels.compiled import Array, inline, parallel, part


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


@part
def _keys(row: Array, bias: Array, by_size: bool, half: bool, keys: Array) -> None:
    """Keys of a whole row."""
    if half:
        for i in range(row.shape[0]):
            keys[i] = _half(row[i], bias[i], by_size)
    else:
        for i in range(row.shape[0]):
            keys[i] = _single(row[i], bias[i], by_size)


@part
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


@part
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


@part
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


@part
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


@parallel
def top(pre: Array, bias: Array, k: int, by_size: bool, half: bool, out: Array, chunks: int) -> None:
    """See `Kernels.top`."""
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


@parallel
def batch_maxima(pre: Array, bias: Array, by_size: bool, half: bool, best: Array) -> None:
    """Maxima `[n, groups]` of the groups of every row."""
    for r in prange(pre.shape[0]):
        _group_maxima(pre[r], bias, by_size, half, best.shape[1], best[r])


@parallel
def above(
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


@parallel
def over(
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
