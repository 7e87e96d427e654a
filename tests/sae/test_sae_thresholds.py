"""Learnt thresholds: their estimated gradients against the smoothed loss they estimate; calibration."""

import pytest
import torch

from visae.ops import Dense, Eager, Reference
from visae.sae import kind_options, kinds, make_sae
from visae.sae.thresholds import FeatureChoice, JumpReLU, filled

WIDTH = 0.5


def smoothed(theta, pre, draws=200_001):
    """The count and the sum of codes when theta is spread evenly over a window of the estimate's width."""
    spread = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws - 0.5
    moved = theta + WIDTH * spread
    return (pre[:, None] > moved).double().mean(1).sum()


def test_the_gradient_of_the_count_is_that_of_the_smoothed_count():
    pre = torch.tensor([0.3, 0.8, 0.9, 1.05, 1.2, 1.3, 2.0], dtype=torch.float64)
    part = JumpReLU(1, 1, WIDTH).double()
    part.count(Dense(pre[:, None])).row_sum().mul(len(pre)).backward()
    step = 1e-3
    slope = (smoothed(1 + step, pre) - smoothed(1 - step, pre)) / (2 * step)
    assert float(part.threshold.grad) == pytest.approx(float(slope), rel=1e-2)
    assert float(part.threshold.grad) == pytest.approx(-4 / WIDTH)


def test_codes_feel_the_threshold_at_its_own_height_and_pass_gradients_where_they_fire():
    pre = torch.tensor([[0.3], [0.9], [1.1], [2.0]], dtype=torch.float64, requires_grad=True)
    part = JumpReLU(1, 1, WIDTH).double()
    (part(pre) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).sum().backward()
    assert float(part.threshold.grad) == pytest.approx(-(2.0 + 3.0) / WIDTH)
    assert pre.grad[:, 0].tolist() == [0, 0, 3, 4]


def test_the_unit_makes_thresholds_independent_of_the_size_of_inputs(tokens):
    pre = tokens(500, d=64).double()
    small, large = (JumpReLU(64, 4, WIDTH).double() for _ in range(2))
    small.start(pre)
    large.start(100 * pre)
    assert torch.allclose(large.theta, 100 * small.theta)
    small.rescale(torch.tensor(3.0))
    assert torch.equal((small(3 * pre) != 0), (large(100 * pre) != 0))


def test_calibration_gives_k_codes_and_feature_choice_gives_every_latent_its_share():
    pre = torch.randn(4000, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + torch.linspace(
        0, 2, 64
    )
    jump, choice = JumpReLU(64, 4, WIDTH).double(), FeatureChoice(4, 64).double()
    with torch.no_grad():
        jump.threshold.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    for part in (jump, choice):
        part.calibrate(list(pre.split(1000)))
    assert float((pre > jump.theta).sum(1).double().mean()) == pytest.approx(4, abs=1e-3)
    fired = (pre > choice.threshold).double().mean(0)
    assert torch.allclose(fired, torch.full_like(fired, 4 / 64), atol=1e-3)


def test_thresholds_stay_positive_and_a_wrong_k_is_refused(tokens):
    part = JumpReLU(3, 1, WIDTH)
    with torch.no_grad():
        part.threshold.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    part.observe(None)
    assert bool((part.threshold > 0).all())
    for kind in ("jumprelu", "feature_choice"):
        with pytest.raises(ValueError, match="between 1 and n_latents"):
            make_sae(kind, 4, 8, k=9)


def test_feature_choice_follows_zipfs_law_and_keeps_k_codes_on_average(tokens):
    torch.manual_seed(0)
    rule_of = FeatureChoice(4, 64, zipf=0.5).train()
    pre = torch.randn(1000, 64)
    fires = rule_of.rule().mask(pre).float().mean(0)
    law = torch.arange(1, 65).double() ** -0.5
    expected = 4 * law / law.sum()
    assert torch.allclose(fires.double(), expected, atol=1e-3)
    assert float(expected.sum()) == pytest.approx(4.0)
    rule_of.calibrate([torch.randn(20_000, 64)])
    held_out = rule_of.eval().rule().mask(torch.randn(20_000, 64)).double().mean(0)
    assert float(held_out.sum()) == pytest.approx(4.0, rel=0.02)
    assert torch.allclose(held_out, expected, atol=0.02)


@pytest.mark.parametrize("k", [4, 4.4, 6])
def test_latents_that_pick_a_fraction_of_the_batch_still_keep_k_codes_per_token(k):
    """Of 100 tokens 64 latents pick 6.25, 6.9 or 9.4 each."""
    kept = FeatureChoice(k, 64).train().rule().mask(torch.randn(100, 64))
    assert int(kept.sum()) == round(100 * k)
    assert set(kept.sum(0).tolist()) == {int(100 * k / 64), int(100 * k / 64) + 1}


def test_shares_above_all_tokens_are_dealt_out():
    shares = filled(torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64), 2.0)
    assert shares.tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert filled(torch.tensor([0.5, 0.5], dtype=torch.float64), 2.0).tolist() == [1.0, 1.0]


