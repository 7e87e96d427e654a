"""Killed, filled, damaged: what is on the disk is whole, named, and the same bytes as if nothing had happened."""

import errno
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest

from visae.store import DamagedShard, DiskFull, StoreError, open_store
from visae.store.index import Index
from visae.tokens import TokenPolicy


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(make, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "rows"
    with pytest.warns(UserWarning, match=r"2 of 96 images could not be read.*picture/5 \(image file is truncated\)"):
        make(out, pictures(broken=(5, 40)))
    return contents(out)


def listed(out: Path) -> int:
    return len(Index.load(out).shards) if (out / "index.json").exists() else -1


def test_a_run_killed_several_times_at_random_moments_ends_with_the_same_bytes(start, tmp_path, uninterrupted):
    out, rng, in_the_middle = tmp_path / "rows", random.Random(0), 0
    for kill in range(6):
        job = start(out, wait=0.02)
        until = listed(out) + (kill % 3 == 1)  # some are killed after another shard, some before
        while listed(out) < max(until, 0):
            time.sleep(0.002)
        if kill % 3 == 2:  # and some while a shard is being written, however slow the machine is
            while not list(out.glob("*.tmp")):
                time.sleep(0.001)
        else:
            time.sleep(rng.uniform(0.05, 0.2))
        assert job.kill() == -signal.SIGKILL, "the run was over before it could be killed"
        for shard in out.glob("*.safetensors"):  # whatever has its final name is whole, even if it is not listed yet
            assert shard.read_bytes() == uninterrupted[shard.name]
        with pytest.raises(StoreError, match=r"is not complete: . of 6 shards are there"):
            open_store(out)
        in_the_middle += bool(list(out.glob("*.tmp")))
        shutil.copytree(out, tmp_path / f"state{kill}")
    assert in_the_middle >= 2, "no kill hit a shard that was being written: the test proves nothing"
    for folder in [out, *tmp_path.glob("state?")]:
        assert start(folder).ended() == 0
        assert contents(folder) == uninterrupted


def test_a_second_writer_is_turned_away_and_a_killed_one_leaves_no_lock(start, make, pictures, tmp_path):
    out = tmp_path / "rows"
    job = start(out, wait=0.2)
    while not (out / "index.json").exists():
        time.sleep(0.01)
    with pytest.raises(StoreError, match=r"another process is extracting into .*rows right now"):
        make(out, pictures(broken=(5, 40)))
    job.kill()
    with pytest.warns(UserWarning, match="could not be read"):
        assert make(out, pictures(broken=(5, 40))).n_rows == 94 * 16


def test_a_file_size_limit_of_the_system_ends_with_a_message_and_nothing_that_looks_whole(start, tmp_path):
    job = start(tmp_path / "rows", limit=20_000)
    assert job.ended() == 1
    said = job.said.read_text()
    assert "DiskFull" in said
    assert "no room left for shard-000000.safetensors" in said
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["index.json"]


class FullDisk:
    """A file on a disk that holds `room` more bytes and then says so, like a real one: a short write, then an error."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, view):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = view[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_names_the_shard_and_the_numbers_and_the_run_can_go_on(make, stored, tmp_path, monkeypatch):
    out, opened = tmp_path / "rows", []

    def third_shard_is_too_much(path, mode, buffering):
        file = open(path, mode, buffering=buffering)  # noqa: SIM115
        opened.append(path)
        return FullDisk(file, 10_000) if len(opened) == 3 else file

    monkeypatch.setattr("visae.store.writer.open", third_shard_is_too_much, raising=False)
    with pytest.raises(
        DiskFull, match=r"shard-000002\.safetensors: about .* more are needed, .* are free.*run the same"
    ):
        make(out)
    assert not list(out.glob("*.tmp"))
    monkeypatch.undo()
    assert sorted(path.name for path in out.glob("*.safetensors")) == [f"shard-00000{i}.safetensors" for i in (0, 1)]
    assert open_store(out, partial=True).n_rows == 2 * 16 * 16
    make(out)
    assert contents(out) == contents(stored.path)


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_starts(make, pictures, tmp_path, monkeypatch):

    monkeypatch.setattr(sys.modules["visae.store.estimate"], "free_bytes", lambda _: 100_000)
    with pytest.raises(DiskFull, match=r"the rows need .* but .* has 97\.7 KiB free.*per_image=\d+.*Stream"):
        make(tmp_path / "rows")
    assert not list((tmp_path / "rows").glob("shard*"))


@pytest.fixture
def copy(stored, tmp_path):
    return Path(shutil.copytree(stored.path, tmp_path / "copy"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_truncated_shard_is_named_when_the_store_is_opened(copy):
    shard = copy / "shard-000002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(DamagedShard, match=r"shard-000002\.safetensors of .* is damaged: it has \d+ bytes instead of"):
        open_store(copy)


def test_a_missing_shard_is_named_when_the_store_is_opened(copy):
    (copy / "shard-000003.safetensors").unlink()
    with pytest.raises(DamagedShard, match=r"shard-000003\.safetensors of .* is damaged: it is missing"):
        open_store(copy)


def test_a_changed_header_is_named_when_the_store_is_opened(copy):
    flip(copy / "shard-000001.safetensors", 20)
    with pytest.raises(DamagedShard, match=r"shard-000001\.safetensors .* header"):
        open_store(copy)


@pytest.mark.parametrize("where", ["first row", "middle", "last row"])
def test_a_flipped_bit_in_the_rows_is_never_served(copy, where):
    offset = {"first row": 4096, "middle": 4096 + 12_345, "last row": 4096 + 16 * 1536 - 1}[where]
    flip(copy / "shard-000004.safetensors", offset)
    store = open_store(copy)
    with pytest.raises(DamagedShard, match=r"shard-000004\.safetensors .* the rows of its items 0 to 15"):
        list(store.chunks())
    with pytest.raises(DamagedShard, match=r"shard-000004"):
        list(open_store(copy).loader(64, passes=1))
    with pytest.raises(DamagedShard, match=r"shard-000004"):
        store.verify(progress=False)
    assert len(list(open_store(copy, check=False).chunks())) == 6


def test_a_flipped_bit_in_any_byte_of_a_shard_is_found(copy):
    shard = copy / "shard-000000.safetensors"
    whole = shard.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 60):
        flip(shard, at)
        with pytest.raises(DamagedShard, match="shard-000000"):
            open_store(copy).verify(progress=False)
        shard.write_bytes(whole)
    open_store(copy).verify(progress=False)


def test_the_block_checksum_sees_swapped_and_moved_pages():
    import numpy as np

    from visae.store.shard import block_sum

    rows = np.random.default_rng(0).integers(0, 2**16, (128, 4096), dtype=np.uint16)
    seen = {block_sum(rows)}
    pages = rows.reshape(-1, 2048)
    for a, b in [(0, 1), (3, 200), (17, 18), (0, 255)]:
        pages[[a, b]] = pages[[b, a]]
        seen.add(block_sum(rows))
        pages[[a, b]] = pages[[b, a]]
    pages[7] = 0
    seen.add(block_sum(rows))
    assert len(seen) == 6


def test_damaged_shards_are_made_anew_by_the_same_command(copy, make, stored):
    (copy / "shard-000003.safetensors").unlink()
    os.truncate(copy / "shard-000001.safetensors", 100)
    with pytest.warns(UserWarning, match=r"made anew: shard shard-00000[13]"):
        make(copy)
    assert contents(copy) == contents(stored.path)


def test_a_finished_run_does_nothing_and_other_ingredients_are_refused_by_name(copy, make, pictures):
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    make(copy)
    assert before == {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    with pytest.raises(StoreError, match=r"policy\.kinds: \[\"patch\"\] -> \[\"patch\", \"cls\"\]"):
        make(copy, policy=TokenPolicy(("patch", "cls")))
    with pytest.raises(StoreError, match=r"dtype: \"float16\" -> \"bfloat16\""):
        make(copy, dtype="bfloat16")
    with pytest.raises(StoreError, match="fingerprint"):
        make(copy, pictures(95))
    with pytest.raises(StoreError, match=r"has shards of 16 items, shard_bytes=.* asks for 32"):
        make(copy, shard_bytes=32 * 1536)


def test_another_model_of_the_same_name_is_refused(copy, kit, pictures):
    from visae.store import extract

    with pytest.raises(StoreError, match="revision: "):
        extract(kit.tiny_model(seed=1), "blocks.1", pictures(), copy, progress=False)


def test_an_index_that_was_edited_or_is_no_json_is_refused(copy):
    index = copy / "index.json"
    text = index.read_text()
    index.write_text(text.replace('"float16"', '"float32"'))
    with pytest.raises(StoreError, match="was edited"):
        open_store(copy)
    index.write_text(text[: len(text) // 2])
    with pytest.raises(StoreError, match="is damaged"):
        open_store(copy)
    index.write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(StoreError, match="schema 99"):
        open_store(copy)
    with pytest.raises(StoreError, match="there is no such folder"):
        open_store(copy / "nowhere")


def test_unreadable_images_keep_their_place_and_shift_nobody(make, pictures, stored, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = make(tmp_path / "rows", pictures(broken=(5, 40)))
    assert [(one.item, one.key, one.reason) for one in store.skipped] == [
        (5, "picture/5", "image file is truncated"),
        (40, "picture/40", "image file is truncated"),
    ]
    assert store.n_rows == 94 * 16
    assert not store.stored[[5, 40]].any()
    assert store.stored.sum() == 94
    assert store.keys == [f"picture/{i}" for i in range(96)]
    assert store.item_labels[6] == {"parity": ("even",), "part": ("bright",)}
    assert store.item_labels[5] == {}
    for item in (4, 6, 95):
        assert (store.item(item).rows.float() - stored.item(item).rows.float()).abs().max() < 1e-2
    with pytest.raises(KeyError, match=r"no rows of item 40 .* image file is truncated"):
        store.item(40)
