"""How the functions for numba are compiled."""

from typing import Any

from numba import njit

Array = Any
"""A numpy array inside compiled code."""
FLAGS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity mean what they mean
parallel: Any = njit(parallel=True, fastmath=FLAGS, cache=True, error_model="numpy")
inline: Any = njit(fastmath=FLAGS, cache=True, inline="always", error_model="numpy")
part: Any = njit(fastmath=FLAGS, cache=True, error_model="numpy")
