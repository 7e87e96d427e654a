"""Layers are compared token by token, and neighbours that are alike come together."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from visae.evaluate.layers import AngularDistances, amad, fewest_groups, group_layers, width


def test_distances_are_mean_angles_whatever_the_lengths_and_the_pieces():
    angles = torch.tensor([0.0, 30.0, 90.0, 180.0]).deg2rad()
    lengths = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    rows = {f"l{i}": torch.stack([a.cos(), a.sin()]).expand(50, 2) * (i + 1) * lengths for i, a in enumerate(angles)}
    found = AngularDistances(list(rows))
    for part in (slice(0, 7), slice(7, 50)):
        found.add({name: x[part] for name, x in rows.items()})
    expected = (angles[:, None] - angles[None]).abs() / torch.pi
    np.testing.assert_allclose(found.matrix, expected.numpy(), atol=1e-3)
    assert found.n == 50
    with pytest.raises(ValueError, match="token by token"):
        found.add({name: x[: 3 + i] for i, (name, x) in enumerate(rows.items())})


def drifting(layers, seed):
    """A matrix like that of a residual stream: distances grow with the number of steps between."""
    steps = np.random.default_rng(seed).uniform(0.01, 0.3, layers - 1)
    places = np.concatenate([[0], np.cumsum(steps)])
    return np.abs(places[:, None] - places[None])


@pytest.mark.parametrize("seed", range(5))
def test_grouping_is_complete_linkage_of_neighbours(seed):
    distances = drifting(9, seed)
    tree = linkage(squareform(distances), "complete")
    for n in range(1, 10):
        labels = fcluster(tree, n, "maxclust")
        groups = group_layers(distances, n)
        assert [layer for group in groups for layer in group] == list(range(9))
        assert {tuple(np.flatnonzero(labels == label)) for label in set(labels)} == {tuple(g) for g in groups}


def test_amad_is_the_mean_over_groups_of_the_largest_distance():
    distances = drifting(5, 1)
    groups = [[0, 1], [2], [3, 4]]
    assert amad(distances, groups) == pytest.approx((distances[0, 1] + 0 + distances[3, 4]) / 3)
    assert width(distances, [1, 2, 4]) == distances[1, 4]
    assert amad(distances, group_layers(distances, 5)) == 0


def test_the_fewest_groups_within_a_limit_are_chosen():
    distances = drifting(6, 2)
    for limit in (0.0, 0.05, 0.1, 0.2, 1.0):
        found = fewest_groups(distances, limit)
        assert amad(distances, found) <= limit
        assert len(found) == 1 or amad(distances, group_layers(distances, len(found) - 1)) > limit
    with pytest.raises(ValueError, match="between 1 and 6 groups, asked for 7"):
        group_layers(distances, 7)
