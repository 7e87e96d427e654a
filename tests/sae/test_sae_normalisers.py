"""Input normalisers: their closed forms, the way back to raw space, and every kind on each of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from visae.evaluate import evaluate_sae
from visae.ops import Eager
from visae.sae import NORMALISERS, Codes, Moments, initialise, load_sae, make_sae, normalisers, save_sae
from visae.sae.normalisers import EPS
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, recovery, validate

D, F = 16, 64


def uneven(n=600, seed=5):
    """Tokens of very different lengths, correlated, far from zero."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(0))
    return torch.randn(n, D, generator=g) @ mixing * (0.2 + 3 * torch.rand(n, 1, generator=g)) + 7


@pytest.fixture
def ready(kind, normaliser, small, bring):
    sae = small(kind, normaliser=normaliser)
    initialise(sae, bring(sae, uneven()))
    sae.calibrate([bring(sae, uneven(seed=6))])
    return sae.eval()


@pytest.fixture
def fitted(normaliser, small):
    sae = small("topk", normaliser=normaliser)
    initialise(sae, uneven())
    return sae.eval()


def test_the_way_back_is_the_inverse(fitted):
    x = uneven(seed=9)
    assert torch.allclose(fitted.restore(fitted.normalise(x), x), x, rtol=1e-4, atol=1e-4)


def test_inputs_are_what_the_name_says(fitted, normaliser):
    x = uneven()
    u, centred, v = fitted.normalise(x), x - x.mean(0), torch.nn.functional.layer_norm(x, (D,), eps=0)
    expected = {
        "none": lambda: x,
        "scale": lambda: centred / centred.square().mean().sqrt(),
        "unit": lambda: centred / centred.norm(dim=1, keepdim=True) * D**0.5,
        "layer_norm": lambda: (v - v.mean(0)) / (v - v.mean(0)).square().mean().sqrt(),
    }
    if normaliser in expected:
        assert torch.allclose(u, expected[normaliser](), rtol=1e-4, atol=1e-4)
    if fitted.normaliser.centred:
        assert torch.allclose(u.mean(0), torch.zeros(D), atol=1e-4)
    if normaliser != "none":
        assert float(u.square().sum(1).mean()) == pytest.approx(D, rel=1e-4)


def test_whitened_data_have_equal_variance_in_all_directions_but_the_negligible():
    x = uneven(5000).double()
    x[:, 3] = x[:, 2]  # one direction without variance
    part, moments = NORMALISERS["whiten"](D).double(), Moments(D, covariance=True)
    for batch in x.split(700):
        moments.add(batch)
    part.fit(moments, x)
    u, _, _ = part(x)
    spread = np.linalg.eigvalsh(np.cov(u.numpy().T, bias=True))
    raw = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))
    shares = raw / (raw + EPS * raw.mean())
    assert np.allclose(spread, shares * D / shares.sum(), atol=1e-9)
    assert spread[0] < 1e-9 < 0.1 < spread[1]
    assert torch.allclose(part.matrix, part.matrix.T)  # ZCA: nothing is turned that need not be


def test_the_covariance_merged_from_batches_and_processes_equals_that_of_the_whole():
    x = uneven(1000).double() + 1e4
    parts = [Moments(D, covariance=True) for _ in range(2)]
    for i, batch in enumerate(x.split(77)):
        parts[i % 2].add(batch)
    pooled = Moments(D, covariance=True)
    for part in parts:
        pooled.merge_packed(part.pack())
    assert pooled.n == 1000
    assert np.allclose(pooled.products.numpy() / 1000, np.cov(x.numpy().T, bias=True), rtol=1e-9)
    assert torch.allclose(pooled.products.diagonal(), pooled.squares)


def test_directions_are_what_one_unit_of_a_code_adds_to_each_token(ready, bring):
    codes = ready.encode(bring(ready, uneven(20)))
    more = codes.to_dense()
    more[:, 5] += 1
    moved = replace(codes, indices=torch.arange(F).expand(20, F), values=more)
    added = ready.decode(moved) - ready.decode(codes)
    scale = torch.ones(20) if codes.scale is None else codes.scale
    assert torch.allclose(added, scale[:, None] * ready.directions()[5], rtol=1e-3, atol=2e-4)
    assert (codes.scale is not None) == ready.normaliser.per_token


