"""What keeps k codes per token where there is little to choose from: prices below 0, shares dealt out, lifted latents.

`tests/train/test_train_l0.py` shows on tokens of images what they are for.
"""

import pytest
import torch

from visae.ops import Eager
from visae.sae import make_sae
from visae.sae.adaptive import AdaptiveTopK
from visae.sae.thresholds import Chosen, FeatureChoice, filled


def test_where_every_code_adds_to_the_error_the_price_is_below_0_and_k_are_kept_all_the_same():
    errors = torch.rand(200, 9, generator=torch.Generator().manual_seed(0)).cumsum(1)
    errors = torch.cat([torch.zeros(200, 1), errors], dim=1)
    part = AdaptiveTopK(4, 16, 4, 1, 9, "error")
    price = part._price(errors, 4)
    assert float(price) < 0
    assert float(part._worth(errors, price).double().mean()) == pytest.approx(4, rel=0.03)
    assert float(part._worth(-errors, part._price(-errors, 4)).double().mean()) == pytest.approx(4, rel=0.03)


def test_codes_that_are_0_are_never_needed():
    sae = make_sae("adaptive_k", 8, 32, k=4).train()
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(32, 8, generator=torch.Generator().manual_seed(0))))
        sae.W_enc.copy_(3 * sae.W_dec)  # too long: codes add to the error
        sae.b_enc[:24] = -100.0
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    codes = sae.losses(x, Eager()).codes.to_dense()
    assert float((codes != 0).sum(1).double().mean()) == pytest.approx(float((codes > 0).sum(1).double().mean()))
    price = sae.activation._latest
    found = sae.activation.evidence(sae.select(sae.normalise(x), sae.activation.rule(), Eager()), *sae._compared(x))
    assert torch.isfinite(price)
    assert bool(found.isinf().any())
    assert not bool(found.isnan().any())


def test_no_share_is_above_its_limit_and_the_others_share_the_rest_by_weight():
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    limits = torch.tensor([1.0, 0.1, 1.0, 0.0], dtype=torch.float64)
    assert filled(weights, 1.0, limits).tolist() == pytest.approx([0.6, 0.1, 0.3, 0.0])
    assert filled(weights, 9.0, limits).tolist() == limits.tolist()


@pytest.mark.parametrize("zipf", [0.0, 0.7])
def test_latents_with_few_positive_entries_keep_them_and_batch_and_held_out_tokens_have_k_codes(zipf):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(2000, 64, generator=generator) - torch.linspace(0, 5, 64)
    part = FeatureChoice(4, 64, zipf).train()
    rule, positive = part.rule(), (pre > 0).sum(0)
    mask, pattern = rule.mask(pre), rule.pick(pre)
    picked = torch.zeros_like(mask)
    picked[pattern.rows, pattern.columns] = True
    assert torch.equal(mask, picked)
    kept = (mask & (pre > 0)).sum(0)
    assert int(kept.sum()) == pytest.approx(4 * 2000, rel=0.002)
    wanted = part.weights * 4 * 2000
    scarce = positive < wanted - 1
    assert bool(scarce.any())
    assert torch.allclose(kept[scarce].double(), positive[scarce].double(), atol=1)
    rich = kept[~scarce] / wanted[~scarce]
    assert float(rich.min()) > 1
    part.eval().calibrate(list(pre.split(500)))
    assert float((pre > part.threshold).sum(1).double().mean()) == pytest.approx(4, rel=0.01)


def test_only_dead_latents_are_lifted_and_they_fire_again():
    sae = make_sae("feature_choice", 8, 32, k=4).train()
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
        sae.b_enc[:4] = -50.0
    x, dead = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    assert "lift" not in sae.losses(x, Eager()).terms
    sae.losses(x, Eager(), dead=dead).terms["lift"].backward()
    assert bool((sae.b_enc.grad[:4] < 0).all())
    assert not bool(sae.b_enc.grad[4:].any())
    assert sae.b_dec.grad is None
    assert "lift" not in make_sae("feature_choice", 8, 32, k=4, lift=0.0).losses(x, Eager(), dead=dead).terms


def test_a_rule_with_nothing_above_0_keeps_nothing_that_counts():
    pre = -torch.rand(50, 16) - 0.1
    assert not bool((Chosen(torch.full((16,), 1 / 16), 4.0).mask(pre) & (pre > 0)).any())
