"""Baselines are dictionaries: closed forms, planted truths, and the promises that all dictionaries keep."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls

from visae.evaluate import evaluate_sae
from visae.sae import baselines, fit_baseline, load_sae, neurons, pca, random_directions, save_sae
from visae.sae.nonnegative import nonnegative_codes, semi_nmf

D = 16
pytestmark = pytest.mark.filterwarnings("ignore:FastICA did not converge")  # nothing is independent in some data here
SIGNED = {"pca", "ica", "neurons", "random"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=baselines())
def fitted(request, tokens):
    return fit_baseline(request.param, tokens(500).split(130), D if request.param == "neurons" else 6)


def test_every_baseline_is_saved_loaded_folded_and_measured_like_a_dictionary(fitted, tokens, tmp_path):
    x = tokens(200, seed=9)
    codes = fitted.encode(x)
    assert torch.allclose(fitted(x), codes.to_dense() @ fitted.directions() + fitted.b_dec, atol=1e-3)
    written = save_sae(fitted, tmp_path / "plain")
    loaded = load_sae(tmp_path / "plain")
    assert written.kind == loaded.kind == fitted.kind in baselines()
    assert torch.equal(loaded.encode(x).to_dense(), codes.to_dense())
    assert torch.equal(loaded(x), fitted(x))
    save_sae(fitted.fold(), tmp_path / "folded")
    folded, gain = load_sae(tmp_path / "folded"), fitted.directions().norm(dim=1)
    wanted = codes.to_dense() * gain
    assert torch.allclose(folded.encode(x).to_dense(), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert torch.allclose(folded(x), fitted(x), rtol=1e-4, atol=1e-3)
    assert evaluate_sae(loaded, [x]).fvu == pytest.approx(evaluate_sae(folded, [x]).fvu, rel=1e-4)
    single = torch.cat([fitted.encode(row[None]).to_dense() for row in x[:40]])
    assert torch.allclose(single, codes[:40].to_dense(), atol=1e-5 * float(codes.values.abs().max()))


def test_a_baseline_says_whether_its_codes_have_signs(fitted, tokens):
    values = fitted.encode(tokens(200, seed=9)).values
    assert fitted.signed == (fitted.kind in SIGNED)
    assert bool((values < 0).any()) == fitted.signed


def test_pca_is_the_best_linear_reconstruction_and_orders_its_components(tokens):
    x = tokens(3000).double() + 100
    parts = list(x.split(500))
    centred = x - x.mean(0)
    _, s, _ = torch.linalg.svd(centred, full_matrices=False)
    for n in (1, 3, D):
        baseline = pca(parts, n)
        left = float((baseline(x).double() - x).square().sum())
        assert left == pytest.approx(float(s[n:].square().sum()), rel=1e-3, abs=1)
        assert baseline.encode(x).indices.shape == (3000, n)
    spread = pca(parts, 4).encode(x).values.var(0)
    assert bool((spread.diff() < 0).all())
    with pytest.raises(ValueError, match="between 1 and d = 16 components, asked for 17"):
        pca(parts, 17)
    with pytest.raises(ValueError, match="got none"):
        pca([], 1)


def test_neurons_and_random_directions_have_the_interface_of_a_dictionary(tokens):
    x = tokens(200)
    raw = neurons([x])
    assert torch.allclose(raw(x), x, atol=1e-4)
    assert torch.equal(raw.directions(), torch.eye(D))
    random = random_directions([x], 40, seed=1)
    assert random.directions().shape == (40, D)
    assert torch.allclose(random.encode(x).to_dense(), (x - x.mean(0)) @ random.directions().T, atol=1e-3)
    assert random.signed
    assert random.n_latents == 40
    assert not torch.equal(random.W_dec, random_directions([x], 40, seed=2).W_dec)
    with pytest.raises(ValueError, match=r"takes tokens \[n, 16\]"):
        raw.encode(torch.zeros(2, 3))


def test_ica_finds_independent_sources_up_to_order_sign_and_scale():
    sources = torch.rand(4000, 5, generator=seeded()) - 0.5
    mixing = torch.randn(5, 8, generator=seeded(1))
    found = fit_baseline("ica", (sources @ mixing + 3).split(1000), 5)
    x = sources @ mixing + 3
    cosines = torch.nn.functional.normalize(found.directions(), dim=1) @ torch.nn.functional.normalize(mixing, dim=1).T
    pairs = linear_sum_assignment(-cosines.abs().numpy())
    assert float(cosines.abs()[pairs].min()) > 0.99
    values = found.encode(x).to_dense()
    assert torch.allclose(values.var(0), torch.ones(5), rtol=0.02)
    assert torch.allclose(found(x), x, atol=1e-3)


def test_kmeans_finds_separated_clusters_and_codes_are_the_nearest_centroid():
    centres = 20 * torch.randn(7, D, generator=seeded()) + 100
    label = torch.randint(7, (1400,), generator=seeded(1))
    x = centres[label] + torch.randn(1400, D, generator=seeded(2))
    found = fit_baseline("kmeans", x.split(200), 7)
    centroids = found.directions() + found.b_dec
    distances = torch.cdist(centres, centroids)
    assert float(distances.amin(1).max()) < 0.5
    codes = found.encode(x)
    assert codes.indices.shape == (1400, 1)
    assert bool((codes.values == 1).all())
    assert torch.equal(codes.indices[:, 0], torch.cdist(x, centroids).argmin(1))
    assert torch.equal(codes.indices[:, 0], distances.argmin(1)[label])


@pytest.mark.parametrize("name", ["nmf", "semi_nmf"])
def test_factorisations_reconstruct_what_they_can_represent_exactly(name):
    g = torch.rand(800, 4, generator=seeded()) * (torch.rand(800, 4, generator=seeded(1)) < 0.5)
    atoms = torch.randn(4, 12, generator=seeded(2))
    x = g @ (atoms.abs() if name == "nmf" else atoms) + 5
    found = fit_baseline(name, [x], 4 if name == "nmf" else 5, **({"steps": 2000} if name == "nmf" else {"steps": 500}))
    assert evaluate_sae(found, [x]).fvu < 1e-3
    assert torch.allclose(found.directions().norm(dim=1), torch.ones(found.n_latents), atol=1e-5)
    if name == "nmf":
        assert bool((found.directions() >= 0).all())
        assert torch.allclose(found.b_dec, x.amin(0))


def test_semi_nmf_never_gets_worse_and_ends_near_the_best_codes_for_its_atoms():
    x = torch.randn(300, D, generator=seeded()).double() @ torch.randn(D, D, generator=seeded(1)).double()
    start = torch.rand(300, 6, generator=seeded(2)).double() + 0.2
    g, d, errors = semi_nmf(x, start, 300)
    assert bool((g >= 0).all())
    assert all(b <= a * (1 + 1e-10) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    assert errors[-1] == pytest.approx(float((x - g @ d).square().sum()))
    exact = sum(nnls(d.T.numpy(), row.numpy())[1] ** 2 for row in x)
    assert exact <= errors[-1] <= 1.1 * exact


def test_non_negative_codes_are_least_squares():
    atoms = torch.randn(10, D, generator=seeded()).double()
    rows = torch.randn(30, D, generator=seeded(1)).double()
    expected = np.stack([nnls(atoms.T.numpy(), row.numpy())[0] for row in rows])
    assert np.allclose(nonnegative_codes(rows, atoms).numpy(), expected, atol=1e-6)


def test_widths_that_cannot_be_are_refused_by_name(tokens):
    x = tokens(10)
    for name, n, message in (
        ("ica", 11, r"min\(n, d\) = 10"),
        ("kmeans", 11, "rows = 10"),
        ("neurons", 3, "as many neurons as dimensions"),
        ("pca", 0, "asked for 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_baseline(name, [x], n)
    with pytest.raises(KeyError, match=r"Unknown baseline 'kmean'\. Did you mean 'kmeans'"):
        fit_baseline("kmean", [x], 3)
    with pytest.raises(ValueError, match="got none"):
        fit_baseline("kmeans", [], 3)