def test_every_kind_comes_back_from_disk_on_every_normaliser(ready, tmp_path, bring):
    x = bring(ready, uneven(100, seed=8))
    written = save_sae(ready, tmp_path)
    loaded = load_sae(tmp_path)
    assert written.normaliser == loaded.normaliser.name == ready.normaliser.name
    assert torch.equal(loaded.encode(x).to_dense(), ready.encode(x).to_dense())
    assert torch.equal(loaded(x), ready(x))


def test_what_comes_out_for_a_token_does_not_depend_on_its_batch_on_any_normaliser(ready, bring):
    x = bring(ready, uneven(40))
    codes = ready.encode(x)
    single = [ready.encode(x[i : i + 1]) for i in range(40)]
    assert torch.allclose(codes.to_dense(), torch.cat([c.to_dense() for c in single]), atol=1e-5)
    recon = ready.decode(codes)
    assert torch.allclose(recon, torch.cat([ready(x[i : i + 1]) for i in range(40)]), rtol=1e-4, atol=1e-4)
    for rows in (slice(10, 20), torch.tensor([3, 1, 1]), torch.arange(40) % 2 == 0):
        assert torch.allclose(ready.decode(codes[rows]), recon[rows], rtol=1e-4, atol=1e-4)
    assert torch.allclose(ready.decode(Codes.cat(single).to("cpu")), recon, rtol=1e-4, atol=1e-4)


def test_metrics_are_those_of_raw_space(ready, bring):
    whole = bring(ready, uneven(500, seed=9))
    found = evaluate_sae(ready, [whole[i : i + 77] for i in range(0, 500, 77)], batch=50)
    with torch.no_grad():
        x, r = ready.unpack(whole)[0].double(), ready(whole).double()
        per_code = ready.encode(whole)
        empty = ready.decode(per_code.silent()).double()
        parts = per_code.to_dense().double()[:, :, None] * ready.directions().double()
    fvu = float((x - r).square().sum() / (x - x.mean(0)).square().sum())
    assert found.fvu == pytest.approx(fvu, rel=1e-6) == pytest.approx(validate(ready, [whole])["val_fvu"], rel=1e-6)
    scale = 1.0 if per_code.scale is None else per_code.scale[:, None].double()
    ratio = (parts.square().sum(2).sum(1, keepdim=True).sqrt() * scale)[:, 0] / (x - empty).norm(dim=1)
    assert found.norm_ratio == pytest.approx(float(ratio.mean()), rel=1e-4)


def test_a_start_reconstructs_better_than_the_mean_of_the_data(ready, bring):
    """So the decoder's bias sits where the normaliser does not centre, and atoms and encoder fit the rest."""
    if ready.kind == "top_afa":
        pytest.skip("goes dense, and is too large at the start")
    assert validate(ready, [bring(ready, uneven(2000, seed=9))])["val_fvu"] < 1.05


