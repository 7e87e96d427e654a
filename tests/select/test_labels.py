import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from visae.registry import UnknownName
from visae.select import Selection, best_latents, label_scores, measure


def planted(seed, n=200):
    """Latent 1 means circle, latent 2 square (noisily); items may show both; latent 0 is noise, 3 is always on."""
    rng = np.random.default_rng(seed)
    labels = [tuple(s for s in ("circle", "square", "star") if rng.random() < 0.4) for _ in range(n)]
    values = np.zeros((n, 5))
    values[:, 0] = rng.random(n)
    values[:, 1] = [2 + rng.random() if "circle" in row else rng.random() for row in labels]
    values[:, 2] = [1 + rng.random() if ("square" in row) != (rng.random() < 0.1) else 0 for row in labels]
    values[:, 3] = 5 + rng.random(n)
    return values, labels


def test_the_planted_latent_is_found_on_one_split_and_measured_on_another(table_of):
    val, test = table_of(*planted(0), "val"), table_of(*planted(1), "test")
    for by in ("f1", "auroc"):
        found = best_latents(val, "shape", by=by)
        assert found["circle"].latents == (1,)
        assert found["square"].latents == (2,)
        measured = measure(found["circle"], test)
        assert measured.f1 == measured.auroc == 1.0
        assert measured.held_out
        assert 0.8 < measure(found["square"], test).f1 < 0.97
    assert not measure(found["circle"], val).held_out


def test_measured_numbers_are_those_of_sklearn_over_labelled_items(table_of):
    values, labels = planted(3)
    labelled = np.array([len(row) > 0 for row in labels])
    selection = best_latents(table_of(*planted(2), "val"), "shape")["square"]
    ours = measure(selection, table_of(values, labels, "test"))
    y = np.array(["square" in row for row in labels])[labelled]
    v = values[labelled, selection.latents[0]].astype(np.float32)
    fires = v > selection.thresholds[0]
    assert (ours.precision, ours.recall) == pytest.approx((precision_score(y, fires), recall_score(y, fires)))
    assert ours.f1 == pytest.approx(f1_score(y, fires))
    assert ours.auroc == pytest.approx(roc_auc_score(y, v))
    assert ours.n == labelled.sum()
    assert ours.n_positive == y.sum()
    assert ours.f1_ci[0] < ours.f1 < ours.f1_ci[1]


def test_the_bootstrap_interval_has_the_width_that_resampling_items_gives(table_of):
    values, labels = planted(3)
    selection = best_latents(table_of(*planted(2), "val"), "shape")["square"]
    table = table_of(values, labels, "test")
    y = np.array(["square" in row for row in labels])[[len(row) > 0 for row in labels]]
    fires = selection.fires(table)[[len(row) > 0 for row in labels]]
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, len(y), len(y)) for _ in range(2000)]
    np.testing.assert_allclose(
        measure(selection, table).f1_ci,
        np.quantile([f1_score(y[d], fires[d]) for d in draws], [0.025, 0.975]),
        atol=0.01,
    )


def test_items_without_any_value_of_the_factor_are_unknown_not_negative(table_of):
    values = np.array([[3.0], [3.0], [3.0], [0.0]])
    table = table_of(values, [("circle",), (), (), ("square",)])
    found = label_scores(table, "shape")
    assert found.n == 2
    assert found.scores["f1"][0, 0] == 1.0


def test_scores_of_all_latents_equal_those_computed_densely(table_of):
    values, labels = planted(5)
    found = label_scores(table_of(values, labels), "shape")
    labelled = np.array([len(row) > 0 for row in labels])
    for v, value in enumerate(found.values):
        y = np.array([value in row for row in labels])[labelled]
        dense = values[labelled].astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(found.scores["auroc"][v], [roc_auc_score(y, dense[:, j]) for j in range(5)])
        np.testing.assert_allclose(found.scores["mean_difference"][v], dense[y].mean(0) - dense[~y].mean(0), atol=1e-6)


def test_the_negative_side_of_a_signed_latent_can_mean_a_label(table_of):
    rng = np.random.default_rng(0)
    labels = [("circle",) if rng.random() < 0.5 else ("square",) for _ in range(60)]
    values = np.array([[1 + rng.random() if row == ("circle",) else -1 - rng.random()] for row in labels])
    table = table_of(values, labels, signed=True)
    found = best_latents(table, "shape")
    assert found["circle"].signs == (1,)
    assert found["square"].signs == (-1,)
    assert measure(found["square"], table).f1 == 1.0
    assert found["square"].thresholds[0] > 0


def test_several_latents_widen_the_rule_to_any_of_them(table_of):
    labels = [("circle",), ("circle",), ("square",), ("square",)]
    values = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0], [0, 0, 0.1]])
    table = table_of(values, labels)
    one, two = best_latents(table, "shape")["circle"], best_latents(table, "shape", n=2)["circle"]
    assert measure(one, table).recall == 0.5
    assert measure(two, table).recall == 1.0
    np.testing.assert_allclose(two.strength(table), [1, 1, 0, 0])


def test_a_selection_survives_json_a_silent_latents_infinite_threshold_included(table_of, tmp_path):
    table = table_of(np.array([[0.0, 0], [0, 0]]), [("circle",), ("square",)])
    selection = best_latents(table, "shape", n=2)["circle"]
    assert math.isinf(selection.thresholds[0])
    selection.save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json") == selection
    assert "Infinity" not in (tmp_path / "selection.json").read_text()


def test_a_selection_is_refused_by_the_table_of_another_dictionary(table_of):
    selection = best_latents(table_of(*planted(0), "val"), "shape")["circle"]
    other = table_of(np.zeros((4, 3)), [("circle",), ("square",)] * 2, "other")
    with pytest.raises(ValueError, match="numbers of latents do not carry over"):
        measure(selection, other)


def test_wrong_requests_name_what_is_known(table_of):
    table = table_of(*planted(0))
    with pytest.raises(UnknownName, match="auroc"):
        best_latents(table, "shape", by="aurok")
    with pytest.raises(ValueError, match="at least one latent"):
        best_latents(table, "shape", n=0)
    everywhere = table_of(np.ones((3, 5)), [("circle",)] * 3, "everywhere")
    with pytest.raises(ValueError, match="nothing to tell apart"):
        measure(best_latents(table, "shape")["circle"], everywhere)
