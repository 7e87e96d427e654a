"""Schedules and losses of one run: tilt, annealed k, rising penalties, where a dictionary starts."""

import math

import pytest
import torch

from visae.ops import Eager
from visae.sae import initialise, kind_options, kinds, make_sae
from visae.sae.centre import geometric_median
from visae.sae.schemes import tilted_mean
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, annealed_k

WORLD = PlantedConfig(d=12, n_features=24, active=3)
WITH_K = [kind for kind in kinds() if "k" in kind_options(kind)]


def sae(kind="topk", k=3, **options):
    return make_sae(kind, 12, 64, **({"k": k} if "k" in kind_options(kind) else {}), **options)


def draw(made, n, index):
    """Tokens with the side information that a dictionary needs."""
    return Planted(WORLD, needs=made.needs).rows(n, index)


def started(kind, **options):
    made = sae(kind, **options)
    initialise(made, draw(made, 500, 0))
    return made.train()


@pytest.mark.parametrize("tilt", [-50.0, -1.0, -1e-3, 1e-30, 1e-9, 1e-3, 1.0, 40.0])
def test_the_tilted_mean_is_the_formula_and_weighs_tokens_by_a_softmax(tilt):
    losses = torch.rand(300, generator=torch.Generator().manual_seed(0)).double() * 3
    if abs(tilt) >= 1e-3:
        naive = float(torch.exp(tilt * losses).mean().log() / tilt)
    else:
        naive = float(losses.mean() + tilt / 2 * losses.var(correction=0))
    assert tilted_mean(losses, tilt).item() == pytest.approx(naive, rel=1e-9)
    single = losses.float().requires_grad_()
    tilted_mean(single, tilt).backward()
    assert tilted_mean(single, tilt).item() == pytest.approx(naive, rel=1e-5)
    assert torch.allclose(single.grad.double(), torch.softmax(tilt * losses, 0), rtol=1e-4, atol=1e-7)


def test_a_strong_tilt_is_the_largest_loss_without_overflow_and_none_is_the_mean():
    losses = torch.tensor([1e-3, 2.0, 900.0], requires_grad=True)
    assert tilted_mean(losses, 1e4).item() == pytest.approx(900, rel=1e-3)
    assert tilted_mean(losses, -1e6).item() == pytest.approx(1e-3, rel=1e-2)
    tilted_mean(losses, 1e4).backward()
    assert torch.allclose(losses.grad, torch.tensor([0.0, 0.0, 1.0]))
    assert tilted_mean(losses, 0.0).item() == losses.mean().item()
    assert tilted_mean(torch.full((5,), 0.3), 7.0).item() == pytest.approx(0.3)


@pytest.mark.parametrize("kind", kinds())
def test_every_decode_scheme_can_be_tilted(kind, monkeypatch):
    made, seen = started(kind), []
    monkeypatch.setattr("visae.sae.dictionary.tilted_mean", lambda x, tilt: seen.append(x) or tilted_mean(x, tilt))
    for tilt in (0.0, 1e-6, 5.0):
        torch.manual_seed(0)  # of the noise of some kinds
        found = made.losses(draw(made, 200, 3), Eager(), tilt=tilt).terms["recon"].item()
        tokens = seen[-1].detach().double()
        assert tokens.shape == (200,)
        wanted = torch.exp(5 * tokens).mean().log() / 5 if tilt == 5.0 else tokens.mean()
        assert found == pytest.approx(float(wanted), rel=1e-4)


def test_k_moves_from_its_start_to_its_end_by_equal_steps_or_equal_factors():
    linear = [annealed_k(step, 100, 32, 8, 0.5) for step in range(100)]
    assert linear[:3] == [32, 32 - 24 / 50, 32 - 48 / 50]
    assert linear[50:] == [8] * 50
    assert annealed_k(25, 100, 32, 8, 0.5, "exponential") == pytest.approx(16)
    assert annealed_k(0, 100, 32, 8, 0.0) == 8
    assert annealed_k(30, 100, 2, 8, 0.5) == pytest.approx(2 + 6 * 0.6)


@pytest.mark.parametrize("kind", WITH_K)
def test_every_kind_with_k_follows_it(kind):
    made = sae(kind)
    if not made.activation.anneals:
        with pytest.raises(ValueError, match="has no number of codes to anneal"):
            Trainer(made, TrainConfig(steps=5, start_k=6, device="cpu"), progress=False)
        return
    config = TrainConfig(steps=10, batch=256, start_k=12, anneal=0.5, stat_rows=512, device="cpu", precision="fp32")
    trainer, seen = Trainer(made, config, progress=False), []
    update = trainer.update

    def spy():
        seen.append(float(made.activation.now))
        return update()

    trainer.update = spy
    trainer.fit(Planted(WORLD, 256, needs=made.needs))
    wanted = [12, 10.2, 8.4, 6.6, 4.8, 3, 3, 3, 3, 3]
    whole = isinstance(made.activation.train_k, int) and kind not in ("batch_topk", "matryoshka")
    assert seen == pytest.approx([round(k) for k in wanted] if whole else wanted, abs=0.5)
    made.train()
    made.activation.anneal(12)
    many = made.losses(draw(made, 500, 4), Eager())
    made.activation.anneal(3)
    few = made.losses(draw(made, 500, 4), Eager())
    if "target_l0" in many.terms:
        assert many.terms["target_l0"].item() != few.terms["target_l0"].item()
    else:
        assert many.codes.l0() > few.codes.l0() + 1
    assert many.terms["recon"].item() != few.terms["recon"].item() or "target_l0" in many.terms


