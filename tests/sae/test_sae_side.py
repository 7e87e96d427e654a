"""What comes beside tokens: carried by batches, refused where it is missing, and used by the kinds that need it."""

from dataclasses import dataclass

import pytest
import torch

from visae.ops import Eager
from visae.sae import Codes, Rows, initialise, kinds, make_sae
from visae.sae.modulation import NoiseLevel
from visae.sae.side import join
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

WORLD = PlantedConfig(d=32, n_features=64, active=4, drift=1.0)


@dataclass
class Loaded:
    rows: torch.Tensor
    sigma: torch.Tensor


def test_a_batch_of_any_class_with_rows_and_the_needed_names_will_do(started, tokens):
    sae, x, sigma = started("temporal").eval(), tokens(20).double(), torch.rand(20, dtype=torch.float64)
    found = sae.encode(x, sigma=sigma).to_dense()
    assert torch.equal(sae.encode(Loaded(x, sigma)).to_dense(), found)
    assert torch.equal(sae.encode(Rows(x, {"sigma": sigma, "more": sigma})).to_dense(), found)
    assert not torch.equal(sae.encode(x, sigma=sigma + 1).to_dense(), found)
    plain = started("topk")
    assert torch.equal(plain.encode(Loaded(x, sigma)).to_dense(), plain.encode(x).to_dense())


def test_what_is_missing_or_misshapen_is_named_with_the_loader_that_brings_it(started, tokens):
    sae, x = started("temporal"), tokens(20).double()
    message = r"temporal dictionary needs sigma \[20\] beside its 20 tokens: .*loaders over diffusion models bring it"
    for call in (sae.encode, sae, lambda t: sae.losses(t, Eager())):
        with pytest.raises(ValueError, match=message + ". It came without"):
            call(x)
    with pytest.raises(ValueError, match=r"needs sigma \[20\].*Got torch.float32 \[3\]"):
        sae.encode(x, sigma=torch.rand(3))
    codes = sae.encode(x, sigma=torch.rand(20))
    with pytest.raises(ValueError, match=r"needs sigma \[20\]"):
        sae.decode(Codes(codes.indices, codes.values, codes.n_latents))
    with pytest.raises(ValueError, match="topk dictionary takes nothing beside its tokens, got sigma"):
        started("topk").encode(x, sigma=torch.rand(20))
    config = TrainConfig(steps=5, batch=64, stat_rows=128, device="cpu")
    with pytest.raises(ValueError, match=r"batch 0 needs sigma \[64\].*loaders over diffusion"):
        Trainer(make_sae("temporal", 32, 64, k=4), config, progress=False).fit(Planted(WORLD, 64))


def test_rows_are_cut_and_joined_with_what_belongs_to_them():
    rows = Rows(torch.arange(12.0).view(6, 2), {"sigma": torch.arange(6.0)})
    again = join([rows[:2], rows[2:]])
    assert torch.equal(again.rows, rows.rows)
    assert torch.equal(again.side["sigma"], rows.side["sigma"])
    assert len(rows[torch.tensor([5, 1])]) == 2
    assert rows[torch.tensor([5, 1])].side["sigma"].tolist() == [5, 1]


def test_kinds_say_what_they_need():
    needs = {kind: make_sae(kind, 8, 64).needs for kind in kinds()}
    assert {kind: names for kind, names in needs.items() if names} == {
        "contrastive": ("other",),
        "temporal": ("sigma",),
    }


def test_without_modulation_temporal_is_topk_to_the_last_bit(tokens):
    plain, timed = make_sae("topk", 16, 64, k=4), make_sae("temporal", 16, 64, k=4)
    x = Rows(tokens(300), {"sigma": torch.rand(300)})
    for sae in (plain, timed):
        initialise(sae, x)
    assert torch.equal(plain.encode(x).to_dense(), timed.encode(x).to_dense())
    assert torch.equal(plain(x), timed(x))
    a, b = (sae.train().losses(x, Eager(), dead=torch.arange(5)) for sae in (plain, timed))
    assert a.terms.keys() == b.terms.keys()
    for name, term in a.terms.items():
        assert b.terms[name].item() == pytest.approx(term.item(), rel=1e-5)


def test_modulation_is_reversed_exactly_and_turns_directions():
    part = NoiseLevel(8).double()
    sigma = torch.tensor([0.0, 0.3, 14.6, 700.0], dtype=torch.float64)
    side = {"sigma": sigma}
    part.start(torch.Generator().manual_seed(0), side)
    u = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(part(u, side), u)
    torch.nn.init.normal_(part.second.weight)
    v = part(u, side)
    assert torch.allclose(part.undo(v, side), u)
    moved = part.undo(v + torch.eye(8, dtype=torch.float64)[2], side)
    for n in range(4):
        turned = part.turn(torch.eye(8, dtype=torch.float64), {"sigma": sigma[n : n + 1]})[2]
        assert torch.allclose(moved[n] - u[n], turned)


def test_where_scale_and_offset_follow_the_noise_level_modulation_pays_at_every_level():
    held_out = Planted(WORLD, part=1, needs=("sigma",)).rows(8192)
    x, sigma = held_out.rows, held_out.side["sigma"]
    worst = {}
    for kind in ("topk", "temporal"):
        sae = make_sae(kind, 32, 128, k=4)
        config = TrainConfig(steps=250, batch=512, stat_rows=4096, device="cpu")
        Trainer(sae, config, progress=False).fit(Planted(WORLD, 512, needs=("sigma",)))
        with torch.no_grad():
            error = (x - sae(held_out)).square().sum(1)
        bins = [(sigma >= low) & (sigma < low + 2) for low in range(0, 10, 2)]
        worst[kind] = max(float(error[b].sum() / (x[b] - x[b].mean(0)).square().sum()) for b in bins)
    assert worst["temporal"] <= 0.7 * worst["topk"]
