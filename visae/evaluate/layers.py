"""Which layers of a network compute alike, so that they can share a dictionary (Ghilardi et al. 2025, Group-SAE).

| quantity | definition |
|---|---|
| distance of layers a, b | `D_ab = mean over tokens of arccos(cos(x_a, x_b)) / pi`, of the same token at both |
| grouping | neighbours are merged one by one, each time those whose farthest layers are nearest (complete linkage) |
| AMAD | average maximum angular distance: `mean over groups of max over a, b in the group of D_ab` |
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class AngularDistances:
    """Distances between layers, from rows that come piece by piece.

    Args:
        layers: names, in the order of the network.
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = list(layers)
        self._sum = torch.zeros(len(layers), len(layers), dtype=torch.float64)
        self.n = 0

    @torch.no_grad()
    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Takes in rows `[n, d]` of every layer; row i is the same token in all.

        Raises:
            ValueError: if layers bring different numbers or lengths of rows.
        """
        if len({tuple(rows[name].shape) for name in self.layers}) != 1:
            shapes = {name: list(rows[name].shape) for name in self.layers}
            raise ValueError(f"layers are compared token by token, in one space; got {shapes}")
        unit = [torch.nn.functional.normalize(rows[name].float(), dim=1) for name in self.layers]
        for a, left in enumerate(unit):
            for b in range(a + 1, len(unit)):
                angle = torch.linalg.vecdot(left, unit[b]).clamp(-1, 1).double().arccos().sum() / torch.pi
                self._sum[a, b] += angle.cpu()
                self._sum[b, a] += angle.cpu()
        self.n += len(unit[0])

    @property
    def matrix(self) -> np.ndarray:
        """`[L, L]` float64 distances."""
        return (self._sum / max(1, self.n)).numpy()


def group_layers(distances: np.ndarray, groups: int) -> list[list[int]]:
    """So many groups of neighbouring layers, see the module.

    Raises:
        ValueError: for fewer than one group or more than layers.
    """
    if not 1 <= groups <= len(distances):
        raise ValueError(f"{len(distances)} layers make between 1 and {len(distances)} groups, asked for {groups}")
    found = [[layer] for layer in range(len(distances))]
    while len(found) > groups:
        joined = [a + b for a, b in itertools.pairwise(found)]
        best = min(range(len(joined)), key=lambda i: width(distances, joined[i]))
        found[best : best + 2] = [joined[best]]
    return found


def width(distances: np.ndarray, group: Sequence[int]) -> float:
    """Largest distance within a group."""
    return float(distances[np.ix_(group, group)].max())


def amad(distances: np.ndarray, groups: Sequence[Sequence[int]]) -> float:
    """Average maximum angular distance of a grouping, see the module."""
    return float(np.mean([width(distances, group) for group in groups]))


def fewest_groups(distances: np.ndarray, limit: float) -> list[list[int]]:
    """The grouping with fewest groups whose AMAD is at most `limit`; each layer alone has 0."""
    for groups in range(1, len(distances) + 1):
        if amad(distances, found := group_layers(distances, groups)) <= limit:
            return found
    return found
