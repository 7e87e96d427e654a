import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from visae.select.scores import SCORES, Columns, best_cut


def random_case(seed, n=40, latents=9):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (n, latents)) / 4.0  # many ties, many zeros
    values[:, 3] = 0
    values[:, 4] = 1  # always on, one value
    return values, rng.random(n) < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_sklearn_with_ties_and_silent_items(seed):
    values, y = random_case(seed)
    ours = SCORES["auroc"](Columns.dense(values), y, y.sum(), (~y).sum())
    np.testing.assert_allclose(ours, [roc_auc_score(y, values[:, j]) for j in range(9)], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_the_best_of_sklearns_f1_over_every_cut_and_its_threshold_reaches_it(seed):
    values, y = random_case(seed)
    f1, threshold = best_cut(Columns.dense(values), y, y.sum(), (~y).sum())
    for j in range(9):
        cuts = np.unique(values[:, j][values[:, j] > 0])
        best = max((f1_score(y, values[:, j] >= cut) for cut in cuts), default=0.0)
        assert f1[j] == pytest.approx(best, abs=1e-12)
        assert f1_score(y, values[:, j] > threshold[j]) == pytest.approx(best, abs=1e-12)
        assert np.isinf(threshold[j]) == (j == 3)


def test_threshold_lies_midway_between_the_values_it_parts():
    values = np.array([[0.0], [1.0], [2.0], [4.0]])
    y = np.array([False, False, True, True])
    assert best_cut(Columns.dense(values), y, 2, 2)[1] == 1.5
    assert best_cut(Columns.dense(values[1:]), np.array([True, True, True]), 3, 1)[1] == 0.5  # silent items are at 0


@pytest.mark.parametrize("seed", range(3))
def test_mean_difference_counts_silent_items_as_zero(seed):
    values, y = random_case(seed)
    ours = SCORES["mean_difference"](Columns.dense(values), y, y.sum(), (~y).sum())
    np.testing.assert_allclose(ours, values[y].mean(0) - values[~y].mean(0), atol=1e-12)


def test_items_that_are_not_kept_have_no_part_in_any_score():
    values, y = random_case(0)
    keep = np.arange(40) % 3 != 0
    owner, items = np.nonzero(values.T)
    pointers = np.searchsorted(owner, np.arange(10))
    some = Columns.sort(pointers, items, values.T[owner, items], keep)
    for score in SCORES.values():
        expected = score(Columns.dense(values[keep]), y[keep], y[keep].sum(), (~y[keep]).sum())
        np.testing.assert_allclose(score(some, y, y[keep].sum(), (~y[keep]).sum()), expected)


def test_a_table_of_silent_latents_scores_at_chance():
    columns = Columns.dense(np.zeros((6, 2)))
    y = np.array([True] * 3 + [False] * 3)
    assert SCORES["auroc"](columns, y, 3, 3).tolist() == [0.5, 0.5]
    assert SCORES["f1"](columns, y, 3, 3).tolist() == [0, 0]
    assert SCORES["mean_difference"](columns, y, 3, 3).tolist() == [0, 0]
