"""The data set: labels, masks, boxes, splits, specs."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from visae.data.sample import ImageData
from visae.registry import UnknownName
from visae.world import Scene, World, world_from_spec
from visae.world.factors import FACTORS, SPLITS, TAXONOMY
from visae.world.render import regions


def test_world_is_image_data() -> None:
    world = World("train", 10)
    assert isinstance(world, ImageData)
    assert len(world) == 10
    assert world.factors == FACTORS


def test_labels_regions_and_boxes_agree() -> None:
    world = World("train", 120, objects=(1, 3))
    for i in range(120):
        sample, scene = world[i], world.scene(i)
        np.testing.assert_array_equal(np.asarray(sample.image), world.render(i))
        assert list(sample.labels) == list(world.factors)
        assert sample.labels["count"] == (("one", "two", "three")[len(scene.things) - 1],)
        assert len(sample.region_labels) == len(sample.boxes) == sample.regions.max() == len(scene.things)
        for factor in ("shape", "style", "colour", "size", "position", "rotation"):
            assert set(sample.labels[factor]) == {known[factor] for known in sample.region_labels}
        for number, known in enumerate(sample.region_labels, 1):
            assert TAXONOMY[known["shape"]] == (known["family"], known["subfamily"])
            rows, cols = np.nonzero(sample.regions == number)
            x0, y0, x1, y1 = sample.boxes[number - 1]
            assert (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
            assert 0 < len(rows) < 64 * 64
        assert sample.mask("shape", sample.region_labels[0]["shape"]).any()


def test_position_and_size_labels_are_where_things_are() -> None:
    world = World("train", 300, objects=(1, 3))
    radii: dict[str, list[float]] = {}
    for i in range(300):
        for thing in world.scene(i).things:
            row, column = thing.position.split("-")
            assert column == ("left" if thing.x < 0.45 else "right" if thing.x > 0.55 else "centre")
            assert row == ("top" if thing.y < 0.45 else "bottom" if thing.y > 0.55 else "middle")
            radii.setdefault(thing.size, []).append(thing.radius)
    assert max(radii["small"]) < min(radii["medium"])
    assert max(radii["medium"]) < min(radii["large"])


def test_objects_do_not_hide_each_other_or_leave_the_image() -> None:
    world = World("validation", 150, objects=(2, 3))
    for i in range(150):
        scene = world.scene(i)
        assert all(1.1 * t.radius <= min(t.x, t.y, 1 - t.x, 1 - t.y) for t in scene.things)
        sizes = np.bincount(world.regions(i).ravel(), minlength=len(scene.things) + 1)[1:]
        alone = [area_alone(scene, j) for j in range(len(scene.things))]
        np.testing.assert_array_equal(sizes, alone)


def area_alone(scene: Scene, j: int) -> int:
    """Pixels object j would have without the others."""
    return int((regions(replace(scene, things=(scene.things[j],)), 64) == 1).sum())


def test_every_value_of_every_factor_occurs_about_equally_often() -> None:
    world = World("train", 2400)
    scenes = [world.scene(i) for i in range(2400)]
    for factor in ("shape", "style", "colour", "size"):
        counts = [sum(getattr(s.things[0], factor) == v for s in scenes) for v in FACTORS[factor]]
        assert min(counts) > 0.7 * 2400 / len(counts), factor
    counts = [sum(s.background == v for s in scenes) for v in FACTORS["background"]]
    assert min(counts) > 0.85 * 600


def test_splits_never_share_an_image() -> None:
    seen: dict[str, set[bytes]] = {}
    for split in SPLITS:
        world = World(split, 1500)
        seen[split] = {hashlib.sha256(world.render(i).tobytes()).digest() for i in range(1500)}
        assert len(seen[split]) == 1500
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not seen[one] & seen[other]


def test_splits_have_no_position_in_common_whatever_the_seed() -> None:
    for number, split in enumerate(SPLITS):
        for seed in (0, 5):
            world = World(split, 100, seed=seed, objects=(1, 3))
            for i in range(100):
                for thing in world.scene(i).things:
                    assert round(thing.x * 6144) % 3 == round(thing.y * 6144) % 3 == number


def test_spec_and_name_are_inverse() -> None:
    for spec in ("world:test?n=5&objects=1-3", "world", "world:validation", "train?size=96&variant=spurious&p=0.25"):
        world = world_from_spec(spec)
        again = world_from_spec(world.name)
        assert (again.name, again.fingerprint) == (world.name, world.fingerprint)
        np.testing.assert_array_equal(again.render(0), world.render(0))
    assert world_from_spec("world:test?n=5").fingerprint != world_from_spec("world:test?n=6").fingerprint


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("world:tset", UnknownName, "Did you mean 'test'"),
        ("world:test?sise=64", UnknownName, "Did you mean 'size'"),
        ("world:test?n", ValueError, "key=value"),
        ("world:test?n=many", ValueError, "whole number"),
        ("world:test?n=1&n=2", ValueError, "twice"),
        ("world:test?n=0", ValueError, "at least 1"),
        ("world:test?size=16", ValueError, "32 to 224"),
        ("world:test?objects=1-4", ValueError, "1 to 3"),
        ("world:test?variant=spurius", UnknownName, "Did you mean 'spurious'"),
        ("world:test?variant=spurious&p=high", ValueError, "number"),
        ("world:test?variant=spurious&p=1.5", ValueError, "probability"),
        ("world:test?variant=spurious&a=color", UnknownName, "Did you mean 'colour'"),
        ("world:test?variant=spurious&a=shape&b=shape", ValueError, "another factor"),
        ("world:test?variant=shift&strength=3", ValueError, "between 0 and 1"),
        ("world:test?variant=homonym&objects=1-3", ValueError, "single objects"),
    ],
)
def test_errors_say_what_to_do(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        world_from_spec(spec)


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="0 to 9"):
        World("train", 10).render(10)
