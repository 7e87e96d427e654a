"""What a dictionary is compared with: principal components, raw neurons, random directions; same interface."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from visae.sae.codes import Codes
from visae.sae.moments import Moments


class LinearDictionary(nn.Module):
    """An orthonormal (or any) set of directions read off by inner products; codes are signed and dense.

    Args:
        kind: `pca`, `neurons` or `random`.
        atoms: `[F, d]` unit rows; `decode` sums codes over them, which reconstructs best if they are orthonormal.
        mean: `[d]` taken off first.
    """

    signed = True
    mean: Tensor
    atoms: Tensor

    def __init__(self, kind: str, atoms: Tensor, mean: Tensor):
        super().__init__()
        self.kind = kind
        self.n_latents, self.d = atoms.shape
        self.register_buffer("atoms", atoms.float())
        self.register_buffer("mean", mean.float())

    def encode(self, x: Tensor) -> Codes:
        """`(x - mean) atoms^T` of raw inputs `[n, d]`, every latent in order, `[n, F]`."""
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"this {self.kind} baseline takes tokens [n, {self.d}]; got {list(x.shape)}")
        values = (x.to(self.atoms.dtype) - self.mean) @ self.atoms.T
        return Codes(torch.arange(self.n_latents, device=x.device).expand(values.shape), values, self.n_latents)

    def decode(self, codes: Codes) -> Tensor:
        """`codes atoms + mean`, `[n, d]`."""
        return codes.to_dense() @ self.atoms + self.mean

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction `[n, d]`."""
        return self.decode(self.encode(x))

    def directions(self) -> Tensor:
        """`[F, d]`."""
        return self.atoms


def _mean(batches: Iterable[Tensor]) -> Tensor:
    moments: Moments | None = None
    for x in batches:
        moments = moments or Moments(x.shape[1])
        moments.add(x)
    if moments is None or moments.n == 0:
        raise ValueError("a baseline needs at least one batch of tokens [n, d], got none")
    return moments.mean


def pca(batches: Iterable[Tensor], n_components: int) -> LinearDictionary:
    """Leading principal components, from one pass over `[n, d]` batches in float64.

    With as many components as a dictionary has codes per token it is the linear baseline of equal budget.

    Raises:
        ValueError: for more components than dimensions, or no data.
    """
    n, shift, total, products = 0, torch.empty(0), torch.tensor(0.0), torch.tensor(0.0)
    for x in batches:
        if not n:
            shift = x.double().mean(0)  # large means would cancel in the products
        rows = x.double() - shift
        n, total, products = n + rows.shape[0], total + rows.sum(0), products + rows.T @ rows
    if not n:
        raise ValueError("a baseline needs at least one batch of tokens [n, d], got none")
    if not 1 <= n_components <= shift.shape[0]:
        raise ValueError(f"pca has between 1 and d = {shift.shape[0]} components, asked for {n_components}")
    mean = total / n
    _, vectors = torch.linalg.eigh(products / n - torch.outer(mean, mean))
    return LinearDictionary("pca", vectors.flip(1)[:, :n_components].T.contiguous(), shift + mean)


def neurons(batches: Iterable[Tensor]) -> LinearDictionary:
    """The coordinates themselves, centred."""
    mean = _mean(batches)
    return LinearDictionary("neurons", torch.eye(mean.shape[0]), mean)


def random_directions(batches: Iterable[Tensor], n_latents: int, seed: int = 0) -> LinearDictionary:
    """Unit vectors drawn from the sphere: what any score must beat."""
    mean = _mean(batches)
    rows = torch.randn(n_latents, mean.shape[0], generator=torch.Generator().manual_seed(seed))
    return LinearDictionary("random", torch.nn.functional.normalize(rows, dim=1), mean)
