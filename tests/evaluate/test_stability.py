"""How much of one dictionary is found again in another, against copies, chance and a brute-force search."""

import sys
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visae.evaluate import chance, partners, stability


def rows(n, d, seed):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def dictionary(directions, signed=False):
    return SimpleNamespace(
        d=directions.shape[1], n_latents=len(directions), signed=signed, directions=lambda: directions
    )


def copy_of(directions, seed=1, noise=0.3):
    """Permuted, scaled and noised: cosines near `1 / sqrt(1 + noise^2)`."""
    generator = torch.Generator().manual_seed(seed)
    n, d = directions.shape
    order = torch.randperm(n, generator=generator)
    noisy = directions + noise * torch.randn(n, d, generator=generator) / d**0.5
    return (noisy * (0.5 + torch.rand(n, 1, generator=generator)))[order], order


@pytest.mark.parametrize("hungarian", [4096, 0])
def test_a_permuted_noised_copy_is_found_and_unrelated_directions_are_not(hungarian):
    a = rows(512, 32, 0)
    b, order = copy_of(a)
    found = partners(a, b, hungarian=hungarian)
    right = (order[found.b] == found.a).double().mean()
    assert right >= 0.99
    assert found.method == ("hungarian" if hungarian else "mutual")
    result = stability(dictionary(a), dictionary(b), hungarian=hungarian)
    assert result.shared >= 0.99
    assert result.cosine == pytest.approx(1 / 1.09**0.5, abs=0.02)
    assert result.curve[0.5] >= result.curve[0.7] >= result.curve[0.9] >= 0.8
    other = stability(dictionary(a), dictionary(rows(512, 32, 5)), hungarian=hungarian)
    assert other.shared <= 0.02


@pytest.mark.parametrize("signed", [False, True])
def test_random_directions_are_as_near_as_the_law_of_cosines_says(signed):
    for d, n in ((16, 64), (64, 1024)):
        result = stability(dictionary(rows(2000, d, 1), signed), dictionary(rows(n, d, 2), signed))
        assert result.mmcs == pytest.approx(chance(d, n, signed), abs=0.01)
        assert result.chance == chance(d, n, signed)
    assert chance(2, 1) == pytest.approx(0, abs=1e-4)
    assert chance(2, 1, signed=True) == pytest.approx(2 / np.pi, abs=1e-3)


def test_the_assignment_has_the_largest_sum_and_mutual_neighbours_are_mutual():
    a, b = rows(6, 3, 0), rows(6, 3, 1)
    cosines = (a @ b.T).numpy()
    best = max(sum(cosines[i, p[i]] for i in range(6)) for p in permutations(range(6)))
    found = partners(a, b)
    assert float(found.cosine.sum()) == pytest.approx(best, abs=1e-5)
    assert sorted(found.a.tolist()) == sorted(found.b.tolist()) == list(range(6))
    mutual = partners(a, b, hungarian=0)
    expected = {(i, cosines[i].argmax()) for i in range(6) if cosines[:, cosines[i].argmax()].argmax() == i}
    assert set(zip(mutual.a.tolist(), mutual.b.tolist(), strict=True)) == expected
    assert torch.allclose(found.nearest, torch.from_numpy(cosines.max(1)))


def test_work_in_chunks_changes_nothing(monkeypatch):
    a = rows(100, 16, 0)
    b, _ = copy_of(rows(130, 16, 0))
    for hungarian in (4096, 0):
        whole = partners(a, b, hungarian=hungarian)
        monkeypatch.setattr(sys.modules["visae.ops.nearest"], "CELLS", 7 * 130)
        parts = partners(a, b, hungarian=hungarian)
        monkeypatch.undo()
        assert set(zip(whole.a.tolist(), whole.b.tolist(), strict=True)) == set(
            zip(parts.a.tolist(), parts.b.tolist(), strict=True)
        )
        assert torch.allclose(whole.nearest, parts.nearest)


def test_dead_latents_count_among_all_and_not_among_the_alive():
    features = rows(96, 32, 0)
    copied, order = copy_of(features)
    a, b = torch.cat([features, rows(32, 32, 7)]), torch.cat([copied, rows(32, 32, 8)])
    alive = torch.arange(128) < 96
    result = stability(dictionary(a), dictionary(b), (alive, alive.double().numpy()))
    assert result.alive == (96, 96)
    assert result.shared == pytest.approx(0.75, abs=0.01)
    assert result.shared_alive >= 0.99
    assert result.mmcs_alive > result.mmcs
    missing = alive.clone()
    missing[torch.nonzero(order == 0)[0]] = False  # the copy of latent 0 is dead in B
    assert stability(dictionary(a), dictionary(b), (alive, missing)).shared_alive == pytest.approx(95 / 96)
    nobody = stability(dictionary(a), dictionary(b), (alive & False, alive))
    assert (nobody.shared_alive, nobody.alive) == (0.0, (0, 96))
    assert stability(dictionary(a), dictionary(b)).shared_alive is None
    with pytest.raises(ValueError, match="one value per latent, 128"):
        stability(dictionary(a), dictionary(b), (alive[:5], alive))


def test_signed_codes_find_negatives_and_others_do_not():
    a = rows(64, 32, 0)
    assert stability(dictionary(a, signed=True), dictionary(-a)).shared == 1.0
    assert stability(dictionary(a), dictionary(-a)).shared <= 0.02


def test_a_narrow_dictionary_is_found_in_a_wide_one_but_not_the_other_way_round():
    a = rows(64, 32, 0)
    wide = torch.cat([copy_of(a)[0], rows(192, 32, 3)])
    assert stability(dictionary(a), dictionary(wide)).shared >= 0.99
    assert stability(dictionary(wide), dictionary(a)).shared == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError, match="one space"):
        partners(a, rows(3, 8, 0))
