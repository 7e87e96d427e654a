"""Core metrics against closed forms, a plain computation over the whole, and invariances."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visae.evaluate.core import evaluate_sae
from visae.sae import initialise, kind_options, kinds, make_sae, neurons, pca

D, F = 12, 64


def tokens(n=900, seed=1, offset=5.0):
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(0))
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) @ mixing + offset


def trained(kind="topk", offset=5.0, bring=None):
    sae = make_sae(kind, D, F, **({"k": 3} if "k" in kind_options(kind) else {}))
    initialise(sae, bring(sae, tokens(offset=offset)) if bring else tokens(offset=offset))
    sae.calibrate([bring(sae, tokens(seed=2, offset=offset)) if bring else tokens(seed=2, offset=offset)])
    return sae.eval()


@pytest.mark.parametrize("kind", kinds())
def test_streamed_metrics_equal_the_definitions_on_the_whole_data_set(kind, bring):
    sae = trained(kind, bring=bring)
    whole = bring(sae, tokens(seed=3))
    found = evaluate_sae(sae, [whole[i : i + 113] for i in range(0, 900, 113)], batch=50)
    x, side = sae.unpack(whole)
    with torch.no_grad():
        codes = sae.encode(x, **side)
        r, dense, x, mean = sae.decode(codes).double(), codes.to_dense().double(), x.double(), sae.mean.double()
    assert found.n == 900
    assert found.fvu == pytest.approx(float((x - r).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-9)
    assert found.explained_variance == pytest.approx(1 - found.fvu)
    cosine = torch.nn.functional.cosine_similarity
    assert found.cosine == pytest.approx(float(cosine(x, r).mean()), rel=1e-9)
    assert found.cosine_centred == pytest.approx(float(cosine(x - mean, r - mean).mean()), rel=1e-9)
    assert found.l0 == pytest.approx(float((dense != 0).sum(1).double().mean()))
    assert np.allclose(found.density, (dense != 0).double().mean(0).numpy())
    assert found.dead == pytest.approx(float((dense == 0).all(0).double().mean()))
    assert found.alive == pytest.approx(1 - found.dead)
    assert found.dense == pytest.approx(float(((dense != 0).double().mean(0) > 0.1).double().mean()))
    inside = ((r - mean) ** 2).sum() / ((x - mean) * (r - mean)).sum()
    assert found.shrinkage == pytest.approx(float(inside), rel=1e-9)
    lengths = sae.directions().double().norm(dim=1)
    ratio = (dense * lengths).norm(dim=1) / (x - mean - sae.b_dec.double() / sae.normaliser.scale.double()).norm(dim=1)
    assert found.norm_ratio == pytest.approx(ratio.mean().item(), rel=1e-6)


def test_a_mean_far_from_zero_does_not_hide_or_invent_error():
    """FVU from raw second moments in float32 would cancel here; the toy of SAEBench's defect scales wrongly."""
    near = evaluate_sae(trained(offset=0.0), [tokens(seed=3, offset=0.0)])
    far = evaluate_sae(trained(offset=1000.0), [tokens(seed=3, offset=1000.0)])
    assert far.fvu == pytest.approx(near.fvu, rel=5e-3)
    assert far.cosine > 0.9999
    assert far.cosine_centred == pytest.approx(near.cosine_centred, rel=5e-3)


def test_scaling_the_data_changes_no_metric():
    sae, x = trained(), tokens(seed=3)
    scaled = make_sae("topk", D, F, k=3)
    scaled.load_state_dict(sae.state_dict())
    scaled.mean.mul_(10)
    scaled.normaliser.scale.div_(10)
    a, b = evaluate_sae(sae, [x]), evaluate_sae(scaled.eval(), [10 * x])
    for name in ("fvu", "cosine", "cosine_centred", "l0", "dead", "shrinkage", "norm_ratio"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4), name


def test_perfect_and_empty_reconstructions_have_the_values_of_the_definitions():
    x = tokens()
    perfect = evaluate_sae(neurons([x]), [x])
    assert perfect.fvu == pytest.approx(0, abs=1e-10)
    assert perfect.cosine_centred == pytest.approx(1)
    assert perfect.shrinkage == pytest.approx(1)
    assert perfect.norm_ratio == pytest.approx(1, rel=1e-5)
    assert (perfect.l0, perfect.dead, perfect.dense) == (D, 0, 1)
    silent = trained()
    with torch.no_grad():
        silent.encoder.bias.fill_(-1e6)
    empty = evaluate_sae(silent, [x])
    assert empty.fvu == pytest.approx(1, rel=1e-5)
    assert (empty.l0, empty.dead) == (0, 1)
    assert empty.to_dict()["shrinkage"] is None or abs(empty.to_dict()["shrinkage"]) >= 0


def test_halving_the_codes_halves_the_shrinkage_ratio():
    class Half:
        def __init__(self, inner):
            self.inner, self.d, self.n_latents, self.mean = inner, inner.d, inner.n_latents, inner.mean

        def encode(self, x):
            return self.inner.encode(x)

        def decode(self, codes):
            return 0.5 * (self.inner.decode(codes) - self.mean) + self.mean

        def directions(self):
            return self.inner.directions()

    x = tokens()
    assert evaluate_sae(Half(neurons([x])), [x]).shrinkage == pytest.approx(0.5)
    assert evaluate_sae(Half(neurons([x])), [x]).fvu == pytest.approx(0.25, rel=1e-4)


def test_kinds_of_token_are_measured_each_around_its_own_mean():
    sae, x = trained(), tokens(n=300, seed=4)
    kind = torch.tensor([1, 0, 0] * 100, dtype=torch.uint8)
    whole = evaluate_sae(
        sae, [SimpleNamespace(rows=x[i : i + 90], kind=kind[i : i + 90]) for i in range(0, 300, 90)], batch=40
    )
    assert sorted(whole.by_kind) == ["cls", "patch"]
    for name, code in (("patch", 0), ("cls", 1)):
        alone = evaluate_sae(sae, [x[kind == code]])
        part = whole.by_kind[name]
        assert part.n == alone.n == int((kind == code).sum())
        assert part.fvu == pytest.approx(alone.fvu, rel=1e-9)
        assert np.allclose(part.density, alone.density)
    assert whole.to_dict()["by_kind"]["cls"]["n"] == 100
    assert evaluate_sae(sae, [x]).by_kind == {}


def test_rows_of_half_precision_and_numpy_are_measured_in_float64():
    sae, x = trained(), tokens(seed=3)
    half = evaluate_sae(sae, [SimpleNamespace(rows=x.half())])
    assert half.fvu == pytest.approx(evaluate_sae(sae, [x.half().double()]).fvu, rel=1e-9)
    assert evaluate_sae(sae, [x.numpy()]).fvu == pytest.approx(evaluate_sae(sae, [x]).fvu, rel=1e-9)


def test_pca_with_as_many_components_explains_what_its_spectrum_says():
    x = tokens(3000)
    values = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    found = evaluate_sae(pca([x], 3), [x])
    assert found.fvu == pytest.approx(float(values[3:].sum() / values.sum()), rel=1e-4)
    assert found.l0 == 3


def test_the_number_of_tokens_behind_dead_is_stated():
    sae = trained()
    assert "silent in 900 tokens" in evaluate_sae(sae, [tokens()]).summary()
    assert evaluate_sae(sae, [tokens()]).to_dict()["n"] == 900
    with pytest.raises(ValueError, match="no tokens to measure"):
        evaluate_sae(sae, [])
