"""Batches made of several loaders: equal shares, each scaled by itself, resumed exactly."""

import pytest
import torch

from visae.train import Planted, PlantedConfig, split_columns
from visae.train.mixed import Mixed, shares

WORLD = PlantedConfig(d=6, n_features=8, active=2)
MEANS = [torch.arange(6.0), torch.ones(6), torch.zeros(6)]
SCALES = [torch.tensor(2.0), torch.tensor(0.5), torch.tensor(1.0)]


def test_every_loader_gives_its_share_less_its_mean_and_times_its_scale():
    sizes = shares(20, 3)
    assert sizes == [7, 7, 6]
    loaders = [Planted(WORLD, size, part=i) for i, size in enumerate(sizes)]
    batches = iter(Mixed(loaders, MEANS, SCALES, 20))
    for index in range(3):
        expected = [(Planted(WORLD, n, part=i).sample(n, index)[0] - MEANS[i]) * SCALES[i] for i, n in enumerate(sizes)]
        torch.testing.assert_close(next(batches), torch.cat(expected))
    with pytest.raises(ValueError, match="2 rows cannot be shared by 3"):
        shares(2, 3)


def test_of_whole_batches_each_gives_a_part_that_moves_on_so_that_every_row_is_used_by_somebody():
    class Wide(Planted):
        def __iter__(self):
            return (torch.cat([x, x, x], dim=1) for x in super().__iter__())

    zero, one = [torch.zeros(6)] * 3, [torch.tensor(1.0)] * 3
    parts = list(split_columns(Wide(WORLD, 20), {"a": 6, "b": 6, "c": 6}).values())
    batches, starts = iter(Mixed(parts, zero, one, 20)), []
    for index in range(3):
        mixed, whole = next(batches), Planted(WORLD, 20).sample(20, index)[0]
        assert len(mixed) == 20
        starts.append(int((whole == mixed[0]).all(1).nonzero()[0, 0]))
    assert len(set(starts)) == 3


def test_a_mixed_loader_resumes_exactly_for_own_and_for_common_loaders():
    class Wide(Planted):
        def __iter__(self):
            return (torch.cat([x, x + 1], dim=1) for x in super().__iter__())

    makers = [
        lambda: [Planted(WORLD, 10), Planted(WORLD, 10, part=1)],
        lambda: list(split_columns(Wide(WORLD, 20), {"a": 6, "b": 6}).values()),
    ]
    for make in makers:
        first = Mixed(make(), MEANS[:2], SCALES[:2], 20)
        batches = iter(first)
        for _ in range(3):
            next(batches)
        state = first.state_dict()
        again = Mixed(make(), MEANS[:2], SCALES[:2], 20)
        again.load_state_dict(state)
        rest = iter(again)
        for _ in range(4):
            assert torch.equal(next(batches), next(rest))
