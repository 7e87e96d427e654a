"""Pursuit: closed forms, another library, errors that never rise, and better codes than the encoder's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from visae.sae import fit_baseline, initialise, make_sae, pursue, random_directions
from visae.sae.pursuit import ROUNDS
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

D, F = 16, 64
METHODS = list(ROUNDS)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def ready(normaliser, small, tokens):
    sae = small("topk", normaliser=normaliser)
    initialise(sae, tokens())
    return sae.eval().requires_grad_(False)


def errors(sae, x, method, ks, **options):
    """Squared error of each token, in the units of its own scale, for each k."""
    found = [pursue(sae, x, k, method, **options) for k in ks]
    return torch.stack([(x - sae.decode(codes)).square().sum(1) for codes in found])


@pytest.mark.parametrize("nonnegative", [False, True])
def test_on_orthonormal_directions_codes_are_the_largest_projections(method, nonnegative, tokens):
    x = tokens(80)
    sae = fit_baseline("pca", [x])
    full = sae.encode(x).to_dense()
    key = full.relu() if nonnegative else full.abs()
    expected = torch.zeros_like(full).scatter(1, (top := key.topk(5).indices), full.gather(1, top))
    expected = expected.relu() if nonnegative else expected
    codes = pursue(sae, x, 5, method, nonnegative=nonnegative)
    assert torch.allclose(codes.to_dense(), expected, atol=2e-3)
    assert codes.capacity == 5


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_error_of_a_token_never_rises_with_k(method, nonnegative, ready, tokens):
    x = tokens(60, seed=9)
    found = errors(ready, x, method, range(1, 11), nonnegative=nonnegative)
    assert bool((found.diff(dim=0) <= 1e-4 * found[:1]).all())
    assert float(found[-1].sum()) < 0.35 * float(found[0].sum())
    codes = pursue(ready, x, 8, method, nonnegative=nonnegative)
    assert bool((codes.values >= 0).all()) == nonnegative
    assert int(codes.l0().max()) <= 8
    assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in codes.indices)


def test_the_error_never_rises_among_directions_that_are_all_alike(method):
    """Here a gradient step that is merely cut at 0, as published, ends up to eight times further away."""
    g = torch.Generator().manual_seed(0)
    sae = random_directions([torch.zeros(2, 3)], 48)
    sae.decoder.weight.copy_(torch.randn(1, 3, generator=g) + torch.randn(48, 3, generator=g))
    x = torch.randn(500, 3, generator=g)
    found = errors(sae, x, method, range(1, 11), nonnegative=True)
    assert bool((found.diff(dim=0) <= 1e-5 * found[:1]).all())


def test_orthogonal_pursuit_is_that_of_another_library(small, tokens):
    sae = small("topk").double()
    initialise(sae, tokens())
    x = tokens(30, seed=9).double()
    directions = sae.directions().detach()
    lengths = directions.norm(dim=1)
    target = (x - sae.decode(sae.encode(x).silent())).detach()
    expected = (
        orthogonal_mp((directions / lengths[:, None]).T.numpy(), target.T.numpy(), n_nonzero_coefs=5).T
        / lengths.numpy()
    )
    found = pursue(sae, x, 5, "orthogonal", nonnegative=False).to_dense()
    assert np.allclose(found.numpy(), expected, atol=1e-4)


def test_matching_pursuit_is_the_loop_of_its_definition(small, tokens):
    sae = small("topk").double()
    initialise(sae, tokens())
    x = tokens(20, seed=9).double()
    u = sae.directions().detach()
    u, lengths = u / u.norm(dim=1, keepdim=True), u.norm(dim=1)
    expected = torch.zeros(20, F, dtype=torch.float64)
    for row, r in enumerate((x - sae.decode(sae.encode(x).silent())).detach()):
        for _ in range(12):
            j = int((u @ r).abs().argmax())
            expected[row, j] += u[j] @ r
            r = r - (u[j] @ r) * u[j]
    found = pursue(sae, x, 12, "matching", nonnegative=False).to_dense()
    assert torch.allclose(found, expected / lengths, atol=1e-9)
    assert int(pursue(sae, x, 12, "matching", nonnegative=False).l0().min()) < 12  # some were taken twice


def test_the_gram_matrix_and_chunks_change_nothing_but_memory_and_time(method, ready, tokens, monkeypatch):
    x = tokens(50, seed=9)
    whole = pursue(ready, x, 6, method)
    assert torch.allclose(pursue(ready, x, 6, method, gram=True).to_dense(), whole.to_dense(), atol=1e-3)
    monkeypatch.setattr("visae.sae.pursuit.CELLS", 7 * (F + 6 * D))
    parts = pursue(ready, x, 6, method)
    assert torch.allclose(parts.to_dense(), whole.to_dense(), atol=1e-4)
    assert torch.allclose(ready.decode(parts), ready.decode(whole), rtol=1e-3, atol=1e-3)


def test_trained_dictionaries_are_searched_better_than_their_encoders_read():
    world = PlantedConfig(d=32, n_features=64, active=4)
    sae = make_sae("topk", 32, 128, k=4)
    config = TrainConfig(steps=150, batch=512, stat_rows=4096, device="cpu", log_every=150)
    Trainer(sae, config, progress=False).fit(Planted(world, 512))
    sae.requires_grad_(False)
    x = Planted(world, part=1).sample(1000)[0]
    read = float((x - sae(x)).square().sum())
    found = {method: float(errors(sae, x, method, [4]).sum()) for method in METHODS}
    assert all(error < 0.9 * read for error in found.values()), (read, found)
    assert found["orthogonal"] < found["gradient"] < found["matching"]


def test_kinds_that_need_more_than_tokens_are_searched_in_the_space_they_are_brought_to(small, bring, tokens):
    sae = small("temporal")
    initialise(sae, bring(sae, tokens()))
    with torch.no_grad():
        sae.modulation.second.bias.add_(0.3)
    sae.requires_grad_(False)
    x = bring(sae, tokens(60, seed=9))
    read = (x.rows - sae(x)).square().sum()
    found = (x.rows - sae.decode(pursue(sae, x, 4))).square().sum()
    assert float(found) < 0.9 * float(read)
    with pytest.raises(ValueError, match="sigma"):
        pursue(sae, x.rows, 4)


def test_signs_follow_the_dictionary_unless_asked_for(small, tokens):
    for kind, signed in (("topk", False), ("abs_topk", True)):
        sae = small(kind)
        initialise(sae, tokens())
        assert bool((pursue(sae, tokens(50), 4).values < 0).any()) == signed
        assert bool((pursue(sae, tokens(50), 4, nonnegative=True).values >= 0).all())


def test_what_cannot_be_asked_for_is_refused(ready, tokens):
    with pytest.raises(ValueError, match="method is matching, gradient, orthogonal; got 'omp'"):
        pursue(ready, tokens(5), 4, "omp")
    with pytest.raises(ValueError, match="between 1 and 64; got 65"):
        pursue(ready, tokens(5), 65)