def test_reconstructions_are_differentiable_in_the_tokens_through_every_normaliser(fitted):
    """A token's own scale and shift follow the token, and so must the gradient."""
    fitted.double()
    x, weights = (
        uneven(5).double().requires_grad_(),
        torch.randn(5, D, generator=torch.Generator().manual_seed(1)).double(),
    )
    (gradient,) = torch.autograd.grad((fitted(x) * weights).sum(), x)
    step = 1e-6 * torch.randn(5, D, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        change = ((fitted(x + step) - fitted(x - step)) * weights).sum() / 2
    assert torch.allclose((gradient * step).sum(), change, rtol=1e-5)


@pytest.mark.parametrize("name", ["scale", "unit", "layer_norm", "whiten", "none"])
def test_planted_features_are_found_through_every_normaliser(name):
    world = PlantedConfig(d=32, n_features=64, active=4)
    loader = Planted(world, 512)
    sae = make_sae("topk", 32, 128, k=4, normaliser=name)
    config = TrainConfig(steps=150, batch=512, stat_rows=4096, device="cpu", log_every=150)
    result = Trainer(sae, config, progress=False).fit(loader, [Planted(world, part=1).sample(4096)[0]])
    # layer_norm takes the mean over dimensions off: of each feature, 1 / sqrt(d) on average cannot be seen
    assert recovery(sae, loader.features)["mmcs"] > (0.9 if name == "layer_norm" else 0.95)
    # the last line of training is of raw space, like validation
    assert result.history[-2]["fvu"] == pytest.approx(result.metrics["val_fvu"], rel=0.15)


def test_codes_without_the_scales_of_their_tokens_are_refused_by_name(small):
    sae = small("topk", normaliser="unit")
    initialise(sae, uneven())
    codes = sae.encode(uneven(5))
    bare = Codes(codes.indices, codes.values, F)
    with pytest.raises(ValueError, match=r"'unit' gives every token a scale of its own, and these codes carry none"):
        sae.decode(bare)
    assert torch.equal(sae.decode(codes.with_values(codes.values)), sae.decode(codes))
    with pytest.raises(ValueError, match="cannot be joined"):
        Codes.cat([codes, bare])


def test_whitening_refuses_statistics_that_do_not_suffice(small):
    sae = small("topk", normaliser="whiten")
    with pytest.raises(ValueError, match=r"16 dimensions needs more rows than that, got 16.*stat_rows"):
        initialise(sae, uneven(16))
    plain = Moments(D)
    plain.add(uneven())
    with pytest.raises(ValueError, match=r"covariance=True"):
        initialise(sae, uneven(), plain)


def test_rows_that_differ_in_mean_and_deviation_alone_cannot_be_layer_normed(small):
    rows = torch.randn(D) * (1 + torch.rand(100, 1)) + torch.randn(100, 1)
    with pytest.raises(ValueError, match="makes all 100 rows alike"):
        initialise(small("topk", normaliser="layer_norm"), rows)


@pytest.mark.parametrize("offset", [0.3, 5.0])
def test_a_mean_far_from_zero_spoils_no_normaliser(normaliser, offset):
    world = PlantedConfig(d=48, n_features=96, active=4, offset=offset)
    sae = make_sae("topk", 48, 128, k=5, normaliser=normaliser)
    config = TrainConfig(steps=60, batch=256, stat_rows=2048, device="cpu", log_every=60)
    result = Trainer(sae, config, progress=False).fit(Planted(world, 256), [Planted(world, part=1).sample(2048)[0]])
    assert result.metrics["val_fvu"] < 0.6


def test_an_unknown_normaliser_is_refused_and_another_one_is_no_way_to_resume(tmp_path):
    assert {"none", "scale", "unit", "layer_norm", "whiten"} <= set(normalisers())
    with pytest.raises(KeyError, match=r"Unknown normaliser 'whitten'. Did you mean 'whiten'"):
        make_sae("topk", D, F, normaliser="whitten")
    config = TrainConfig(steps=2, batch=600, stat_rows=600, device="cpu")
    Trainer(make_sae("topk", D, F, k=4), config, tmp_path, progress=False).fit([uneven()])
    other = make_sae("topk", D, F, k=4, normaliser="unit")
    with pytest.raises(ValueError, match="normaliser: 'scale' then, 'unit' now"):
        Trainer(other, config, tmp_path, progress=False).fit([uneven()], resume=True)


def test_losses_work_in_the_normalised_space_and_reach_the_weights(ready, bring):
    ready.train().requires_grad_(True)
    losses = ready.losses(bring(ready, uneven(100)), Eager(), dead=torch.tensor([1, 5]))
    u = ready.normalise(uneven(100))
    if ready.scheme.nesting() is None:
        assert float(losses.terms["recon"].detach()) == pytest.approx(
            float((u - losses.recon).square().mean()), rel=1e-4
        )
    losses.total.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in ready.parameters())
