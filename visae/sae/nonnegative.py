"""Codes without negative entries by least squares: the encoder of matrix factorisations, and semi-NMF itself."""

import torch
from torch import Tensor, nn

from visae.sae.encoders import Encoder

STEPS = 200
"""Iterations of `nonnegative_codes`; fixed, so that a row's codes do not depend on the rows beside it."""
TINY = 1e-12
"""Keeps quotients of the multiplicative updates finite."""


def nonnegative_codes(rows: Tensor, atoms: Tensor, steps: int = STEPS) -> Tensor:
    """`argmin_{z >= 0} |x - z D|^2` for every row, `[n, F]`, by accelerated projected gradient.

    Nesterov's momentum, started anew for a row whenever it points uphill (O'Donoghue and Candes 2015); steps of
    `1 / L`, L the largest eigenvalue of `D D^T`.

    Args:
        rows: `[n, d]`.
        atoms: `[F, d]`, D.
        steps: iterations.
    """
    gram, target = atoms @ atoms.T, rows @ atoms.T
    size = torch.linalg.eigvalsh(gram.detach().double())[-1].to(gram).clamp_min(torch.finfo(gram.dtype).tiny)
    z = ahead = torch.zeros_like(target)
    age = target.new_zeros(len(target), 1)
    for _ in range(steps):
        new = (ahead - (ahead @ gram - target) / size).relu()
        uphill = ((ahead - new) * (new - z)).sum(1, keepdim=True) > 0
        age = torch.where(uphill, 0.0, age + 1)
        ahead, z = new + age / (age + 3) * (new - z), new
    return z


class NonNegative(Encoder):
    """`a = argmin_{a >= 0} |u - b_dec - a W|^2`: least squares in place of one product; W `[F, d]` are the atoms."""

    def __init__(self, d: int, n_latents: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_latents, d))

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        return nonnegative_codes(u - shift, self.weight)

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Encoder.initialise`: the atoms themselves."""
        self.weight.copy_(atoms)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Encoder.rescale`: shorter atoms need larger codes."""
        self.weight.div_(factor)


def semi_nmf(rows: Tensor, codes: Tensor, steps: int = 200) -> tuple[Tensor, Tensor, list[float]]:
    """Semi-NMF, `X ~ G D` with `G >= 0` and D free, by multiplicative updates (Ding, Li and Jordan 2010).

    In turn `D = (G^T G)^-1 G^T X` and, with `A+ = (|A| + A) / 2` and `A- = (|A| - A) / 2`,
    `G <- G sqrt(((X D^T)+ + G (D D^T)-) / ((X D^T)- + G (D D^T)+))`; the error never rises.

    Args:
        rows: `[n, d]` float64, X; of any sign.
        codes: `[n, F]` above 0, the first G; zeros would stay zero.
        steps: iterations.

    Returns:
        Codes G `[n, F]`, atoms D `[F, d]`, and the squared error `|X - G D|^2` after each iteration.
    """
    errors: list[float] = []
    g = codes.clone()
    d = torch.linalg.lstsq(g, rows).solution
    for _ in range(steps):
        fit, gram = rows @ d.T, d @ d.T
        above, below = fit.relu() + g @ (-gram).relu(), (-fit).relu() + g @ gram.relu()
        g = g * (above / below.clamp_min(TINY)).sqrt()
        d = torch.linalg.pinv(g.T @ g, hermitian=True) @ (g.T @ rows)
        errors.append(float((rows - g @ d).square().sum()))
    return g, d, errors
