"""Which rows of two sets are nearest to each other, without the matrix of all cosines."""

import torch
from torch import Tensor

CELLS = 2**25
"""Cosines held at a time."""


@torch.no_grad()
def nearest(left: Tensor, right: Tensor, signed: bool = False) -> tuple[Tensor, Tensor]:
    """For each unit row on the left its nearest on the right, and for each on the right its nearest on the left.

    Args:
        left: `[n, d]` unit rows.
        right: `[m, d]` unit rows, m at least 1.
        signed: whether a row and its negative count as near.

    Returns:
        Places `[n]` on the right and `[m]` on the left.
    """
    to_right = torch.empty(len(left), dtype=torch.int64, device=left.device)
    best, to_left = left.new_full((len(right),), -2.0), left.new_zeros(len(right), dtype=torch.int64)
    size = max(1, CELLS // len(right))
    for start in range(0, len(left), size):
        cosines = left[start : start + size] @ right.T
        cosines = cosines.abs() if signed else cosines
        to_right[start : start + size] = cosines.argmax(1)
        value, where = cosines.max(0)
        to_left = torch.where(value > best, where + start, to_left)
        best = torch.maximum(value, best)
    return to_right, to_left
