"""A penalty that draws dictionaries trained side by side towards one another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from visae.ops import nearest
from visae.sae.decoders import Decoder
from visae.sae.penalties.base import Pass, Penalty
from visae.sae.penalties.sparsity import ramp


class Mutual(Penalty):
    """`coefficient * mean over peers D' of 1 - (MMCS(D, D') + MMCS(D', D)) / 2` (Marks et al. 2024, MFR).

    `MMCS(A, B) = mean over atoms a of A of max over b of cos(a, b)`; `|cos|` for signed kinds. Peers are taken as they
    are at the time and get no gradient from here: each draws itself towards the others. Costs `F F' d` multiplications
    per peer and step, without a tensor `[F, F']`. Atoms have a gradient through the pairs that are nearest only.

    Args:
        coefficient: weight beside a reconstruction loss that is a ratio.
        peers: decoders of the other dictionaries.
        warmup: share of the training budget over which the term rises.
    """

    name = "mfr"

    def __init__(self, coefficient: float, peers: Sequence[Decoder], warmup: float = 0.05):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup
        self._peers = list(peers)  # in a list: they belong to other dictionaries, and are not to be registered here

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if not self._peers:
            return None
        own = torch.nn.functional.normalize(run.sae.decoder.atoms(), dim=1)
        total = own.new_zeros(())
        for peer in self._peers:
            other = torch.nn.functional.normalize(peer.atoms().detach(), dim=1)
            to_other, to_own = nearest(own.detach(), other, run.sae.signed)
            there, back = torch.linalg.vecdot(own, other[to_other]), torch.linalg.vecdot(own[to_own], other)
            if run.sae.signed:
                there, back = there.abs(), back.abs()
            total = total + 1 - (there.mean() + back.mean()) / 2
        return ramp(run.progress, self.warmup) * self.coefficient * total / len(self._peers)
