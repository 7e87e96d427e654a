"""Mean, variance and covariance of rows that stream by, in float64 and without cancellation."""

import torch
from torch import Tensor


class Moments:
    """Count, mean and summed squared deviations, merged batch by batch (Chan, Golub and LeVeque 1979).

    Args:
        d: length of a row.
        covariance: whether to sum the products of deviations, too: `products` `[d, d]`, else None.
    """

    def __init__(self, d: int, covariance: bool = False):
        self.n = 0
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.squares = torch.zeros(d, dtype=torch.float64)
        self.products = torch.zeros(d, d, dtype=torch.float64) if covariance else None

    def add(self, rows: Tensor) -> None:
        """Takes in rows `[n, d]`."""
        if (n := rows.shape[0]) == 0:
            return
        rows = rows.detach().double()
        mean = rows.mean(0)
        apart = rows - mean
        products = None if self.products is None else (apart.T @ apart).cpu()
        self.merge(n, mean.cpu(), apart.square().sum(0).cpu(), products)

    def merge(self, n: int, mean: Tensor, squares: Tensor, products: Tensor | None = None) -> None:
        """Takes in the moments of `n` other rows: mean `[d]`, squared deviations `[d]`, products `[d, d]` of them."""
        if n == 0:
            return
        delta, total = mean - self.mean, self.n + n
        weight = self.n * n / total
        self.squares += squares + delta.square() * weight
        if self.products is not None:
            if products is None:
                raise ValueError("moments with a covariance can only be merged with others that have one")
            self.products += products + torch.outer(delta, delta) * weight
        self.mean += delta * (n / total)
        self.n = total

    @property
    def total(self) -> float:
        """`sum |x - mean|^2` over all rows."""
        return float(self.squares.sum())

    def pack(self) -> Tensor:
        """All in one vector, to send to another process."""
        parts = [torch.tensor([float(self.n)], dtype=torch.float64), self.mean, self.squares]
        return torch.cat(parts if self.products is None else [*parts, self.products.flatten()])

    def merge_packed(self, packed: Tensor) -> None:
        """Takes in what `pack` of another gave."""
        d = len(self.mean)
        products = None if self.products is None else packed[1 + 2 * d :].view(d, d)
        self.merge(int(packed[0]), packed[1 : 1 + d], packed[1 + d : 1 + 2 * d], products)
