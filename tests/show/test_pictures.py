import io

import numpy as np
import pytest
from PIL import Image

from visae.geometry import Framing, Geometry
from visae.show import (
    colour,
    density_figure,
    grid_figure,
    heat_figure,
    label_figure,
    latent_figure,
    overlay,
    strongest_figure,
)
from visae.show.gallery import token_boxes

GREY = Image.new("RGB", (40, 30), (120, 120, 120))


def block(value=1.0, hw=(30, 40)):
    heat = np.zeros(hw)
    heat[5:10, 20:30] = value
    return heat


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_only_pixels_with_heat_change_and_stronger_heat_changes_more():
    out = [np.asarray(overlay(GREY, block(v), vmax=1.0)).astype(int) for v in (0.25, 0.5, 1.0)]
    for picture in out:
        assert (picture[block() == 0] == 120).all()
    change = [np.abs(p[7, 25] - 120).sum() for p in out]
    assert change[0] < change[1] < change[2]


def test_without_heat_the_picture_is_half_way_to_grey_and_without_fade_it_stays():
    red = Image.new("RGB", (40, 30), (200, 0, 0))
    assert np.asarray(overlay(red, np.zeros((30, 40)), fade=0.0))[0, 0].tolist() == [200, 0, 0]
    assert np.asarray(overlay(red, np.zeros((30, 40)), fade=1.0))[0, 0].tolist() == [60, 60, 60]


def test_negative_values_have_colours_of_their_own_and_opacity_follows_size():
    paint = colour(np.array([[1.0, -1.0, 0.0, 0.5]]))
    assert paint[0, 0, 0] > paint[0, 0, 2]
    assert paint[0, 1].tolist() != paint[0, 0].tolist()
    assert paint[0, :, 3].tolist() == [255, 255, 0, round(255 * 0.5**0.7)]


def test_pixels_the_model_never_saw_are_hatched_whatever_the_heat_says():
    seen = np.ones((30, 40), bool)
    seen[:, :10] = False
    picture = np.asarray(overlay(GREY, np.ones((30, 40)), seen=seen))
    unseen = picture[:, :10].reshape(-1, 3)
    assert len(np.unique(unseen, axis=0)) == 2
    assert (np.ptp(unseen, axis=1) == 0).all()
    assert np.ptp(picture[:, 10:].reshape(-1, 3), axis=1).min() > 0


def test_a_heat_map_of_another_size_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"Geometry\.to_image"):
        overlay(GREY, np.zeros((40, 30)))


@pytest.mark.parametrize(
    "figure",
    [
        lambda: heat_figure(GREY, block(), title="latent 3"),
        lambda: latent_figure(
            [GREY] * 7, [block(i + 1) for i in range(7)], captions=[str(i) for i in range(7)], columns=3
        ),
        lambda: strongest_figure(
            GREY, np.stack([block(), block(2)]), ["latent 1", "latent 2"], seen=np.ones((30, 40), bool)
        ),
        lambda: label_figure(
            [GREY, GREY], [np.stack([block(), block(2)])] * 2, ["latent 1", "latent 2"], title="shape=circle"
        ),
        lambda: grid_figure([[GREY]], [[-block()]], vmax=1.0),
    ],
    ids=["heat", "latent", "strongest", "label", "negative"],
)
def test_every_figure_shows_heat_and_has_a_colour_bar(figure):
    made = figure()
    assert any(axis.get_label() == "<colorbar>" for axis in made.axes)
    picture = png(made).astype(int)
    assert (np.ptp(picture, axis=-1) > 60).sum() > 50  # colour there is only where heat and bar are


def test_one_latent_over_many_images_has_one_scale():
    made = latent_figure([GREY] * 2, [block(1.0), block(4.0)], columns=2)
    bars = [axis for axis in made.axes if axis.get_label() == "<colorbar>"]
    assert len(bars) == 1
    assert bars[0].get_ylim() == (0, 4)
    weak, strong = (np.asarray(axis.images[0].get_array()).astype(int)[7, 25] for axis in made.axes[:2])
    assert np.abs(weak - 120).sum() < np.abs(strong - 120).sum()


def test_an_image_without_any_heat_draws():
    png(heat_figure(GREY, np.zeros((30, 40))))
    png(density_figure(np.array([0.0, 0.1, 0.001]), title="world"))


def test_boxes_of_a_cropped_image_reach_from_the_first_to_the_last_token():
    geometry = Geometry(Framing((32, 32)), (4, 4), (8.0, 8.0))
    table = type("Table", (), {"geometry": geometry})
    box, seen = token_boxes(table, (64, 128))  # the centre square of a wide image
    assert box == seen == [0.25, 0.0, 0.75, 1.0]
    stretched = Geometry(Framing((32, 32)), (4, 4), (8.0, 8.0), offset=(-4.0, -4.0), reach=(0.0, 0.0, 32.0, 32.0))
    table.geometry = stretched
    assert token_boxes(table, (32, 32)) == ([-0.125, -0.125, 0.875, 0.875], [0.0, 0.0, 1.0, 1.0])