def test_latents_that_fire_less_often_than_zipfs_law_wants_learn_from_the_error(tokens, started, gradients):
    sae, x = started("feature_choice", aux=0.5), tokens(200)
    penalty = sae.penalties[0]
    order = torch.arange(64)
    penalty.frequency.copy_(penalty.wanted * 1.5)
    penalty.frequency[order[-8:]] = 0.0
    sae.eval()  # the running shares stay
    for ops in (Eager(), Reference()):
        found = gradients(sae, x, ops, None, "aux_zipf")
        moved = found["encoder.weight"].abs().amax(1) > 0
        assert bool(moved[-8:].any())
        assert not bool(moved[:-8].any())
    penalty.frequency.copy_(penalty.wanted)
    assert "aux_zipf" not in sae.losses(x, Eager()).terms
    sae.train().losses(x, Eager())
    codes = sae.losses(x, Eager()).codes
    assert float(penalty.frequency.sum()) == pytest.approx(4, rel=0.05)
    assert torch.equal(codes.counts() > 0, codes.fired())


def test_a_price_on_each_code_moves_thresholds_alone_and_a_higher_one_leaves_fewer(tokens, started, gradients):
    sae, x = started("jumprelu", penalty="l0", l0=0.5), tokens(200)
    for ops in (Eager(), Reference()):
        found = gradients(sae, x, ops, None, "l0")
        assert {n for n, g in found.items() if float(g.abs().max()) > 0} == {"activation.threshold"}
    losses = sae.losses(x, Eager())
    assert losses.terms["l0"].item() == pytest.approx(0.5 * float(losses.codes.l0()) / 16)
    assert not sae.activation.calibrates
    assert sae.activation.k is None
    with pytest.raises(KeyError, match="penalty"):
        make_sae("jumprelu", 16, 64, penalty="l7")


BARE = {
    "topk", "batch_topk", "jumprelu", "relu_l1", "gated", "p_anneal", "abs_topk", "adaptive_k", "feature_choice", "atm",
    "discrete", "orthogonal", "vsae", "contrastive",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BARE))
def test_archetypal_atoms_take_any_activation_with_its_penalties(name, tokens, started, small, bring):
    sae = started("archetypal", activation=name)
    losses = sae.losses(bring(sae, tokens(200)), Eager(), dead=torch.arange(5))
    losses.total.backward()
    assert float(sae.decoder.weights.grad.abs().max()) > 0
    alone = small(name)
    assert type(sae.activation) is type(alone.activation)
    assert [penalty.name for penalty in sae.penalties] == [penalty.name for penalty in alone.penalties]


@pytest.mark.parametrize("name", sorted(set(kinds()) - BARE))
def test_archetypal_atoms_refuse_kinds_that_are_more_than_an_activation_by_name(name):
    with pytest.raises(ValueError, match=rf"kind '{name}' (is more than an activation|needs atoms of length 1).*take"):
        make_sae("archetypal", 16, 64, activation=name, **({"k": 4} if "k" in kind_options(name) else {}))


def test_coefficients_reach_the_penalties_of_the_activation_that_archetypal_atoms_take(small):
    for name, option in (("relu_l1", "l1"), ("gated", "l1"), ("jumprelu", "l0"), ("topk", "aux")):
        assert small("archetypal", activation=name, **{option: 0.7}).penalties[0].coefficient == 0.7
        assert small("archetypal", activation=name).penalties[0].coefficient == small(name).penalties[0].coefficient
    with pytest.raises(ValueError, match="activation 'topk' has no l1: leave it out"):
        small("archetypal", l1=0.7)
    with pytest.raises(KeyError, match="Unknown activation 'relu7'"):
        make_sae("archetypal", 16, 64, activation="relu7")
