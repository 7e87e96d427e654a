"""Nested reconstructions against their definition written as a loop; other penalties against brute force."""

import pytest
import torch

from visae.ops import Eager, Reference
from visae.sae import ABOUT, KINDS, kinds, make_sae, register_kind
from visae.sae.penalties import Orthogonal
from visae.sae.penalties.base import Pass
from visae.sae.schemes import Prefixes


def mse(a, b):
    return float((a - b).detach().square().mean())


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=lambda ops: ops.name)
def test_matryoshka_averages_over_prefixes_of_the_dictionary(ops, started, tokens):
    sae, x = started("matryoshka"), tokens(100)
    found, u = sae.losses(x, ops), sae.normalise(x)
    codes = found.codes.to_dense()
    by_hand = [mse(codes[:, :m] @ sae.W_dec[:m] + sae.b_dec, u) for m in (4, 8, 16, 32, 64)]
    assert found.terms["recon"].item() == pytest.approx(sum(by_hand) / 5, rel=1e-9)
    assert torch.allclose(found.recon, codes @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=lambda ops: ops.name)
@pytest.mark.parametrize(
    ("kind", "ks", "weights"),
    [
        ("msae_uw", (1, 2, 4), (1, 1, 1)),
        ("msae_rw", (1, 2, 4), (3, 2, 1)),
        ("hierarchical_topk", (1, 2, 3, 4), (1, 1, 1, 1)),
    ],
)
def test_nested_k_averages_over_the_largest_codes(ops, kind, ks, weights, started, tokens):
    sae, x = started(kind), tokens(100)
    found, u = sae.losses(x, ops), sae.normalise(x)
    codes = found.codes.to_dense()
    order = codes.argsort(dim=1, descending=True)
    total = 0.0
    for k, weight in zip(ks, weights, strict=True):
        kept = torch.zeros_like(codes).scatter(1, order[:, :k], codes.gather(1, order[:, :k]))
        total += weight * mse(kept @ sae.W_dec + sae.b_dec, u)
    assert found.terms["recon"].item() == pytest.approx(total / sum(weights), rel=1e-9)


def test_sampled_prefixes_change_while_training_and_not_outside_of_it():
    scheme = Prefixes(64, (0.5, 0.5), sampled=3)
    torch.manual_seed(0)
    drawn = [tuple(scheme._cuts()) for _ in range(20)]
    assert len(set(drawn)) > 5
    assert all(cuts[-1] == 64 and len(cuts) == 4 and list(cuts) == sorted(set(cuts)) for cuts in drawn)
    assert scheme.eval()._cuts() == [32, 64]
    with pytest.raises(ValueError, match="sum to 1"):
        Prefixes(64, (0.5, 0.2))


@pytest.mark.parametrize("chunk", [64, 16])
def test_orthogonality_is_the_largest_cosine_in_each_chunk(chunk, started, tokens):
    sae, x = started("orthogonal"), tokens(20)
    u = sae.normalise(x)
    torch.manual_seed(4)
    value = Orthogonal(0.5, chunk)(Pass(sae, u, None, sae.losses(x, Eager()).codes, u, None, 1.0, Eager()))
    torch.manual_seed(4)
    order = torch.randperm(64) if chunk < 64 else torch.arange(64)
    total = 0.0
    for part in order.split(chunk):
        rows = torch.nn.functional.normalize(sae.W_dec[part].detach(), dim=1)
        for i in range(chunk):
            total += float(max(rows[i] @ rows[j] for j in range(chunk) if j != i)) ** 2
    assert value.item() == pytest.approx(0.5 * total / 64, rel=1e-9)


def test_p_annealing_keeps_the_pressure_when_p_moves(started, tokens):
    sae, x = started("p_anneal"), tokens(100)
    before = sae.losses(x, Eager(), progress=0.1).terms["p_anneal"].item()
    later = [sae.losses(x, Eager(), progress=p).terms["p_anneal"].item() for p in (0.3, 0.6, 0.95)]
    assert later == pytest.approx([before] * 3, rel=1e-6)
    penalty = sae.penalties[0]
    assert penalty.p.item() == pytest.approx(0.2)
    z = sae.losses(x, Eager()).codes.to_dense()
    size = (z[z > 0] ** 0.2).sum() / 100
    by_hand = 0.1 * penalty.alpha * size / 16**0.5
    assert sae.losses(x, Eager()).terms["p_anneal"].item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_second_reconstruction_from_more_codes_reaches_every_parameter(started, tokens, gradients):
    sae, x = started("topk", multi=0.125), tokens(100)
    for ops in (Eager(), Reference()):
        found = gradients(sae, x, ops, None, "multi_topk")
        assert all(float(g.abs().max()) > 0 for g in found.values()), ops.name
    u = sae.normalise(x)
    pre = (u - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    kept = torch.zeros_like(pre).scatter(1, pre.topk(16).indices, 1.0) * pre.relu()
    by_hand = 0.125 * mse(kept @ sae.W_dec + sae.b_dec, u)
    assert sae.losses(x, Eager()).terms["multi_topk"].item() == pytest.approx(by_hand, rel=1e-9)


def test_every_kind_says_what_it_is():
    for kind in kinds():
        about = ABOUT[kind]
        assert about.formula
        assert about.paper
        assert about.status.startswith(("stable", "experimental: "))
        doc = KINDS[kind].__doc__
        assert all(text in doc for text in (about.formula, about.paper, about.status)), "help shows them"
        assert doc.index(about.formula) < doc.index("Args:\n    d: length of a token.")
        assert not doc.startswith((" ", "\n"))
    assert "mutual choice" in ABOUT["batch_topk"].paper
    assert all(ABOUT[kind].experimental for kind in ("matryoshka", "hierarchical_topk"))
    with pytest.raises(ValueError, match="registered already"):
        register_kind("topk", formula="another", paper="another")(KINDS["atm"])
    assert ABOUT["topk"].formula != "another"
    assert "another" not in KINDS["atm"].__doc__
    with pytest.raises(KeyError, match="penalty"):
        make_sae("relu_l1", 4, 8, penalty="l7")
