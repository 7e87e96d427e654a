"""Learnt thresholds: their estimated gradients against the smoothed loss they estimate; calibration."""

import pytest
import torch

from visae.ops import Dense
from visae.sae import make_sae
from visae.sae.thresholds import FeatureChoice, JumpReLU

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
