"""From what a user types to samples; parts of data sets; fingerprints."""

import os

import numpy as np
import pytest
from PIL import Image

from visae.data import ImageData, Sample, load_data, split, subset


@pytest.fixture
def folder(tmp_path):
    for name in ("cats/a.png", "cats/siamese/b.jpg", "dogs/c.png", "dogs/.hidden.png", "loose.bmp", "dogs/readme.txt"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (8, 6), "red").save(path)
    return tmp_path / "pets"


def test_a_folder_by_every_way_of_naming_it(folder):
    for spec in (folder, str(folder), f"folder:{folder}", f"{folder}?check=header"):
        data = load_data(spec)
        assert isinstance(data, ImageData)
        assert [data[i].key for i in range(len(data))] == [
            "cats/a.png",
            "cats/siamese/b.jpg",
            "dogs/c.png",
            "loose.bmp",
        ]
        assert data.factors == {"class": ["cats", "dogs"]}
        assert data[1].labels == {"class": ("cats",)}
        assert data[3].labels == {}
        assert len(load_data(data.name)) == 4


def test_a_glob_a_file_and_a_list(folder):
    assert [load_data(f"{folder}/*/?.png")[i].image.size for i in range(2)] == [(8, 6)] * 2
    assert len(load_data(f"{folder}/**/*.*")) == 4
    assert len(load_data(folder / "loose.bmp")) == 1
    two = load_data([folder / "cats/a.png", str(folder / "dogs/c.png")])
    assert two[1].key == (folder / "dogs/c.png").as_posix()
    with pytest.raises(FileNotFoundError, match=r"no file .*nope\.png \(and 1 more\)"):
        load_data([folder / "nope.png", folder / "nor.png"])
    with pytest.raises(FileNotFoundError, match=r"no image matches .*\(1 other files do\)"):
        load_data(f"{folder}/dogs/*.txt")
    with pytest.raises(FileNotFoundError, match="there is no folder of images at /no/such"):
        load_data("folder:/no/such")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images below"):
        load_data(folder / "empty")


def test_a_number_of_images_is_spread_evenly(folder):
    assert [load_data(f"{folder}?n=2")[i].key for i in range(2)] == ["cats/a.png", "dogs/c.png"]
    assert len(load_data(folder, n=99)) == 4
    with pytest.raises(ValueError, match="n counts images and must be at least 1, got '0'"):
        load_data(folder, n=0)
    with pytest.raises(ValueError, match=r"key=value pairs joined by &, got 'check'"):
        load_data(f"{folder}?n=2&check")


def test_links_that_lead_in_circles_end(folder):
    os.symlink(folder, folder / "cats" / "again")
    assert len(load_data(folder)) == 4


def test_the_world_is_found_by_its_prefix_and_takes_more_keys():
    data = load_data("world:test?n=3&objects=1", size=48)
    assert len(data) == 3
    assert data[0].image.size == (48, 48)
    assert isinstance(data, ImageData)
    assert len(load_data("world", n=5)) == 5


def test_the_fingerprint_changes_with_files_and_labels_and_with_nothing_else(folder):
    first = load_data(folder).fingerprint
    assert load_data(folder).fingerprint == first
    assert load_data(folder, factor="animal").fingerprint != first
    path = folder / "cats/a.png"
    os.utime(path, ns=(1, 1))
    touched = load_data(folder).fingerprint
    assert touched != first
    Image.new("RGB", (8, 6), "blue").save(folder / "new.png")
    assert load_data(folder).fingerprint not in (first, touched)


class Patients:
    name, fingerprint = "patients", "1"

    def __init__(self, n=200):
        self.n = n
        self.factors = {}

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        group = None if index % 7 == 0 else f"patient {index // 5}"
        return Sample(Image.new("RGB", (4, 4)), f"{index}", group=group)


def test_a_split_keeps_groups_together_and_shares_close():
    data = Patients()
    parts = split(data, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=3)
    everything = np.concatenate([part.indices for part in parts.values()])
    assert sorted(everything.tolist()) == list(range(200))
    groups = [{part[i].group for i in range(len(part))} - {None} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert abs(len(parts["train"]) - 120) <= 10
    again = split(data, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=3)
    assert again["train"].fingerprint == parts["train"].fingerprint
    assert split(data, {"train": 0.6}, seed=4)["train"].fingerprint != parts["train"].fingerprint
    assert parts["test"].fingerprint != parts["validation"].fingerprint


def test_a_split_refuses_shares_that_make_no_sense():
    with pytest.raises(ValueError, match="add up to at most 1"):
        split(Patients(), {"a": 0.8, "b": 0.4})
    with pytest.raises(ValueError, match=r"the part 'b' .* would be empty"):
        split(Patients(3), {"a": 0.9, "b": 0.01})


def test_a_subset_keeps_order_and_factors(folder):
    data = load_data(folder)
    part = subset(data, [2, 0])
    assert [part[i].key for i in range(2)] == ["dogs/c.png", "cats/a.png"]
    assert part.factors == data.factors
    assert subset(part, [1])[0].key == "cats/a.png"
    with pytest.raises(IndexError, match="has samples 0 to 3, asked for 0 to 4"):
        subset(data, [0, 4])


def test_globs_and_folders_may_stand_among_files(tmp_path):
    from PIL import Image

    for name in ("a1.png", "a2.png", "b.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = load_data([tmp_path / "b.png", str(tmp_path / "a*"), tmp_path / "deep"])
    assert [found[i].key.rsplit("/", 1)[1] for i in range(len(found))] == ["b.png", "a1.png", "a2.png", "c.png"]
    with pytest.raises(FileNotFoundError, match="no image matches"):
        load_data([tmp_path / "b.png", str(tmp_path / "z*")])
