"""Mean and variance of rows that stream by, in float64 and without cancellation."""

import torch
from torch import Tensor


class Moments:
    """Count, mean and summed squared deviations, merged batch by batch (Chan, Golub and LeVeque 1979).

    Args:
        d: length of a row.
    """

    def __init__(self, d: int):
        self.n = 0
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.squares = torch.zeros(d, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Takes in rows `[n, d]`."""
        if (n := rows.shape[0]) == 0:
            return
        rows = rows.detach().double()
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        self.merge(n, mean.cpu(), squares.cpu())

    def merge(self, n: int, mean: Tensor, squares: Tensor) -> None:
        """Takes in the moments of `n` other rows: their mean `[d]` and summed squared deviations `[d]`."""
        if n == 0:
            return
        delta, total = mean - self.mean, self.n + n
        self.squares += squares + delta.square() * (self.n * n / total)
        self.mean += delta * (n / total)
        self.n = total

    @property
    def total(self) -> float:
        """`sum |x - mean|^2` over all rows."""
        return float(self.squares.sum())
