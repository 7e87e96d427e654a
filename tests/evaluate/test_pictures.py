"""Distances between pictures: each hears its own change and is deaf to the others."""

import numpy as np
import pytest
from PIL import Image

from visae.evaluate.pictures import DISTANCES


def scene(at=(8, 8), colour=(200, 60, 60), grain=0.0, side=64):
    """A square on grey, with a fine checkerboard over everything."""
    pixels = np.full((side, side, 3), 120.0)
    pixels[at[0] : at[0] + 24, at[1] : at[1] + 24] = colour
    board = np.indices((side, side)).sum(0) % 2 * 2 - 1
    return Image.fromarray((pixels + grain * board[..., None]).clip(0, 255).astype(np.uint8))


def of_equal_luminance(colour):
    """A colour with the luminance of the scene's square."""
    weights = np.array([0.299, 0.587, 0.114])
    return tuple(np.asarray(colour) + float(weights @ (200, 60, 60) - weights @ colour))


CHANGES = {
    "layout": scene(at=(32, 32)),
    "texture": scene(grain=25.0),
    "colour": scene(colour=of_equal_luminance((60, 110, 200))),
}


def test_a_picture_is_at_no_distance_from_itself():
    for distance in DISTANCES.values():
        assert distance([scene()], [scene()]) == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize("changed", CHANGES)
def test_each_distance_hears_its_own_change_and_is_deaf_to_the_others(changed):
    found = {name: float(distance([scene()], [CHANGES[changed]])[0]) for name, distance in DISTANCES.items()}
    own = found.pop(changed)
    assert own > 0.1
    assert all(value < own / 5 for value in found.values()), found


def test_the_inverse_layout_is_at_two_and_disjoint_colours_at_one():
    white, half = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32), "white")
    half.paste("black", (0, 0, 16, 32))
    other = Image.fromarray(255 - np.asarray(half))
    assert DISTANCES["layout"]([half], [other]) == pytest.approx([2.0])
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    assert DISTANCES["colour"]([red, white], [blue, white]) == pytest.approx([1.0, 0.0])


def test_sizes_must_agree():
    for distance in DISTANCES.values():
        with pytest.raises(ValueError, match="one size"):
            distance([scene(), scene(side=80)], [scene(), scene()])