def test_annealing_is_refused_where_k_is_missing_or_too_large():
    for kind, k, message in (("relu_l1", 6, "'relu_l1' has no number of codes"), ("topk", 65, "n_latents = 64")):
        with pytest.raises(ValueError, match=message):
            Trainer(sae(kind), TrainConfig(steps=5, start_k=k, device="cpu"), progress=False)
    with pytest.raises(ValueError, match="'topk' has no penalty that rises"):
        Trainer(sae(), TrainConfig(steps=5, sparsity_warmup=0.1, device="cpu"), progress=False)
    with pytest.raises(ValueError, match="linear, exponential; got 'cosine'"):
        TrainConfig(steps=5, anneal_shape="cosine")
    with pytest.raises(ValueError, match="anneal is a share of the steps"):
        TrainConfig(steps=5, anneal=2.0)


RISING = [kind for kind in kinds() if any(p.warmup is not None for p in sae(kind).penalties)]


@pytest.mark.parametrize("kind", RISING)
def test_penalties_rise_over_the_share_that_the_run_asks_for(kind):
    made = started(kind)
    Trainer(made, TrainConfig(steps=5, sparsity_warmup=0.4, device="cpu"), progress=False)
    x = draw(made, 100, 2)
    names = [p.name for p in made.penalties if p.warmup is not None]

    def terms(progress):
        torch.manual_seed(0)
        found = made.losses(x, Eager(), progress=progress).terms
        return {name: found[name].item() for name in names}

    quarter = terms(0.1)
    for progress, times in ((0.0, 0), (0.05, 0.5), (0.15, 1.5), (0.3, 3), (0.4, 4), (0.9, 4)):
        if kind != "p_anneal" or progress <= 0.15:  # beyond, its exponent moves too
            assert terms(progress) == pytest.approx({name: times * quarter[name] for name in names})


def test_kinds_whose_penalties_rise_are_there():
    assert {"relu_l1", "gated", "jumprelu", "p_anneal"} <= set(RISING)


def test_the_geometric_median_has_no_pull_left():
    rows = torch.randn(3000, 7, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 7) + 4
    rows[:100] *= 300
    found = geometric_median(rows)
    apart = rows.double() - found
    pull = (apart / torch.linalg.vector_norm(apart, dim=1, keepdim=True)).sum(0)
    assert float(torch.linalg.vector_norm(pull)) < 1e-3 * len(rows)
    assert torch.allclose(found, torch.full((7,), 4.0, dtype=torch.float64), atol=1.0)
    assert float((rows.mean(0) - 4).abs().max()) > 5
    line = torch.tensor([[0.0], [1.0], [2.0], [50.0], [90.0]])
    assert geometric_median(line).item() == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("others", [0, 1, 4])
def test_the_geometric_median_may_be_a_row(others):
    """Weiszfeld's own iteration divides by zero here: the mean, where it begins, is a row."""
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])[:others]
    rows = torch.cat([torch.zeros(3, 2), cross, -cross])
    assert torch.allclose(geometric_median(rows), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    moved = torch.cat([torch.zeros(1, 2), torch.randn(50, 2, generator=torch.Generator().manual_seed(2)) + 3])
    moved[0] = moved[1:].mean(0)  # a row at the first guess, where the median is not
    found = geometric_median(moved)
    assert bool(torch.isfinite(found).all())
    nearby = [float(torch.linalg.vector_norm(moved - (found + d), dim=1).sum()) for d in (0, 1e-2, -1e-2)]
    assert nearby[0] <= min(nearby[1:])
    with pytest.raises(ValueError, match=r"rows \[n, d\]"):
        geometric_median(torch.empty(0, 3))


def test_a_run_starts_from_the_centre_and_the_directions_it_is_told():
    x = Planted(WORLD).sample(2000)[0]
    x[:20] *= 200
    near = {}
    for start in ("data", "random"):
        made = sae()
        initialise(made, x, start=start)
        points = torch.nn.functional.normalize(made.normalise(x), dim=1)
        near[start] = float((made.W_dec.detach() @ points.T).amax(1).min())
        assert made.b_dec.abs().max().item() == 0
    assert near["data"] > 0.9 > near["random"]
    made = sae()
    initialise(made, x, centre="median")
    assert torch.allclose(made.restore(made.b_dec[None])[0], geometric_median(x).float(), atol=1e-3)
    usual = x[20:].mean(0)
    assert (made.restore(made.b_dec.detach()[None])[0] - usual).norm() < 0.3 * (made.mean - usual).norm()
    u = made.train().normalise(x)
    with torch.no_grad():
        recon = made.code(u, Eager())[0].to_dense() @ made.W_dec
    away = u - made.b_dec.detach()
    assert float((away * recon).sum() / recon.square().sum()) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="centre is mean or median, got 'mode'"):
        initialise(sae(), x, centre="mode")
    assert math.isfinite(
        Trainer(sae(), TrainConfig(steps=3, centre="median", start="random", device="cpu"), progress=False)
        .fit([x[:512]])
        .metrics["loss"]
    )
