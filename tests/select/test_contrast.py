"""Scores that tell prompts with a concept from prompts without it: a planted latent, and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import f1_score, roc_auc_score

from visae.registry import UnknownName
from visae.select import CONTRASTS, select_concept

N, S, T, F = 10, 3, 6, 12
EARLY, LATE, ONCE, DEAD = 5, 6, 8, 11
WORDS = [
    f"a star on {colour}" for colour in ("red", "blue", "grey", "pink", "teal", "lime", "gold", "navy", "plum", "rose")
]


def planted(seed=0):
    """Codes of target and of other prompts `[N, S, T, F]`; latent 5 means the concept early, latent 6 late."""
    rng = np.random.default_rng(seed)
    codes = rng.random((2 * N, S, T, F)) * (rng.random((2 * N, S, T, F)) < 0.3)
    codes[..., [EARLY, LATE, ONCE, DEAD]] = 0
    codes[:N, :2, ::2, EARLY] = 1 + rng.random((N, 2, 3)) / 4
    codes[:N, 2, ::2, LATE] = 1 + rng.random((N, 3)) / 4
    codes[0, :, 0, ONCE] = 2
    codes[:N, ..., 7] = 0
    return codes[:N], codes[N:]


@pytest.fixture
def sets(statistics_of):
    target, retain = planted()
    others = [text.replace("star", "circle") for text in WORDS]
    return statistics_of(target, WORDS), statistics_of(retain, others)


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_latent_that_fires_on_the_concept_alone_comes_first_at_every_level(name, sets):
    scores = CONTRASTS[name](*sets)
    assert scores.shape == (S, F)
    assert scores.dtype == torch.float32
    assert not scores.isnan().any()
    assert scores.argmax(1).tolist() == [EARLY, EARLY, LATE]


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_selection_by_any_score_is_the_planted_latents_where_they_count(name, sets):
    found = select_concept(*sets, score=name, top_m=1, concept="shape=star")
    assert sorted(found.latents) == [EARLY, LATE]
    active = found.evidence["active"][:, [found.latents.index(EARLY), found.latents.index(LATE)]]
    assert active.tolist() == [[True, False], [True, False], [False, True]]
    assert found.coverage == 1
    assert found.score == name
    pooled = select_concept(*sets, score=name, top_m=1, per_level=False)
    assert pooled.latents == (EARLY,)
    assert pooled.evidence["active"].all()


@pytest.mark.parametrize("name", CONTRASTS)
def test_the_negative_side_of_a_latent_is_found_in_a_signed_dictionary(name, statistics_of):
    target, retain = planted()
    flip = np.ones(F)
    flip[EARLY] = -1
    others = [text.replace("star", "circle") for text in WORDS]
    sides = statistics_of(target * flip, WORDS, signed=True), statistics_of(retain * flip, others, signed=True)
    found = select_concept(*sides, score=name, top_m=1, per_level=False)
    assert (found.latents, found.signs) == ((EARLY,), (-1,))
    torch.testing.assert_close(found.evidence["target"][:, 0], torch.tensor(target[..., EARLY].mean((0, 2))).float())


def test_one_prompt_of_each_kind_is_enough_for_every_score(statistics_of):
    target, retain = planted()
    one = statistics_of(target[:1], ["a star"]), statistics_of(retain[:1], ["a circle"])
    for name, score in CONTRASTS.items():
        assert not score(*one).isnan().any(), name


def test_timestep_contrast_is_the_difference_of_shares(sets):
    target, retain = (torch.tensor(codes).mean((0, 2)) for codes in planted())
    expected = target / target.sum(1, keepdim=True) - retain / retain.sum(1, keepdim=True)
    torch.testing.assert_close(CONTRASTS["timestep_contrast"](*sets), expected.float(), atol=1e-6, rtol=1e-4)


def test_set_difference_keeps_what_no_retained_prompt_has_among_its_largest(statistics_of):
    target = [[[[3.0, 2, 1, 0]]], [[[3.0, 0, 2, 1]]]]
    retain = [[[[3.0, 0, 0, 0]]], [[[0, 0, 0, 0]]]]
    scores = CONTRASTS["set_difference"](statistics_of(target), statistics_of(retain), kept=2)
    assert scores.tolist() == [[-math.inf, 1.0, 1.0, -math.inf]]  # the last one is among no target prompt's two
    scores = CONTRASTS["set_difference"](statistics_of(target), statistics_of(retain), kept=3)
    assert scores.tolist() == [[-math.inf, 1.0, 1.5, 0.5]]


def test_fisher_ratio_orders_by_the_mean_square_those_whose_ratio_is_high(statistics_of):
    target, retain = [[[[2.0, 3, 1, 0], [0, 3, 1, 0]]]], [[[[0, 3.0, 0, 1], [0, 0, 1, 1]]]]
    sides = statistics_of(target), statistics_of(retain)
    assert CONTRASTS["fisher_ratio"](*sides, quantile=0)[0].tolist() == pytest.approx([2.0, 9.0, 1.0, 0.0])
    assert CONTRASTS["fisher_ratio"](*sides, quantile=0, released=True).tolist() == [[1.0, 9.0, 1.0, 0.0]]
    ratios = {0: 2 / 1e-21, 1: 9 / 4.5, 2: 1 / 0.5, 3: 0.0}
    for quantile in (0.3, 0.7, 1.0):
        cut = np.quantile(list(ratios.values()), quantile)
        kept = (CONTRASTS["fisher_ratio"](*sides, quantile=quantile)[0] > -math.inf).tolist()
        assert kept == [ratio >= cut * (1 - 1e-6) for ratio in ratios.values()]


def test_frequency_and_density_count_tokens_and_rule_out_what_the_others_fire(statistics_of):
    target, retain = [[[[1.0, 1, 1], [0, 1, 1]]]], [[[[0, 1.0, 0.2], [0, 0, 0]]]]
    sides = statistics_of(target), statistics_of(retain)
    torch.testing.assert_close(CONTRASTS["frequency_ratio"](*sides), torch.tensor([[0.5, 0.5, 0.5]]).where(
        torch.tensor([[True, False, True]]), torch.tensor(-math.inf)))  # fmt: skip
    assert CONTRASTS["frequency_ratio"](*sides, least=1).tolist() == [[0.5, 0.5, 0.5]]
    assert CONTRASTS["density"](*sides).tolist() == [[0.5, -math.inf, -math.inf]]
    assert CONTRASTS["density"](*sides, limit=0.6).tolist() == [[0.5, 1.0, 1.0]]


@pytest.mark.parametrize("of", ["largest", "mean"])
def test_auroc_and_f1_are_those_of_sklearn_on_what_each_prompt_is_reduced_to(of, sets):
    reduce = {"largest": lambda x: x.max(2), "mean": lambda x: x.mean(2)}[of]
    values = reduce(np.concatenate(planted())).astype(np.float32)
    shows = np.arange(2 * N) < N
    area, best = (CONTRASTS[name](*sets, of=of) for name in ("auroc", "f1"))
    for s in (0, 2):
        for j in (0, EARLY, ONCE, DEAD):
            x = values[:, s, j]
            assert area[s, j] == pytest.approx(roc_auc_score(shows, x), abs=1e-6)
            cuts = np.unique(x[x > 0])
            assert best[s, j] == pytest.approx(max((f1_score(shows, x >= c) for c in cuts), default=0), abs=1e-6)


def test_the_entropy_contrast_counts_a_latent_that_few_target_prompts_share_for_less(statistics_of):
    target = np.zeros((4, 1, 1, 3))
    target[:, 0, 0, 0], target[:2, 0, 0, 1], target[0, 0, 0, 2] = 1, 2, 4  # the same mean, shared by 4, 2 and 1 prompts
    scores = CONTRASTS["entropy_contrast"](statistics_of(target), statistics_of(np.zeros((2, 1, 1, 3))), alpha=2.0)
    torch.testing.assert_close(scores, torch.tensor([[1 / 3, 1 / 12, 0.0]]), atol=1e-6, rtol=0)


def test_probe_coefficients_do_not_depend_on_a_latents_unit(statistics_of):
    target, retain = planted()
    unit = 10.0 ** np.arange(-3, 3).repeat(2)
    one = CONTRASTS["probe"](statistics_of(target), statistics_of(retain))
    other = CONTRASTS["probe"](statistics_of(target * unit), statistics_of(retain * unit))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
    assert (one[:, DEAD] == 0).all()
    assert one[0, 7] < 0


def test_probe_coefficients_are_at_the_optimum_in_which_both_kinds_of_prompt_weigh_as_much(statistics_of):
    target, retain = planted()
    x = np.concatenate([target[:3], retain])[:, 0].mean(1)[:, [0, 1, EARLY]]
    x, shows = (x - x.mean(0)) / x.std(0), np.arange(3 + N) < 3
    few = [statistics_of(codes[:, :1, :, [0, 1, EARLY]]) for codes in (target[:3], retain)]
    found = CONTRASTS["probe"](*few, strength=0.5)[0].double().numpy()
    weight = np.where(shows, 1 / 3, 1 / N) * (3 + N) / 2

    def miss(intercept):
        return weight * (shows - 1 / (1 + np.exp(-(x @ found + intercept))))

    intercept = brentq(lambda b: miss(b).sum(), -20, 20)
    np.testing.assert_allclose(found, 0.5 * miss(intercept) @ x, atol=2e-3)


def test_text_similarity_finds_what_goes_with_the_text_that_is_asked_for(statistics_of):
    codes = np.zeros((4, 1, 1, 3))
    codes[[0, 1], ..., 0], codes[[0, 2], ..., 1], codes[..., 2] = 1, 1, 1
    texts = ["a red star", "a blue star", "a red circle", "a blue circle"]
    sides = statistics_of(codes[:2], texts[:2]), statistics_of(codes[2:], texts[2:])
    score = CONTRASTS["text_similarity"]
    torch.testing.assert_close(score(*sides), torch.tensor([[1.0, 0, 0]]), atol=1e-5, rtol=0)
    assert score(*sides, text="red").argmax() == 1
    by_length = score(*sides, text="xx", embed=lambda t: torch.tensor([[1.0, len(one)] for one in t]))
    assert not torch.allclose(by_length, score(*sides))


def test_wrong_requests_are_refused_and_said(sets, statistics_of):
    target, retain = sets
    with pytest.raises(UnknownName, match="timestep_contrast"):
        select_concept(target, retain, score="timestep_contrest")
    with pytest.raises(ValueError, match="at least one latent, got top_m=0"):
        select_concept(target, retain, top_m=0)
    with pytest.raises(ValueError, match="prompts of both kinds, got 10 target and 0 retain"):
        select_concept(target, retain[[]])
    with pytest.raises(ValueError, match="collected differently"):
        select_concept(target, retain.at([2.0]))
    silent = statistics_of(np.zeros((2, S, T, F)))
    with pytest.raises(ValueError, match="no latent is left for a star"):
        select_concept(silent, retain, concept="a star")
    with pytest.raises(ValueError, match=r"scores must be \[3, 12\]"):
        select_concept(target, retain, scores=torch.zeros(3, 5))
