"""Pairs of tokens: what they share goes to the first latents, what sets them apart to the others."""

import pytest
import torch

from visae.ops import Dense, Eager, Pattern, Ragged, Reference, overlap
from visae.sae import Rows, make_sae
from visae.train import TrainConfig, Trainer

D, COMMON = 32, 62


class Pairs:
    """Three of 62 features, the same in both tokens of a pair, and one of two more, another one in each."""

    def __init__(self, part=0):
        g = torch.Generator().manual_seed(3)
        self.features = torch.nn.functional.normalize(torch.randn(COMMON + 2, D, generator=g), dim=1)
        self.part = part

    def __iter__(self):
        index = 0
        while True:
            yield self.draw(512, index)[0]
            index += 1

    def draw(self, n, index=0):
        g = torch.Generator().manual_seed(1000 * index + self.part)
        active = torch.rand(n, COMMON, generator=g).topk(3, dim=1).indices
        codes = torch.zeros(n, COMMON).scatter(1, active, 0.5 + torch.rand(n, 3, generator=g))
        side = torch.randint(0, 2, (n,), generator=g)
        tokens = [
            codes @ self.features[2:]
            + (0.5 + torch.rand(n, 1, generator=g)) * self.features[which]
            + 0.02 * torch.randn(n, D, generator=g)
            for which in (side, 1 - side)
        ]
        return Rows(tokens[0], {"other": tokens[1]}), side


def told(codes, side):
    """Accuracy of a linear probe, fitted on one half and tried on the other."""
    x, wanted, half = torch.cat([codes, torch.ones(len(codes), 1)], 1).double(), 2.0 * side.double() - 1, len(side) // 2
    ridge = 1e-3 * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x[:half].T @ x[:half] + ridge, x[:half].T @ wanted[:half])
    return float(((x[half:] @ weights > 0) == (wanted[half:] > 0)).double().mean())


def test_a_probe_tells_the_sides_of_a_pair_by_the_latents_for_differences_and_not_by_the_common_ones():
    fvu = {}
    for kind in ("batch_topk", "contrastive"):
        sae = make_sae(kind, D, 128, k=4)
        config = TrainConfig(steps=250, batch=512, stat_rows=4096, device="cpu", calibration_rows=4096, log_every=250)
        held_out, side = Pairs(part=1).draw(8192)
        fvu[kind] = Trainer(sae, config, progress=False).fit(Pairs(), [held_out]).metrics["val_fvu"]
    codes = sae.encode(held_out.rows).to_dense()
    assert told(codes[:, 64:], side) >= 0.95
    assert told(codes[:, :64], side) <= 0.6
    assert fvu["contrastive"] <= 1.1 * fvu["batch_topk"]


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=lambda ops: ops.name)
def test_the_terms_are_the_formula(ops, started, tokens, bring):
    sae = started("contrastive", share=0.25, common=0.3, apart=0.7)
    x = bring(sae, tokens(50).double())
    losses = sae.losses(x, ops)
    codes = losses.codes.to_dense()
    u = sae.normalise(x.side["other"])
    pre = (u - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    other = pre.relu() * (pre >= pre.flatten().topk(4 * 50).values[-1])
    assert losses.terms["other"].item() == pytest.approx(
        (other @ sae.W_dec + sae.b_dec - u).square().mean().item(), rel=1e-9
    )
    c, d = (codes - other)[:, :16].abs().sum() / 50, (codes * other)[:, 16:].sum() / 50
    assert c > 0
    assert d > 0
    assert losses.terms["contrast"].item() == pytest.approx((0.3 * c / 16**0.5 + 0.7 * d / 16).item(), rel=1e-9)


def test_pairs_are_needed_to_train_and_not_to_encode(small, tokens):
    sae = small("contrastive")
    assert (sae.needs, sae.needs_to_encode) == (("other",), ())
    with pytest.raises(ValueError, match=r"needs other \[20, 16\] beside its 20 tokens: .*a loader over pairs"):
        sae.losses(tokens(20), Eager())
    assert len(sae.encode(tokens(20))) == 20
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        small("contrastive", share=1.0)


def test_overlap_finds_every_place_where_both_have_a_code():
    one = torch.tensor([[1.0, 0, 2, 0], [0, 0, 3, 4], [0, 0, 0, 0]])
    other = torch.tensor([[5.0, 6, 0, 0], [0, 7, 8, 9], [1, 0, 0, 0]])
    dense, ragged = [], []
    for codes in (one, other):
        pattern = Pattern.of_mask(codes != 0)
        dense.append(Dense(codes))
        ragged.append(Ragged(pattern, codes[pattern.rows, pattern.columns]))
    for a, b in (dense, ragged, (dense[0], ragged[1])):
        assert [t.tolist() for t in overlap(a, b)] == [[1, 3, 4], [5, 8, 9], [0, 2, 3]]
    nothing = Ragged(Pattern.of_mask(one > 9), one[:0, 0])
    assert [t.tolist() for t in overlap(ragged[0], nothing)] == [[], [], []]
