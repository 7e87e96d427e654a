"""Penalties on how atoms lie to one another."""

import torch
from torch import Tensor

from visae.sae.penalties.base import Pass, Penalty


class Orthogonal(Penalty):
    """`coefficient * mean over chunks and atoms i of max_{j != i in the chunk} cos(d_i, d_j)^2`.

    OrtSAE (Korznikov et al. 2025): atoms are dealt into chunks anew at every evaluation, so the cost is linear in F,
    and over time every pair meets.

    Args:
        coefficient: 0.25 in the paper.
        chunk: atoms per chunk.
        every: the term is there in one of so many steps, times so many: as good, and cheaper.
    """

    name = "orthogonal"
    calls: Tensor

    def __init__(self, coefficient: float = 0.25, chunk: int = 8192, every: int = 1):
        super().__init__()
        if chunk < 2 or every < 1:
            raise ValueError(f"chunk must be at least 2 and every at least 1, got {chunk} and {every}")
        self.coefficient, self.chunk, self.every = coefficient, chunk, every
        self.register_buffer("calls", torch.tensor(0, dtype=torch.int64))

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        due = self.every == 1 or int(self.calls) % self.every == 0  # on a GPU, to look makes the host wait
        if run.sae.training:
            self.calls += 1
        if not due:
            return None
        atoms = torch.nn.functional.normalize(run.sae.decoder.atoms(), dim=1)
        n = max(1, -(-atoms.shape[0] // self.chunk))
        order = torch.randperm(atoms.shape[0], device=atoms.device) if n > 1 else torch.arange(atoms.shape[0])
        total = atoms.new_zeros(())
        for part in order.to(atoms.device).chunk(n):
            cosines = atoms[part] @ atoms[part].T
            cosines = cosines - 2 * torch.eye(len(part), dtype=atoms.dtype, device=atoms.device)
            total = total + cosines.amax(1).square().sum()
        return self.every * self.coefficient * total / atoms.shape[0]
