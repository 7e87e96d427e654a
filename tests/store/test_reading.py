"""Rows come back as they were made: in order, shuffled, streamed; with their places, labels and regions."""

import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from visae.model import AdaptedModel
from visae.store import Overflow, Stream, estimate, extract, open_store
from visae.store.estimate import duration
from visae.taps import tap
from visae.tokens import KINDS, TokenPolicy

SMALL = 6 * 1536
"""A mixing buffer of six images."""


def all_rows(source) -> torch.Tensor:
    return torch.cat([chunk.rows for chunk in source.chunks()])


def expected(model: AdaptedModel, sample, dtype=torch.float16) -> torch.Tensor:
    with torch.no_grad(), tap(model, "blocks.1") as latest:
        model.forward(model.preprocess([sample.image]))
        return latest["blocks.1"][0].to(dtype)


def test_rows_are_what_the_tap_brings_and_tell_where_they_come_from(stored, model, pictures):
    data = pictures()
    chunk = next(stored.chunks(rows=1))
    assert chunk.rows.dtype == torch.float16
    assert chunk.item[:17].tolist() == [0] * 16 + [1]
    assert chunk.index[:16].tolist() == list(range(1, 17))
    assert chunk.y[:16].tolist() == [i // 4 for i in range(16)]
    assert chunk.x[:16].tolist() == [i % 4 for i in range(16)]
    assert set(chunk.kind.tolist()) == {KINDS.index("patch")}
    for item in (0, 15, 16, 95):
        torch.testing.assert_close(stored.item(item).rows, expected(model, data[item])[1:], atol=2e-3, rtol=2e-3)


def test_labels_of_every_patch_agree_with_the_geometry_and_the_planted_square(stored, model, pictures):
    data, geometry = pictures(), model.geometry("blocks.1")
    seen = 0
    for chunk in stored.chunks(rows=100):
        for item in chunk.item.unique().tolist():
            mine = chunk.item == item
            sample = data[item]
            top, left, bottom, right = data.box(item)
            for y, x, region in zip(*(t[mine].tolist() for t in (chunk.y, chunk.x, chunk.region)), strict=True):
                x0, y0, x1, y1 = geometry.token_box(y, x, sample.regions.shape)
                inside = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
                share = inside / ((x1 - x0) * (y1 - y0))
                if abs(share - 0.5) > 1e-6:
                    assert region == (share > 0.5), (item, y, x, share)
                seen += region
    assert seen > 200
    assert stored.region_labels[3] == ({"part": "bright"},)
    assert stored.notes[3].boxes == data[3].boxes.tolist()
    assert stored.notes[3].captions == ("picture 3",)
    assert stored.notes[3].hw == (40, 36)
    assert stored.groups[:5] == ["group 0"] * 4 + ["group 1"]


def test_class_tokens_have_no_place_and_no_region(make, tmp_path):
    store = make(tmp_path / "rows", policy=TokenPolicy(("cls", "patch")))
    chunk = next(store.chunks())
    assert chunk.index[:17].tolist() == list(range(17))
    assert chunk.kind[:3].tolist() == [KINDS.index("cls"), KINDS.index("patch"), KINDS.index("patch")]
    assert (chunk.y[0], chunk.x[0], chunk.region[0]) == (-1, -1, 0)


def test_a_shard_is_a_plain_safetensors_file(stored):
    with safe_open(stored.path / "shard-000001.safetensors", "pt") as file:
        assert file.get_tensor("tokens").shape == (16, 16, 48)
        assert file.get_tensor("item").tolist() == list(range(16, 32))
        assert torch.equal(file.get_tensor("tokens").reshape(-1, 48), all_rows(stored)[256:512])
        assert file.metadata()["site"] == "blocks.1"
        assert file.metadata()["hash"] == stored.meta.content_hash


@pytest.mark.parametrize("batch", [7, 64, 1000, 5000])
def test_the_loader_serves_every_row_exactly_once_per_pass(stored, batch):
    loader = stored.loader(batch, seed=3, passes=2, buffer_bytes=SMALL)
    numbers, everything = [], all_rows(stored)
    for rows in loader:
        assert torch.equal(rows, everything[torch.from_numpy(loader.rows)])
        assert np.array_equal(loader.items, loader.rows // 16)
        numbers.append(loader.rows)
    served = np.concatenate(numbers)
    n = stored.n_rows
    assert len(served) == 2 * n
    assert np.array_equal(np.sort(served[:n]), np.arange(n))
    assert np.array_equal(np.sort(served[n:]), np.arange(n))
    assert not np.array_equal(served[:n], served[n:])


def test_an_endless_loader_keeps_its_batch_size_over_the_end_of_a_pass(stored):
    loader = stored.loader(1000, seed=0)
    assert [len(next(loader)) for _ in range(7)] == [1000] * 7
    assert loader.state_dict() == {"epoch": 4, "position": 7000 - 4 * 1536, "seed": 0}


@pytest.mark.parametrize("kind", ["store", "stream"])
def test_a_resumed_loader_goes_on_bit_for_bit_from_any_place(stored, model, pictures, kind):
    broken = (5, 40) if kind == "stream" else ()
    source = stored if kind == "store" else Stream(model, "blocks.1", pictures(broken=broken), batch=6, workers=0)
    loader = source.loader(100, seed=1, buffer_bytes=4 * SMALL)
    states, batches = [], []
    for _ in range(35):
        states.append(loader.state_dict())
        batches.append(next(loader))
    assert states[-1]["epoch"] == 2
    for at in (0, 1, 7, 14, 15, 16, 22, 33):
        fresh = source if kind == "store" else Stream(model, "blocks.1", pictures(broken=broken), batch=6, workers=1)
        again = fresh.loader(100, seed=999, buffer_bytes=4 * SMALL)
        next(again)
        again.load_state_dict(states[at])
        for old in batches[at : at + 3]:
            assert torch.equal(next(again), old)


def test_batches_that_are_kept_are_not_overwritten_by_later_ones(stored):
    loader = stored.loader(50, passes=4, buffer_bytes=SMALL)
    kept = [(rows, rows.clone()) for rows in loader]
    assert all(torch.equal(rows, copy) for rows, copy in kept)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """413 MB of made-up rows, six times the default mixing buffer, in the order of a sorted data set."""
    from visae.store.bench import _made_up_meta, _write_store

    meta = _made_up_meta(4200, 64, 768)
    pool = np.random.default_rng(0).standard_normal((4, 32, 64, 768), dtype=np.float32).astype(np.float16)
    folder = tmp_path_factory.mktemp("large") / "rows"
    _write_store(folder, meta, pool)
    yield folder
    shutil.rmtree(folder)


def test_neighbouring_rows_of_a_sorted_data_set_do_not_come_from_neighbouring_items(large):
    """Lag-1 autocorrelation of the served items is below .02; in order it would be above .99."""
    loader = open_store(large).loader(4096, passes=1)
    items = np.concatenate([loader.items for _ in loader]).astype(float)
    assert len(items) == 4200 * 64
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02
    items.sort()
    assert np.corrcoef(items[:-1], items[1:])[0, 1] > 0.99


def test_a_stream_brings_the_same_rows_as_the_store(stored, model, pictures):
    stream = Stream(model, "blocks.1", pictures(), batch=6, workers=2)
    for a, b in zip(_by_item(stream), _by_item(stored), strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(a[1].rows, b[1].rows, atol=2e-3, rtol=2e-3)
        assert torch.equal(a[1].region, b[1].region)
        assert torch.equal(a[1].index, b[1].index)
    loader = stream.loader(100, passes=1, buffer_bytes=2 * SMALL)
    rows, items = [], []
    for batch in loader:
        rows.append(batch)
        items.append(loader.items)
    served = torch.cat(rows).float()
    order = np.argsort(np.concatenate(items), kind="stable")
    assert np.array_equal(np.concatenate(items)[order], np.repeat(np.arange(96), 16))
    assert not np.array_equal(np.concatenate(items), np.repeat(np.arange(96), 16))
    ours = served[torch.from_numpy(order)].reshape(96, 16, 48)
    for item in range(96):
        distance = torch.cdist(ours[item], stored.item(item).rows.float())
        assert (distance.min(1).values < 0.05).all()
        assert sorted(distance.argmin(1).tolist()) == list(range(16))
    assert stream.keys == stored.keys
    assert stream.item_labels == stored.item_labels
    assert stream.has_regions
    assert stored.has_regions


def _by_item(source):
    for chunk in source.chunks():
        for item in chunk.item.unique().tolist():
            mine = chunk.item == item
            yield item, type(chunk)(*(None if v is None else v[mine] for v in vars(chunk).values()))


def test_a_stream_leaves_no_hook_on_the_model_between_batches(model, pictures):
    loader = Stream(model, "blocks.1", pictures(), batch=6, workers=0).loader(10)
    next(loader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_subsampled_tokens_are_the_same_in_store_and_stream_and_whatever_the_batch(make, model, pictures, tmp_path):
    policy = TokenPolicy(per_image=5, seed=7)
    store = make(tmp_path / "rows", policy=policy)
    stream = Stream(model, "blocks.1", pictures(), policy, batch=13, workers=0)
    ours, theirs = (torch.cat([chunk.index for chunk in source.chunks()]) for source in (store, stream))
    assert torch.equal(ours, theirs)
    assert store.n_rows == 96 * 5
    assert len(set(ours.tolist())) == 16
    whole = make(tmp_path / "whole")
    mine, all_of = store.item(17), whole.item(17)
    torch.testing.assert_close(mine.rows, all_of.rows[mine.index.long() - 1])


def test_bfloat16_and_float32_come_back_exactly(make, stored, tmp_path):
    exact = make(tmp_path / "f32", dtype="float32")
    half = make(tmp_path / "bf16", dtype=torch.bfloat16)
    assert all_rows(half).dtype == torch.bfloat16
    assert torch.equal(all_rows(half), all_rows(exact).bfloat16())
    assert torch.equal(all_rows(stored), all_rows(exact).half())
    loader = half.loader(100, passes=1)
    assert torch.equal(next(loader), all_rows(half)[torch.from_numpy(loader.rows)])
    with safe_open(half.path / "shard-000000.safetensors", "pt") as file:
        assert file.get_tensor("tokens").dtype == torch.bfloat16


def test_activations_too_large_for_float16_are_refused_by_name_and_bfloat16_holds_them(kit, pictures, tmp_path):
    loud = kit.tiny_model()
    with torch.no_grad():
        loud.module.blocks[1].mlp.fc2.bias[3] = 1e5
    options = {"batch": 6, "workers": 0, "progress": False}
    with pytest.raises(Overflow, match=r"of 1\d{5}.* does not fit into float16, .*65504.*dtype='bfloat16'"):
        extract(loud, "blocks.1", pictures(12), tmp_path / "f16", **options)
    assert [path.name for path in (tmp_path / "f16").iterdir()] == ["index.json"]
    assert all_rows(extract(loud, "blocks.1", pictures(12), tmp_path / "b", dtype="bfloat16", **options)).max() > 9e4
    with torch.no_grad():
        loud.module.blocks[1].mlp.fc2.bias[3] = float("nan")
    with pytest.raises(Overflow, match=r"the model itself computes .* not finite"):
        next(Stream(loud, "blocks.1", pictures(12), dtype="bfloat16", batch=6).loader(10))


def test_an_estimate_tells_rows_and_bytes_to_a_percent(make, model, pictures, tmp_path):
    for n, policy in ((96, TokenPolicy()), (200, TokenPolicy(("patch", "cls"), per_image=9))):
        told = estimate(model, "blocks.1", pictures(n), tmp_path, policy=policy, shard_bytes=200 * 1536)
        store = make(tmp_path / str(n), pictures(n), policy=policy, shard_bytes=200 * 1536)
        actual = sum(path.stat().st_size for path in store.path.iterdir() if path.suffix == ".safetensors")
        assert told.rows == store.n_rows
        assert abs(told.bytes / actual - 1) < 0.01
        assert told.seconds > 0
    assert f"{told.rows:,} rows (200 images x 9 tokens) of 48 float16 values" in str(told)
    assert "free; about" in str(told)
    assert duration(4000) == "1 h 07 min"


def test_nothing_to_extract_is_said_so(make, model, pictures, tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        make(tmp_path / "none", pictures(0))
    with pytest.raises(ValueError, match="float16, bfloat16, float32; got int8"):
        make(tmp_path / "int", dtype="int8")
    with pytest.warns(UserWarning, match="3 of 3 images could not be read"):
        store = make(tmp_path / "broken", pictures(3, broken=(0, 1, 2)))
    assert store.n_rows == 0
    assert list(store.chunks()) == []
    with pytest.raises(ValueError, match="has no rows"):
        store.loader(4)
    with pytest.raises(ValueError, match="none of the images of pictures can be read"):
        next(Stream(model, "blocks.1", pictures(3, broken=(0, 1, 2)), workers=0).loader(4))
    with pytest.raises(ValueError, match="none of the images sampled"):
        estimate(model, "blocks.1", pictures(3, broken=(0, 1, 2)))


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_resident_memory_does_not_grow_with_the_store(large):
    """413 MB read in order and shuffled through 8 MB buffers, within 64 MB."""
    before, most = resident(), 0
    store = open_store(large)
    for loader in (store.chunks(rows=4096), store.loader(1024, passes=1, buffer_bytes=2**23)):
        for _ in loader:
            most = max(most, resident() - before)
    assert most < 64e6, f"{most / 1e6:.0f} MB"
