"""Rates, their intervals, and distances between kinds of pictures, against closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image

from visae.evaluate.harm import frechet_distance, harm
from visae.evaluate.pictures import identical, pixel_distance
from visae.evaluate.rates import Tally, rate


def hits(*values):
    return Tally.of(np.array(values, float))


def test_a_rate_is_the_share_of_hits_and_of_several_the_mean():
    assert rate([hits(1, 1, 0, 1)]).value == 0.75
    half = Tally.of(np.array([1.0, 0, 1, 1]), np.array([True, True, False, False]))
    assert rate([half]).value == 0.5
    assert rate([half, hits(1, 1, 1, 1)]).value == 0.75
    assert rate([half], [hits(1, 1, 1, 1)], [hits(0, 0, 0, 0)]).value == pytest.approx(0.5)
    assert (rate([half]).n, rate([half, hits(1, 1, 1, 1)]).n) == (2, 6)
    nobody = Tally.of(np.ones(4), np.zeros(4, bool))
    assert rate([nobody]) is None
    assert rate([half], [nobody]) is None
    assert rate([half, nobody]).value == 0.5
    with pytest.raises(ValueError, match="same images"):
        rate([hits(1, 0), hits(1, 0, 1)])


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng, n, p = np.random.default_rng(5), 120, 0.8
    covered = 0
    for trial in range(200):
        found = rate([Tally.of((rng.random(n) < p).astype(float))], draws=400, seed=trial)
        covered += found.low <= p <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_an_interval_is_as_wide_as_the_law_of_shares_says():
    found = rate([Tally.of(np.arange(400) % 4 != 0)])
    width = 2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert rate([Tally.of(np.arange(400) % 4 != 0)]) == found
    few = rate([Tally.of(np.arange(400) % 4 != 0, np.arange(400) < 100)])
    assert few.high - few.low == pytest.approx(2 * width, rel=0.15)
    assert rate([hits(1, 1, 1)]).low == 1


def test_images_that_are_hard_under_every_target_widen_the_mean_of_targets_and_independent_ones_narrow_it():
    rng = np.random.default_rng(0)
    one = rng.random(300) < 0.7
    same = rate([Tally.of(one)] * 8)
    other = rate([Tally.of(rng.random(300) < 0.7) for _ in range(8)])
    alone = rate([Tally.of(one)])
    assert same.high - same.low == pytest.approx(alone.high - alone.low)
    assert other.high - other.low < 0.5 * (alone.high - alone.low)


def test_trials_of_one_image_stay_together():
    pairs = Tally(np.array([2.0, 0] * 100), np.full(200, 2.0))
    assert rate([pairs]).high - rate([pairs]).low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.1)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # mean 0, covariance 1
    first, second = np.array([1.0, 2, 0]), np.array([3.0, 1, 0.5])
    shift = np.array([0.5, -1, 2])
    wanted = np.square(shift).sum() + np.square(first - second).sum()  # of commuting covariances
    assert frechet_distance(x * first, x * second + shift) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(x[:, :1], 3 * x[:, :1]) == pytest.approx(4)


def test_frechet_distance_of_covariances_that_do_not_commute_agrees_with_the_root_of_their_product():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6)), rng.standard_normal((60, 6)) + 1
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    few = rng.standard_normal((5, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two sets of at least 2"):
        frechet_distance(few[:1], few)


def grey(level, side=16):
    return Image.new("RGB", (side, side), (level, level, level))


def test_pixel_distance_is_the_root_mean_square_and_identity_is_to_the_bit():
    assert pixel_distance([grey(0), grey(51)], [grey(255), grey(0)]) == pytest.approx([1.0, 0.2])
    assert identical([grey(7), grey(7), grey(7)], [grey(7), grey(8), grey(7, 8)]).tolist() == [True, False, False]


def test_harm_counts_only_what_is_to_be_retained():
    plain = [grey(0), grey(0), grey(100), grey(100)]
    erased = [grey(255), grey(0), grey(100), grey(151)]
    vectors = torch.eye(4), torch.eye(4)[[1, 1, 2, 0]]
    found = harm(plain, erased, np.array([False, True, True, True]), vectors)
    means = {name: rate([one]).value for name, one in found.tallies.items()}
    assert means["identical"] == pytest.approx(2 / 3)
    assert means["pixels"] == pytest.approx(0.2 / 3, rel=1e-5)
    assert means["embedding"] == pytest.approx(1 / 3)
    assert found.frechet == pytest.approx(frechet_distance(np.eye(4)[1:], np.eye(4)[[1, 2, 0]]))
    assert found.to_dict()["identical"]["n"] == 3
    same = harm(plain, plain, np.ones(4, bool), (vectors[0], vectors[0]))
    assert (rate([same.tallies["identical"]]).value, same.frechet) == (1, pytest.approx(0, abs=1e-6))
    assert harm(plain, erased, np.zeros(4, bool)).to_dict() == {"frechet": None}
    with pytest.raises(ValueError, match="in pairs"):
        harm(plain, erased[:2], np.ones(4, bool))
