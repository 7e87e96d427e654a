"""Pixels: the same bytes everywhere, and masks that fit them."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from visae.world import World
from visae.world.factors import ANGLES, PALETTE, SHAPES, STYLES
from visae.world.hashing import Stream, lattice_noise, mix64
from visae.world.render import regions, render
from visae.world.shapes import REACH, SHAPE_DISTANCES

PINNED = {
    (32, "plain"): "cb2a393e7ee8cf8a4e2a",
    (64, "plain"): "c7349910861a349dfd81",
    (100, "plain"): "2eb0f25ba985eeb5cb79",
    (224, "plain"): "8cd17b08d96a59266d24",
    (64, "shift"): "e0199dc1a02c822fd94d",
    (64, "homonym"): "c25e6c122279a8fef203",
}


def digest(size: int, variant: str) -> str:
    """One hash over twelve images that together show every shape and style."""
    crowd = 1 if variant == "homonym" else (1, 3)
    world = World("train", 12, size, seed=3, objects=crowd, variant=variant)
    return hashlib.sha256(b"".join(world.render(i).tobytes() for i in range(12))).hexdigest()[:20]


@pytest.mark.parametrize(("size", "variant"), PINNED)
def test_images_have_the_bytes_they_always_had(size: int, variant: str) -> None:
    # Whoever changes the drawing on purpose raises DRAWING_VERSION, retrains the models and pins anew.
    assert digest(size, variant) == PINNED[size, variant]


def test_the_hash_is_splitmix64() -> None:
    # First outputs of the reference implementation for seed 0.
    assert [mix64(i * 0x9E3779B97F4A7C15 % 2**64) for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_noise_does_not_depend_on_the_window() -> None:
    whole = lattice_noise(np.arange(-4, 20), np.arange(-4, 30), 7)
    part = lattice_noise(np.arange(3, 9), np.arange(-2, 5), 7)
    np.testing.assert_array_equal(part, whole[7:13, 2:9])
    assert abs((whole / 2**32).mean() - 0.5) < 0.05


def test_draws_are_even_and_independent_of_other_keys() -> None:
    counts = np.bincount([Stream(1, i).below(8) for i in range(4000)], minlength=8)
    assert counts.min() > 400
    assert counts.max() < 600
    assert Stream(1, 2).bits() != Stream(2, 1).bits()


def test_an_image_depends_on_its_index_alone() -> None:
    world, other = World("train", 50, objects=(1, 3)), World("train", 9000, objects=(1, 3))
    backwards = {i: world.render(i) for i in reversed(range(50))}
    for i in range(50):
        np.testing.assert_array_equal(other.render(i), backwards[i])
    assert not np.array_equal(world.render(0), World("train", 50, seed=1, objects=(1, 3)).render(0))


@pytest.mark.parametrize("size", [32, 96, 224])
def test_every_size_shows_the_same_scene(size: int) -> None:
    small, large = World("test", 20, 64, objects=(1, 3)), World("test", 20, size, objects=(1, 3))
    for i in range(20):
        assert small.scene(i) == large.scene(i)
        share = [np.bincount(w.regions(i).ravel(), minlength=4) / w.size**2 for w in (small, large)]
        np.testing.assert_allclose(share[0], share[1], atol=0.012)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_pixels_that_change_when_the_object_goes(shape: str) -> None:
    world = World("test", 30)
    for i in range(12):
        scene = world.scene(i)
        thing = replace(scene.things[0], shape=shape, style="flat")
        scene = replace(scene, things=(thing,))
        mask = regions(scene, 64) == 1
        painted = (render(scene, 64) != render(replace(scene, things=()), 64)).any(-1)
        # Edges are antialiased: half a pixel may be touched outside; nothing inside stays as it was.
        assert mask[painted].mean() > 0.75
        assert (painted | ~mask).mean() > 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances(shape: str) -> None:
    step = 1e-3
    axis = np.linspace(-1.2, 1.2, 121)
    x, y = axis[None, :], axis[:, None]
    here, right = SHAPE_DISTANCES[shape](x, y), SHAPE_DISTANCES[shape](x + step, y)
    away = np.sqrt(x * x + y * y) > 0.15  # the oval is a first-order estimate, wild at its centre
    assert (np.abs(right - here) * away).max() <= step * 2.2
    if shape == "oval":
        assert here[60, 60] < 0
    inside = (here < 0).mean() * 2.4**2
    assert 0.9 < inside < 2.9  # area in square radii: no shape is tiny, none fills its window
    assert here[np.sqrt(x * x + y * y) > REACH].min() > 0


def test_a_flat_object_has_its_colour_all_over() -> None:
    world = World("test", 400)
    for i in range(400):
        thing = world.scene(i).things[0]
        if thing.style == "flat":
            inner = inner_pixels(world, i)
            expected = np.clip(np.array(PALETTE[thing.colour]) + thing.tint, 0, 255)
            assert (world.render(i)[inner] == expected).all()


def inner_pixels(world: World, i: int) -> np.ndarray:
    """Pixels of object 1 with two pixels of its own all around."""
    mask = np.pad(world.regions(i) == 1, 2)
    return np.lib.stride_tricks.sliding_window_view(mask, (5, 5)).all((2, 3))


def test_styles_and_shapes_look_different() -> None:
    scene = World("test", 10).scene(0)
    thing = replace(scene.things[0], x=0.5, y=0.5, radius=0.17, angle=0)
    pictures = {
        (shape, style): render(replace(scene, things=(replace(thing, shape=shape, style=style),)), 64).astype(float)
        for shape in SHAPES
        for style in STYLES
    }
    for (shape, style), picture in pictures.items():
        for (other_shape, other_style), other in pictures.items():
            if (shape, style) < (other_shape, other_style):
                assert np.abs(picture - other).sum() > 2500, f"{shape} {style} and {other_shape} {other_style}"


def test_every_angle_in_use_can_be_drawn() -> None:
    scene = World("test", 10).scene(0)
    thing = replace(scene.things[0], shape="elbow")
    for angle in {angle for angles in ANGLES.values() for angle in angles}:
        assert render(replace(scene, things=(replace(thing, angle=angle),)), 64).shape == (64, 64, 3)
