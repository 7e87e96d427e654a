"""Geometry against closed forms, and round trips over many sizes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visae.geometry import Framing, Geometry

side = st.integers(min_value=3, max_value=400)
sizes = st.tuples(side, side)
modes = st.sampled_from(["shortest", "cover", "fit", "squash", "none"])
framings = st.builds(
    Framing,
    input_hw=st.tuples(st.integers(16, 256), st.integers(16, 256)),
    mode=modes,
    resize_hw=st.one_of(st.none(), st.tuples(st.integers(16, 300), st.integers(16, 300))),
    size_rounding=st.sampled_from(["floor", "round"]),
    crop_rounding=st.sampled_from(["floor", "round"]),
)
PATCH16 = Geometry(Framing((224, 224), "shortest", (256, 256)), (14, 14), (16, 16), prefix=("cls",))


@given(framing=framings, image_hw=sizes)
def test_a_point_brought_to_the_input_and_back_is_the_same_point(framing, image_hw):
    placement = framing.place(image_hw)
    points = np.random.default_rng(0).uniform(-50, 450, (7, 2))
    np.testing.assert_allclose(placement.to_image(placement.to_input(points)), points, atol=1e-6)


@given(framing=framings, image_hw=sizes)
def test_a_geometry_saved_as_json_comes_back_equal(framing, image_hw):
    geometry = Geometry(framing, (3, 5), (7.0, 9.5), (-0.5, 2.0), ("cls", "reg"), (0.0, 1.0, 20.0, 50.0))
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert Framing.from_dict(json.loads(json.dumps(framing.to_dict()))).place(image_hw) == framing.place(image_hw)


def test_cards_written_before_tokens_had_a_reach_still_load():
    data = PATCH16.to_dict()
    del data["reach"]
    assert Geometry.from_dict(data) == PATCH16


def test_resize_and_crop_put_the_corners_where_torchvision_puts_them():
    placement = Framing((224, 224), "shortest", (256, 256)).place((480, 640))
    assert placement.scale == (256 / 480, 341 / 640)
    assert placement.offset == (-16.0, -58.0)
    assert placement.visible == pytest.approx((30.0, 58 * 640 / 341, 450.0, 282 * 640 / 341))


@pytest.mark.parametrize(("mode", "expected"), [
    ("shortest", (224, 448)), ("cover", (224, 448)), ("fit", (112, 224)), ("squash", (224, 224)), ("none", (100, 200)),
])  # fmt: skip
def test_each_mode_resizes_a_wide_image_as_its_name_says(mode, expected):
    assert Framing((224, 224), mode).resized((100, 200)) == expected


def test_tokens_are_numbered_row_by_row_behind_the_prefix():
    assert (PATCH16.n_tokens, PATCH16.index(0, 0), PATCH16.index(2, 3)) == (197, 1, 32)
    assert PATCH16.position(0) is None
    assert [PATCH16.position(PATCH16.index(r, c)) for r, c in ((0, 0), (13, 13), (5, 8))] == [(0, 0), (13, 13), (5, 8)]


def test_coverage_is_the_share_of_a_tokens_pixels_in_closed_form():
    geometry = Geometry(Framing((64, 64), "none"), (8, 8), (8, 8))
    mask = np.zeros((64, 64), dtype=bool)
    mask[8:16, 16:24] = True  # exactly token (1, 2)
    mask[40:44, 0:8] = True  # upper half of token (5, 0)
    expected = np.zeros((8, 8))
    expected[1, 2], expected[5, 0] = 1, 0.5
    np.testing.assert_allclose(geometry.coverage(mask), expected, atol=1e-7)


@settings(max_examples=60)
@given(framing=framings, image_hw=sizes, seed=st.integers(0, 99))
def test_covered_area_of_all_tokens_is_the_area_of_the_mask_that_they_see(framing, image_hw, seed):
    height, width = framing.input_hw
    geometry = Geometry(framing, (4, 6), (height / 4, width / 6))
    mask = np.random.default_rng(seed).random(image_hw) < 0.4
    rows, columns = geometry.edges(image_hw)
    area = np.outer(np.diff(rows), np.diff(columns))
    inside = [np.clip(np.minimum(e[-1], np.arange(n) + 1) - np.maximum(e[0], np.arange(n)), 0, 1)
              for e, n in zip((rows, columns), image_hw, strict=True)]  # fmt: skip
    expected = inside[0] @ mask.astype(float) @ inside[1]
    assert (geometry.coverage(mask) * area).sum() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@settings(max_examples=60)
@given(image_hw=sizes, grid=st.tuples(st.integers(2, 9), st.integers(2, 9)), data=st.data())
def test_a_token_painted_back_on_the_image_covers_the_token_it_came_from(image_hw, grid, data):
    """mask -> tokens -> image -> tokens: heat of one token, shown by nearest neighbour, falls on that token."""
    geometry = Geometry(Framing((90, 72), "squash"), grid, (90 / grid[0], 72 / grid[1]))
    at = data.draw(st.integers(0, grid[0] - 1)), data.draw(st.integers(0, grid[1] - 1))
    heat = np.zeros(grid)
    heat[at] = 1
    shown = geometry.to_image(heat, image_hw, "nearest") > 0.5
    if shown.any():  # an image with fewer pixels than tokens may show nothing of one
        coverage = geometry.coverage(shown)
        assert coverage[at] >= coverage.max() - 1e-6  # a pixel as large as two tokens covers both


def test_a_constant_heat_map_stays_constant_where_the_model_saw_the_image_and_is_fill_elsewhere():
    heat = np.full((14, 14), 3.0)
    shown = PATCH16.to_image(heat, (300, 500), fill=-1.0)
    seen = PATCH16.seen((300, 500))
    assert (shown[seen] == 3).all()
    assert (shown[~seen] == -1).all()
    top, left, bottom, right = PATCH16.framing.place((300, 500)).visible
    assert seen.sum() == pytest.approx((bottom - top) * (right - left), rel=0.02)


def test_a_linear_ramp_over_tokens_is_a_linear_ramp_over_pixels():
    geometry = Geometry(Framing((64, 64), "none"), (8, 8), (8, 8))
    shown = geometry.to_image(np.tile(np.arange(8.0), (8, 1)), (64, 64))
    np.testing.assert_allclose(shown[30, 4:60], (np.arange(4, 60) + 0.5) / 8 - 0.5, atol=1e-6)


def test_tokens_with_a_reach_share_out_every_pixel_of_the_input():
    """ResNet at 224: centres at 0.5, 32.5, ...; the first token is cut at the border, the last stretched to it."""
    geometry = Geometry(Framing((224, 224), "none"), (7, 7), (32, 32), (-15.5, -15.5), reach=(0, 0, 224, 224))
    rows, _ = geometry.edges((224, 224))
    assert rows.tolist() == [0, 16.5, 48.5, 80.5, 112.5, 144.5, 176.5, 224]
    np.testing.assert_allclose(geometry.coverage(np.ones((224, 224), dtype=bool)), 1)
    assert geometry.seen((224, 224)).all()


def test_pixels_that_a_patch_embedding_drops_are_not_seen():
    geometry = Geometry(Framing((70, 70), "none"), (4, 4), (16, 16))
    assert geometry.seen((70, 70)).sum() == 64 * 64


def test_the_region_that_covers_most_of_a_token_wins():
    geometry = Geometry(Framing((32, 32), "none"), (2, 2), (16, 16))
    regions = np.zeros((32, 32), dtype=np.int64)
    regions[:16, :10], regions[:16, 10:16] = 7, 2
    regions[16:, 16:20] = 5
    assert geometry.regions(regions).tolist() == [[7, 0], [0, 0]]


def test_wrong_heat_maps_and_empty_images_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\(14, 14\) rows and columns, got \(7, 7\)"):
        PATCH16.to_image(np.zeros((7, 7)), (10, 10))
    with pytest.raises(ValueError, match="at least one pixel"):
        PATCH16.framing.place((0, 5))
