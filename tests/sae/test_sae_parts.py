"""What sets the less common parts apart: pairs, tied weights, atoms near data."""

import pytest
import torch

from visae.sae import ABOUT, initialise, make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, recovery

WORLD = PlantedConfig(d=32, n_features=64, active=4)


def train(kind, steps=300, seed=0, **options):
    sae, loader = make_sae(kind, 32, 128, **options), Planted(WORLD, 512)
    config = TrainConfig(steps=steps, batch=512, stat_rows=8192, device="cpu", calibration_rows=8192, seed=seed)
    result = Trainer(sae, config, progress=False).fit(loader, [Planted(WORLD, part=1).sample(4096)[0]])
    return sae, result.metrics, recovery(sae, loader.features)


def test_pairs_need_a_fraction_of_the_encoder_and_fire_only_where_both_do():
    sae, plain = make_sae("kron", 32, 128, k=4), make_sae("topk", 32, 128, k=4)
    size = [sum(p.numel() for p in made.encoder.parameters()) for made in (sae, plain)]
    assert size[0] <= 0.3 * size[1]
    initialise(sae, torch.randn(500, 32))
    u = torch.randn(50, 32)
    p, q = (part.pre(u, torch.zeros(32)) for part in (sae.encoder.first, sae.encoder.second))
    codes = sae.encoder.pre(u, torch.zeros(32)).view(50, 2, 8, 8)
    both = (p.view(50, 2, 8, 1) > 0) & (q.view(50, 2, 1, 8) > 0)
    assert torch.equal(codes > 0, both)


def test_one_matrix_reads_and_writes_and_more_codes_may_be_kept_at_inference():
    sae, metrics, found = train("k_sparse", k=4)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert found["mmcs"] > 0.95
    assert metrics["val_l0"] == pytest.approx(4, abs=0.05)
    wider = make_sae("k_sparse", 32, 128, k=4, alpha=2)
    wider.load_state_dict(sae.state_dict())
    assert float(wider.eval().encode(torch.randn(64, 32)).l0().double().mean()) > 6


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_atoms_stay_near_mixtures_of_data_points(activation):
    sae, _, found = train("archetypal", k=4, points=256, delta=0.2, activation=activation)
    part = sae.decoder
    assert found["mmcs"] > 0.95
    assert bool((part.mixture >= 0).all())
    assert torch.allclose(part.mixture.sum(1), torch.ones(128), atol=1e-5)
    hull = part.mixture @ part.points
    gap = torch.linalg.vector_norm(part.atoms() / part.log_scale.exp() - hull, dim=1).detach()
    assert float(gap.max()) <= float(part.radius) * (1 + 1e-5)
    assert float(part.radius) == pytest.approx(0.2 * float(torch.linalg.vector_norm(part.points, dim=1).mean()))


def test_negative_results_are_reproduced_and_said():
    """The literature's and ours: sampling costs reconstruction and latents, top-AFA goes dense."""
    (free, plain, _), (noisy, worse, _) = train("topk", k=4), train("vsae", k=4, kl=0.5)
    assert worse["val_fvu"] > 2 * plain["val_fvu"]
    x = Planted(WORLD, part=2).sample(4096)[0]
    alive = [int((sae.encode(x).to_dense() != 0).any(0).sum()) for sae in (free, noisy)]
    assert alive[1] < 0.8 * alive[0]
    assert train("vsae", steps=200, k=4)[1]["val_fvu"] > 1.1 * plain["val_fvu"]
    assert train("top_afa", steps=200)[1]["val_l0"] > 3 * 4
    assert train("discrete", k=4)[1]["val_fvu"] > 1.5 * plain["val_fvu"]
    one = {kind: train(kind, steps=100, k=1)[1]["val_fvu"] for kind in ("topk", "discrete")}
    assert one["discrete"] == pytest.approx(one["topk"], rel=0.05)  # one head is no restriction
    assert all(ABOUT[kind].experimental for kind in ("vsae", "top_afa", "discrete"))


