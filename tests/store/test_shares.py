"""Several processes read one store: the rows of one process, each row by one of them; their number may change."""

import numpy as np
import pytest
import torch

from visae.store import Stream

SMALL = 4 * 16 * 48 * 2 * 4  # bytes of a few blocks, so that a pass has several groups


def team(source, batch, processes, **options):
    return [source.loader(batch, rank=rank, processes=processes, **options) for rank in range(processes)]


@pytest.mark.parametrize(("batch", "processes"), [(50, 2), (7, 3), (400, 2), (900, 4), (1536, 2)])
def test_the_batches_of_several_processes_are_those_of_one_with_larger_batches(stored, batch, processes):
    whole = stored.loader(batch * processes, seed=3, buffer_bytes=SMALL)
    parts = team(stored, batch, processes, seed=3, buffer_bytes=SMALL)
    for _ in range(max(4, 4000 // (batch * processes))):
        expected = next(whole)
        assert torch.equal(torch.cat([next(loader) for loader in parts]), expected)
        assert np.array_equal(np.concatenate([loader.rows for loader in parts]), whole.rows)
        assert np.array_equal(np.concatenate([loader.items for loader in parts]), whole.items)
        assert all(loader.state_dict() == whole.state_dict() for loader in parts)


def test_no_row_is_served_twice_and_all_stop_together(stored):
    served = [[], []]
    for mine, loader in zip(served, team(stored, 100, 2, passes=2, buffer_bytes=SMALL), strict=True):
        for rows in loader:
            assert len(rows) == 100
            mine.append(loader.rows)
    assert len(served[0]) == len(served[1]) == 2 * 1536 // 200
    in_order = np.stack([np.concatenate(pair) for pair in zip(*served, strict=True)]).reshape(-1)
    assert np.array_equal(np.sort(in_order[:1536]), np.arange(1536))
    assert len(np.unique(in_order[1536:])) == len(in_order) - 1536


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_a_store_is_read_on_by_another_number_of_processes_exactly(stored, before, after):
    whole = stored.loader(120, seed=5, buffer_bytes=SMALL)
    first = team(stored, 120 // before, before, seed=5, buffer_bytes=SMALL)
    for _ in range(9):
        next(whole)
        for loader in first:
            next(loader)
    then = team(stored, 120 // after, after, seed=0, buffer_bytes=SMALL)
    for loader in then:
        next(loader)
        assert loader.load_states([one.state_dict() for one in first]) == ""
    for _ in range(12):
        assert torch.equal(torch.cat([next(loader) for loader in then]), next(whole))


def streams(model, pictures, processes, broken=(), **options):
    return [
        Stream(model, "blocks.1", pictures(broken=broken), batch=2, workers=0).loader(
            96, seed=2, buffer_bytes=1, rank=rank, processes=processes, **options
        )
        for rank in range(processes)
    ]


def test_processes_stream_other_images_each_and_all_of_them(model, pictures):
    served = []
    for loader in streams(model, pictures, 3, passes=1):
        own = np.zeros(96, int)
        for _ in loader:
            np.add.at(own, loader.items, 1)
        assert sorted(set(own.tolist())) == [0, 16]
        served.append(own)
    assert np.array_equal(sum(served), np.full(96, 16))


def test_a_stream_goes_on_in_the_same_pass_with_another_number_of_processes(model, pictures):
    first = streams(model, pictures, 2, broken=(5, 40))
    seen = np.zeros(96, int)
    for loader in first:
        for _ in range(4):  # half a pass
            next(loader)
            np.add.at(seen, loader.items, 1)
    (then,) = streams(model, pictures, 1, broken=(5, 40))
    said = then.load_states([loader.state_dict() for loader in first])
    assert "a stream's order depends on the number of processes: up to" in said
    held = int(said.split("up to ")[1].split()[0])
    assert held == 2 * 2 * 2 * 16
    for _ in range(8):
        next(then)
        np.add.at(seen, then.items, 1)
    assert np.abs(seen - 16).sum() <= 2 * held + 2 * 2 * 16
    state = then.state_dict()
    again = streams(model, pictures, 1, broken=(5, 40))[0]
    expected = next(then)
    again.load_state_dict(state)
    assert torch.equal(next(again), expected)


def test_a_part_that_is_none_is_refused(stored, model, pictures):
    with pytest.raises(ValueError, match="rank must be between 0 and processes - 1 = 1, got 2"):
        stored.loader(4, rank=2, processes=2)
    with pytest.raises(ValueError, match="3 images cannot be shared by 4 processes: start fewer"):
        Stream(model, "blocks.1", pictures(3)).loader(4, rank=0, processes=4)
