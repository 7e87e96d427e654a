"""The point that most rows lie near: their geometric median, which outliers do not drag along as they do the mean."""

import torch
from torch import Tensor

CHUNK = 8192
"""Rows whose float64 differences are held at a time."""


@torch.no_grad()
def geometric_median(rows: Tensor, steps: int = 200, tolerance: float = 1e-7) -> Tensor:
    """`argmin_y sum_n |x_n - y|`, by Weiszfeld's iteration as mended by Vardi and Zhang (2000).

    The plain iteration divides by `|x_n - y|` and breaks where the guess meets a row. Here such rows are left out of
    the weighted mean and hold the guess back instead: with T the mean of the others weighted by `1 / |x_n - y|`, r the
    length of `sum (x_n - y) / |x_n - y|` over them and m the number of rows at y, the next guess is
    `(1 - m / r)+ T + min(1, m / r) y`; if m >= r, y is the median.

    Args:
        rows: `[n, d]` float.
        steps: at most so many iterations.
        tolerance: they end when the guess moves less than so many times the mean distance.

    Returns:
        `[d]` float64.

    Raises:
        ValueError: without rows.
    """
    if rows.ndim != 2 or not rows.shape[0]:
        raise ValueError(f"a geometric median needs rows [n, d], got {list(rows.shape)}")
    guess = rows.double().mean(0)
    for _ in range(steps):
        weighted, pull = torch.zeros_like(guess), torch.zeros_like(guess)
        weight, there, far = (guess.new_zeros(()) for _ in range(3))
        for part in rows.split(CHUNK):
            apart = part.double() - guess
            distance = torch.linalg.vector_norm(apart, dim=1)
            inverse = torch.where(distance > 0, 1 / distance, 0.0)
            weighted += inverse @ part.double()
            pull += inverse @ apart
            weight, there, far = weight + inverse.sum(), there + (distance == 0).sum(), far + distance.sum()
        if not bool(weight > 0):
            return guess  # all rows lie there
        hold = (there / torch.linalg.vector_norm(pull).clamp_min(torch.finfo(guess.dtype).tiny)).clamp_max(1.0)
        moved = (1 - hold) * (weighted / weight - guess)
        guess = guess + moved
        if bool(torch.linalg.vector_norm(moved) <= tolerance * far / rows.shape[0]):
            break
    return guess
