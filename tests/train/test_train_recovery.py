"""Planted dictionaries are found: the settings of the reference's calibration run E1 (d 32, 64 features, k 4)."""

import pytest
import torch

from visae.sae import make_sae
from visae.sae.codes import Codes
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, absorption, recovery
from visae.train.bench import tiers

E1 = PlantedConfig(d=32, n_features=64, active=4)


def train(kind, steps, world=E1, **options):
    loader = Planted(world, 512)
    sae = make_sae(kind, 32, 128, **options)
    config = TrainConfig(steps=steps, batch=512, stat_rows=8192, device="cpu", calibration_rows=16_384, log_every=200)
    held_out = [Planted(world, part=1).sample(8192)[0]]
    result = Trainer(sae, config, progress=False).fit(loader, held_out)
    return result.metrics, recovery(sae, loader.features)


def test_topk_recovers_the_planted_features():
    metrics, found = train("topk", 400, k=4)
    assert found["mmcs"] >= 0.99
    assert found["recovered"] == 1.0
    assert metrics["val_fvu"] < 0.1
    assert metrics["val_l0"] == pytest.approx(4, abs=0.02)


def test_batch_topk_recovers_the_planted_features_at_its_calibrated_threshold():
    metrics, found = train("batch_topk", 500, k=4)
    assert found["mmcs"] >= 0.97
    assert metrics["val_fvu"] < 0.11


def test_relu_l1_recovers_the_planted_features():
    _, found = train("relu_l1", 900, l1=0.2)
    assert found["mmcs"] >= 0.98


def test_where_tokens_hold_different_numbers_of_features_a_budget_over_the_batch_or_learnt_thresholds_pay():
    world = PlantedConfig(d=32, n_features=64, active=4, zipf=0.7)
    fvu = {}
    for kind in ("topk", "batch_topk", "jumprelu"):
        metrics, _ = train(kind, 400, world, k=4)
        assert metrics["val_l0"] == pytest.approx(4, rel=0.03)
        fvu[kind] = metrics["val_fvu"]
    assert fvu["batch_topk"] <= 0.85 * fvu["topk"]
    assert fvu["jumprelu"] <= fvu["topk"]


FAMILIES = PlantedConfig(d=32, n_features=64, active=2, children=3, spread=0.3)


def test_kinds_that_keep_parents_from_being_absorbed_by_their_children():
    absorbed, fvu, cosine = {}, {}, {}
    for kind in ("topk", "hierarchical_topk", "batch_topk", "atm", "orthogonal", "matryoshka"):
        world = Planted(FAMILIES, 512)
        sae = make_sae(kind, 32, 128, k=3)
        config = TrainConfig(steps=200, batch=512, stat_rows=4096, device="cpu", calibration_rows=8192, log_every=200)
        held_out = [Planted(FAMILIES, part=1).sample(8192)[0]]
        fvu[kind] = Trainer(sae, config, progress=False).fit(world, held_out).metrics["val_fvu"]
        absorbed[kind] = absorption(sae, Planted(FAMILIES, part=2))
        atoms = sae.W_dec.detach()
        cosine[kind] = float((atoms @ atoms.T).fill_diagonal_(-1).amax(1).mean())
    assert absorbed["topk"] > 0.1
    assert absorbed["hierarchical_topk"] > absorbed["topk"]
    assert all(absorbed[kind] <= 0.5 * absorbed["topk"] for kind in ("atm", "orthogonal", "matryoshka"))
    assert absorbed["atm"] < 0.5 * absorbed["batch_topk"]
    assert cosine["orthogonal"] < 0.6 * cosine["batch_topk"]
    assert fvu["atm"] < fvu["topk"]
    assert fvu["matryoshka"] > fvu["batch_topk"]


class Handmade:
    """Codes of a planted world as they are; `absorbing` children speak for their parents, too."""

    def __init__(self, world, absorbing):
        self.world, self.absorbing = world, absorbing

    def directions(self):
        features = self.world.features.clone()
        if self.absorbing:
            parents = torch.arange(self.world.parents).repeat_interleave(3)
            features[self.world.parents :] += features[parents]
        return features

    def encode(self, _x):
        codes = self.world.sample(8192)[1]
        if self.absorbing:
            born = codes[:, self.world.parents :].reshape(len(codes), -1, 3).sum(2) > 0
            codes[:, : self.world.parents] *= ~born
        return Codes.from_dense(codes)


def test_absorption_is_none_in_the_true_dictionary_and_complete_where_children_speak_for_their_parents():
    world = Planted(FAMILIES)
    _, codes = world.sample(8192)
    assert absorption(Handmade(world, absorbing=False), world) == 0
    assert absorption(Handmade(world, absorbing=True), world) == pytest.approx(0.5, abs=0.05)  # half have a child
    families = codes[:, 16:].reshape(-1, 16, 3) > 0
    assert bool((families.sum(2) <= 1).all())
    assert bool((families.any(2) <= (codes[:, :16] > 0)).all())
    assert float((codes > 0).sum(1).double().mean()) == pytest.approx(3, abs=0.05)
    with pytest.raises(ValueError, match="a world with children"):
        absorption(Handmade(world, absorbing=False), Planted(E1))
    with pytest.raises(ValueError, match="multiple of 1 \\+ 2"):
        Planted(PlantedConfig(n_features=64, children=2))


def test_data_and_dictionary_may_not_share_a_seed():
    with pytest.raises(ValueError, match="share seed 0"):
        Planted(PlantedConfig(seed=0))
    Planted(PlantedConfig(seed=0), sae_seed=1)


def test_a_planted_world_is_what_its_settings_say():
    for zipf in (0.0, 0.7):
        world = Planted(PlantedConfig(d=20, n_features=50, active=5, zipf=zipf, noise=0.0, seed=3))
        x, codes = world.sample(20_000)
        assert torch.allclose(x, codes @ world.features + world.offset, atol=1e-5)
        assert float((codes > 0).sum(1).double().mean()) == pytest.approx(5, rel=0.05)
        assert torch.allclose(torch.linalg.vector_norm(world.features, dim=1), torch.ones(50), atol=1e-6)
        frequency = (codes > 0).double().mean(0)
        assert bool(frequency[0] > 3 * frequency[-1]) == (zipf > 0)
    a, b = (Planted(PlantedConfig(), part=p).sample(100)[0] for p in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, Planted(PlantedConfig()).sample(100)[0])


def test_every_tier_of_kernels_reaches_the_fvu_of_the_dense_oracle():
    fvu = {}
    for tier, precision in tiers("cpu"):
        sae = make_sae("topk", 32, 128, k=4)
        config = TrainConfig(
            steps=150, batch=512, stat_rows=8192, device="cpu", log_every=150, ops=tier, precision=precision
        )
        metrics = (
            Trainer(sae, config, progress=False).fit(Planted(E1, 512), [Planted(E1, part=1).sample(8192)[0]]).metrics
        )
        fvu[tier, precision] = metrics["val_fvu"]
    assert fvu == pytest.approx(dict.fromkeys(fvu, fvu["reference", "fp32"]), rel=0.01)
