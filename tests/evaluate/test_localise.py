import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from visae.evaluate.localise import (
    TAUS,
    average_precision,
    best_tau,
    localise,
    overlap,
    overlaps,
    score_image,
    summarise,
)


def square(top, left, size, hw=(20, 30)):
    mask = np.zeros(hw, bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_a_mask_as_heat_map_scores_one_in_everything():
    masks = [square(2, 3, 5), square(10, 20, 8)]
    found = localise([m.astype(float) for m in masks], masks, tau_best=0.5)
    assert found.pointing == found.iou == found.iou_best == found.pixel_ap == found.energy == 1.0
    assert found.silent == 0
    assert found.n == 2


def test_a_uniform_heat_map_scores_the_area_of_the_mask():
    masks = [square(2, 3, 5), square(10, 20, 8)]
    area = (25 + 64) / 2 / 600
    found = localise([np.full(m.shape, 3.7) for m in masks], masks)
    for value in (found.pointing, found.iou, found.pixel_ap, found.energy, found.chance):
        assert value == pytest.approx(area, abs=1e-12)


def test_a_silent_heat_map_points_nowhere_and_ranks_at_chance():
    mask = square(2, 3, 5)
    found = localise([np.zeros(mask.shape)], [mask])
    assert (found.pointing, found.iou, found.energy, found.silent) == (0, 0, 0, 1)
    assert found.pixel_ap == found.chance == pytest.approx(25 / 600)


def test_a_heat_map_beside_the_object_scores_zero():
    found = localise([square(10, 20, 8).astype(float)], [square(2, 3, 5)])
    assert (found.pointing, found.iou, found.energy) == (0, 0, 0)


def test_a_hand_made_example():
    heat = np.array([[4.0, 2.0, 1.0, 0.0]])
    mask = np.array([[True, False, True, False]])
    pointing, iou, ap, energy, area, silent, at_best = score_image(heat, mask, tau_best=0.2)
    assert (pointing, area, silent) == (1, 0.5, 0)
    assert iou == pytest.approx(1 / 3)  # above 1.2: two pixels, one of them right, three in the union
    assert at_best == pytest.approx(2 / 3)  # above 0.8: three pixels
    assert ap == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert energy == pytest.approx(5 / 7)


def test_pointing_shares_a_tie_among_the_largest_pixels():
    assert score_image(np.array([[1.0, 1.0, 1.0, 0]]), np.array([[True, False, False, False]]))[0] == pytest.approx(
        1 / 3
    )


@pytest.mark.parametrize("seed", range(5))
def test_pixel_ap_is_average_precision_of_sklearn_with_ties(seed):
    rng = np.random.default_rng(seed)
    heat, mask = rng.integers(0, 7, 200) / 2, rng.random(200) < 0.2
    assert average_precision(heat, mask) == pytest.approx(average_precision_score(mask, heat), abs=1e-12)


def test_pixels_that_the_model_never_saw_count_nowhere():
    mask = square(2, 3, 5)
    heat = mask.astype(float)
    heat[:, 15:] = 9  # unseen
    seen = np.zeros(mask.shape, bool)
    seen[:, :15] = True
    found = localise([heat], [mask], seen=[seen])
    assert found.pointing == found.iou == 1.0
    assert found.chance == pytest.approx(25 / 300)


def test_negative_values_do_not_count_as_heat():
    heat = np.where(square(2, 3, 5), 1.0, -5.0)
    assert localise([heat], [square(2, 3, 5)]).energy == 1.0


def test_the_best_threshold_is_the_one_that_cuts_the_object_out():
    mask = square(4, 4, 6)
    heat = np.where(mask, 1.0, 0.0) + np.where(square(2, 2, 10), 0.6, 0.0)
    assert best_tau([heat], [mask]) == min(t for t in TAUS if t * 1.6 >= 0.6)


@pytest.mark.parametrize("seed", range(3))
def test_overlap_at_all_thresholds_at_once_is_overlap_at_each(seed):
    rng = np.random.default_rng(seed)
    heat, mask = rng.exponential(1, (20, 30)) * (rng.random((20, 30)) < 0.7), square(2, 3, 5)
    np.testing.assert_allclose(overlaps(heat, mask), [overlap(heat, mask, tau) for tau in TAUS])
    assert not overlaps(heat * 0, mask).any()


def test_interval_covers_the_mean_and_narrows_with_more_images():
    rows = [np.array([i % 2, 0.5, 0.5, 0.5, 0.1, 0, np.nan]) for i in range(100)]
    few, many = summarise(rows[:10]), summarise(rows)
    for found in (few, many):
        assert found.ci["pointing"][0] < 0.5 < found.ci["pointing"][1]
    assert many.ci["pointing"][1] - many.ci["pointing"][0] == pytest.approx(4 * 0.5 / 10 * 0.98, rel=0.1)
    assert few.ci["pointing"][1] - few.ci["pointing"][0] > 2 * (many.ci["pointing"][1] - many.ci["pointing"][0])


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="no image"):
        localise([], [])
    with pytest.raises(ValueError, match="bring the heat to pixels"):
        localise([np.ones((2, 2))], [square(2, 3, 5)])
    with pytest.raises(ValueError, match="no pixel that the model saw"):
        localise([np.ones((4, 4))], [np.zeros((4, 4), bool)])
    with pytest.raises(ValueError, match="shorter"):
        localise([np.ones((20, 30))] * 2, [square(2, 3, 5)])
