"""Counter-based randomness: integers in, integers out, the same on every machine and in every NumPy version."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_MASK = (1 << 64) - 1


def mix64(value: int) -> int:
    """One splitmix64 step: a bijection on 64-bit integers that scatters neighbours."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Stream:
    """An endless row of draws that depends on its key alone.

    Args:
        key: integers that name the stream, e.g. `(seed, split, index)`; another order is another stream.
    """

    def __init__(self, *key: int) -> None:
        state = 0
        for part in key:
            state = mix64(state ^ mix64(part & _MASK))
        self._state = state

    def bits(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        return mix64(self._state)

    def below(self, n: int) -> int:
        """An integer in `0 .. n - 1` (bias below 2^-40 for the small n used here)."""
        return ((self.bits() >> 11) * n) >> 53

    def between(self, low: int, high: int) -> int:
        """An integer in `low .. high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return (self.bits() >> 11) < int(p * (1 << 53))

    def choice(self, values: Sequence[T]) -> T:
        """One of `values`."""
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """`values` in random order (Fisher-Yates)."""
        out = list(values)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def lattice_noise(rows: np.ndarray, cols: np.ndarray, seed: int) -> np.ndarray:
    """Hash every cell of a grid to 32 bits.

    Args:
        rows: `[h]` integers (may be negative).
        cols: `[w]` integers (may be negative).
        seed: which noise.

    Returns:
        `[h, w]` uint32; cell (r, c) depends on (r, c, seed) only, whatever window is asked for.
    """
    salt = np.uint32(mix64(seed) & 0xFFFFFFFF)
    y = (rows.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0x9E3779B1)
    x = (cols.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0x85EBCA77)
    h = (y[:, None] ^ salt) + x[None, :]
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return h