class Pairs(Planted):
    """A token holds one of 64 pairs `a_i + b_j`, one of 64 others, or both; all 32 directions are orthogonal."""

    def sample(self, n, index=0):
        generator, axes = self._generator(index), torch.eye(32).view(2, 2, 8, 32)
        x = self._mix(torch.zeros(n, 64), generator)
        for first, second in axes:
            at, size = (
                torch.randint(0, 8, (2, n), generator=generator),
                1 + 0.3 * torch.randn(n, 1, generator=generator),
            )
            there = torch.rand(n, 1, generator=generator) < 0.75
            x += there * size.clamp_min(0.1) * (first[at[0]] + second[at[1]]) / 2**0.5
        return x, torch.zeros(n, 64)


def test_a_quarter_of_the_encoder_costs_reconstruction_even_where_all_features_are_pairs():
    fvu = {}
    for kind in ("topk", "kron"):
        config = TrainConfig(steps=200, batch=512, stat_rows=4096, device="cpu", log_every=200)
        held_out = [Pairs(WORLD, part=1).sample(4096)[0]]
        result = Trainer(make_sae(kind, 32, 128, k=2), config, progress=False).fit(Pairs(WORLD, 512), held_out)
        fvu[kind] = result.metrics["val_fvu"]
    assert 1.2 * fvu["topk"] < fvu["kron"] < 0.4
    assert ABOUT["kron"].experimental


def test_group_bias_adaptation_finds_features_at_the_frequencies_asked_for_with_no_other_knob():
    options = {"groups": 2, "highest": 0.04, "lowest": 0.02, "every": 2, "rate": 0.02}
    sae, _, found = train("gba", steps=900, **options)
    assert found["mmcs"] > 0.97
    fires = (sae.encode(Planted(WORLD, part=1).sample(20_000)[0]).to_dense() != 0).double().mean(0)
    for half, target in ((fires[:64], 0.04), (fires[64:], 0.02)):
        assert float(half.mean()) == pytest.approx(target, rel=0.2)
    assert torch.equal(sae.b_dec, torch.zeros(32))
    with pytest.raises(ValueError, match="fall from highest to lowest"):
        make_sae("gba", 4, 8, highest=0.1, lowest=0.2)


def test_group_bias_adaptation_is_near_its_frequencies_after_500_steps_with_its_own_settings():
    sae, _, found = train("gba", steps=500)
    assert found["mmcs"] > 0.95
    fires = (sae.encode(Planted(WORLD, part=1).sample(20_000)[0]).to_dense() != 0).double().mean(0)
    group, target = sae.activation.group, sae.activation.target
    for number in range(10):
        assert float(fires[group == number].mean()) == pytest.approx(float(target[group == number][0]), rel=0.2)


def test_integer_codes_find_the_head_that_is_at_work_from_ten_pairs():
    """Eight planted heads write features of their own; head 5 writes two more where a circuit is at work."""
    sae, loader = make_sae("discrete", 32, 128, k=1), Planted(PlantedConfig(d=32, n_features=64, active=1), 512)
    config = TrainConfig(steps=200, batch=512, stat_rows=4096, device="cpu", log_every=200)
    Trainer(sae, config, progress=False).fit(loader)
    g = torch.Generator().manual_seed(1)

    def outputs(at_work):
        chosen = 8 * torch.arange(8) + torch.randint(0, 4, (10, 8), generator=g)
        if at_work:
            chosen[:, 5] = 8 * 5 + 6 + torch.randint(0, 2, (10,), generator=g)
        sizes = 0.5 + torch.rand(80, 1, generator=g)
        return sae.encode(sizes * loader.features[chosen.flatten()] + loader.offset).indices.view(10, 8)

    positive, negative = outputs(at_work=True), outputs(at_work=False)
    unique = [float((~torch.isin(positive[:, head], negative[:, head])).double().mean()) for head in range(8)]
    assert [head for head in range(8) if unique[head] > 0.5] == [5]
    with pytest.raises(ValueError, match=r"whole number of heads, got 2\.5"):
        make_sae("discrete", 32, 128, k=2.5)
