"""Callbacks: dead latents get new weights, weights are averaged, the best dictionary is kept, a run stops early."""

import pytest
import torch

from visae.sae import kind_options, kinds, make_sae
from visae.train import Callback, Planted, PlantedConfig, TrainConfig, Trainer, checkpoint, read_metrics, validate

WORLD = PlantedConfig(d=12, n_features=24, active=3)
HELD_OUT = [Planted(WORLD, part=1).sample(400, i)[0] for i in range(2)]
DENSE = ("relu_l1", "gated", "jumprelu", "p_anneal")


def sae(kind="topk", **options):
    return make_sae(kind, 12, 64, **({"k": 3} if "k" in kind_options(kind) else {}), **options)


def trainer_of(made, out=None, callbacks=(), **changes):
    settings = {"steps": 40, "batch": 64, "stat_rows": 256, "log_every": 10, "device": "cpu", "precision": "fp32"}
    return Trainer(made, TrainConfig(**{**settings, **changes}), out, progress=False, callbacks=callbacks)


class Spy(Callback):
    """Copies what the optimiser and the dictionary hold before and after another callback's step."""

    def __init__(self, name, look):
        self.name, self.look, self.seen = name, look, []

    def after_step(self, trainer, losses):
        self.seen.append(self.look(trainer))


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.optimiser.items()}


class Kills(Callback):
    """Makes half of the latents dead, for good if nothing is done."""

    name = "kills"

    def begin(self, trainer, rows):
        with torch.no_grad():
            trainer.sae.W_enc[:32] = 0
            trainer.sae.b_enc[:32] = -5
            if hasattr(trainer.sae.activation, "threshold"):
                trainer.sae.activation.threshold[:32] = 50.0


def killed(kind, every, steps=60):
    """A run of a dictionary half of which starts dead; resampled at step 20 alone if `every` is 20."""
    made = sae(kind, **({"aux": 0.0} if "aux" in kind_options(kind) else {}))
    trainer = trainer_of(made, callbacks=[Kills()], steps=steps, resample_every=every, dead_window=640, lr=3e-3)
    return trainer, trainer.fit(Planted(WORLD, 64))


@pytest.mark.parametrize("kind", DENSE)
def test_resampling_gives_dead_latents_weights_with_which_they_fire(kind):
    trainer, result = killed(kind, 20)
    silent, without = killed(kind, None)
    assert bool((silent.sae.samples_since_fired[:32] == 60 * 64).all()), "without resampling they stay dead"
    assert result.history[1]["resampled"] >= 32
    assert bool((trainer.sae.samples_since_fired[:32] < 60 * 64).all())
    x = Planted(WORLD, part=2).sample(2000)[0]
    alive = (trainer.sae.encode(x).to_dense() != 0).any(0)
    assert int(alive[:32].sum()) >= 24
    assert not bool((silent.sae.encode(x).to_dense() != 0).any(0)[:32].any())
    assert result.metrics["fvu"] < 0.9 * without.metrics["fvu"]


@pytest.mark.parametrize("kind", DENSE)
def test_resampling_changes_the_dead_latents_as_published_and_no_others(kind):
    made = sae(kind, **({"aux": 0.0} if "aux" in kind_options(kind) else {}))
    trainer = trainer_of(made, callbacks=[Kills()], steps=20, resample_every=1000, dead_window=640)
    trainer.fit(Planted(WORLD, 64))
    callback, made = trainer.callbacks[0], trainer.sae
    dead = (made.samples_since_fired >= 640).nonzero()[:, 0]
    assert set(range(32)) <= set(dead.tolist())
    live = torch.tensor(sorted(set(range(64)) - set(dead.tolist())))
    made.train()
    losses = made.losses(trainer.last, trainer.ops)
    before, first = weights(trainer), {n: m.clone() for n, m in trainer.optimiser.first.items()}
    with trainer.randomness:
        n = callback.resample(trainer, losses)
    assert n == len(dead)
    after = weights(trainer)
    rows = [name for name, p in after.items() if p.shape[0] == 64]
    for name in rows:
        assert torch.equal(after[name][live], before[name][live]), name
        assert bool((trainer.optimiser.first[name][dead] == 0).all())
        assert bool((trainer.optimiser.second[name][dead] == 0).all())
        assert torch.equal(trainer.optimiser.first[name][live], first[name][live])
    assert bool((after["encoder.weight"][dead] != before["encoder.weight"][dead]).any(1).all())
    length = torch.linalg.vector_norm(before["encoder.weight"][live], dim=1).mean()
    assert torch.allclose(torch.linalg.vector_norm(after["encoder.weight"][dead], dim=1), 0.2 * length, rtol=1e-4)
    atoms = after["decoder.weight"][dead]
    assert torch.allclose(torch.nn.functional.normalize(after["encoder.weight"][dead], dim=1), atoms, atol=1e-5)
    points = torch.nn.functional.normalize(made.normalise(trainer.last) - made.b_dec.detach(), dim=1)
    nearest = (atoms @ points.T).max(1)
    assert torch.allclose(nearest.values, torch.ones(len(dead)), atol=1e-5), "atoms are tokens of the batch"
    assert len(set(nearest.indices.tolist())) == len(dead), "each another token"
    assert bool((made.samples_since_fired[dead] == 0).all())
    codes = made.losses(trainer.last, trainer.ops).codes.to_dense()
    assert bool((codes[nearest.indices, dead] > 0).all()), "every new latent fires on its own token"


def test_tokens_are_drawn_in_proportion_to_their_squared_error():
    trainer, _ = killed("relu_l1", 1000, steps=20)
    callback, made = trainer.callbacks[0], trainer.sae.train()
    with torch.no_grad():
        losses = made.losses(trainer.last, trainer.ops)
        u = made.normalise(trainer.last)
        losses.recon.copy_(u)
        losses.recon[3, 0] += 2.0  # squared error 4, ...
        losses.recon[7, 1] -= 1.0  # ... 1, and 0 elsewhere
        drawn = []
        for _ in range(300):
            made.samples_since_fired.zero_()
            made.samples_since_fired[5] = 10**6
            assert callback.resample(trainer, losses) == 1
            drawn.append(int((made.W_dec[5] @ torch.nn.functional.normalize(u - made.b_dec, dim=1).T).argmax()))
        assert set(drawn) == {3, 7}
        assert drawn.count(3) / 300 == pytest.approx(0.8, abs=0.07)
        made.samples_since_fired.fill_(10**6)
        made.samples_since_fired[:4] = 0
        assert callback.resample(trainer, losses) == 2, "no more latents than tokens with an error"


def test_resampling_is_refused_where_latents_have_no_rows_of_their_own_or_revive_otherwise():
    for kind in ("topk", "batch_topk", "kron", "gba"):
        with pytest.raises(ValueError, match=f"dead latents of kind '{kind}' cannot be resampled"):
            trainer_of(sae(kind), resample_every=5)


def test_resampling_stops_where_the_learning_rate_falls():
    made = sae("relu_l1", l1=5.0)
    trainer = trainer_of(made, steps=100, resample_every=10, dead_window=64, decay=0.5)
    result = trainer.fit(Planted(WORLD, 64))
    counts = [line["resampled"] for line in result.history]
    assert max(counts[:5]) > 0
    assert counts[5:] == [0] * 5


def naive_average(seen, decay):
    total = sum((1 - decay) * decay ** (len(seen) - 1 - i) * w.double() for i, w in enumerate(seen))
    return total / (1 - decay ** len(seen))


@pytest.mark.parametrize("kind", kinds())
def test_the_averaged_weights_are_the_corrected_mean_and_are_what_the_run_ends_with(kind):
    spy = Spy("spy", weights)
    trainer = trainer_of(made := sae(kind), callbacks=[spy], steps=15, ema=0.9)
    trainer.fit(Planted(WORLD, 64, needs=made.needs))
    units = trainer.optimiser.unit
    for name, p in trainer.sae.named_parameters():
        wanted = naive_average([w[name] for w in spy.seen], 0.9)
        if name in units:
            wanted = torch.nn.functional.normalize(wanted, dim=1)
        if kind != "archetypal" or "decoder" not in name:  # those are projected again
            assert torch.allclose(p.detach().double(), wanted, atol=1e-5), name
    assert any(not torch.equal(p, spy.seen[-1][n]) for n, p in trainer.sae.named_parameters())


def test_held_out_batches_see_the_averaged_weights_and_training_does_not():
    seen = []

    class Measures(Callback):
        name = "measures"

        def validated(self, trainer, metrics):
            seen.append((metrics["val_fvu"], weights(trainer)))

    plain, averaged = Spy("spy", weights), Spy("spy", weights)
    trainer_of(sae(), callbacks=[plain], validate_every=10).fit(Planted(WORLD, 64), HELD_OUT)
    trainer = trainer_of(sae(), callbacks=[averaged, Measures()], validate_every=10, ema=0.8)
    result = trainer.fit(Planted(WORLD, 64), HELD_OUT)
    for a, b in zip(plain.seen, averaged.seen, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    fvu, inside = seen[1]
    assert torch.allclose(
        inside["encoder.bias"].double(), naive_average([w["encoder.bias"] for w in averaged.seen[:20]], 0.8), atol=1e-6
    )
    assert fvu != seen[0][0]
    assert result.metrics["val_fvu"] == pytest.approx(validate(trainer.sae, HELD_OUT)["val_fvu"])


class Worsens(Callback):
    """Spoils the dictionary after a step, as a diverging run would."""

    name = "worsens"

    def __init__(self, after):
        self.after = after

    def after_step(self, trainer, losses):
        if trainer.step > self.after:
            with torch.no_grad():
                trainer.sae.decoder.bias.add_(0.2)


@pytest.mark.parametrize("folder", [True, False])
def test_a_run_that_gets_worse_stops_and_ends_with_its_best_dictionary(folder, tmp_path):
    out = tmp_path / "run" if folder else None
    settings = {"steps": 1000, "validate_every": 5, "patience": 3, "checkpoint_every": 5, "keep": 1}
    trainer = trainer_of(sae(), out, [Worsens(50)], best=True, **settings)
    result = trainer.fit(Planted(WORLD, 64), HELD_OUT)
    validations = [line for line in result.history if "val_fvu" in line and not line.get("final")]
    values = [line["val_fvu"] for line in validations]
    best = min(range(len(values)), key=values.__getitem__)
    assert result.steps == validations[best]["step"] + 3 * 5 < 1000
    assert validations[best]["best"]
    assert result.metrics["val_fvu"] == pytest.approx(values[best], rel=1e-6)
    last = trainer_of(sae(), None, [Worsens(50)], **settings)
    assert last.fit(Planted(WORLD, 64), HELD_OUT).metrics["val_fvu"] > values[best]
    if out is not None:
        kept = sorted(path.name for path in (out / "checkpoints").iterdir())
        assert kept == [f"best-{validations[best]['step']:09d}", f"step-{result.steps:09d}"]


def test_a_run_that_gets_better_is_not_stopped_and_needs_held_out_batches(tmp_path):
    settings = {"validate_every": 10, "patience": 1, "lr": 1e-3}
    assert trainer_of(sae(), **settings).fit(Planted(WORLD, 64), HELD_OUT).steps == 40
    with pytest.raises(ValueError, match="set validate_every"):
        trainer_of(sae(), patience=2)
    with pytest.raises(ValueError, match="give fit its validation batches"):
        trainer_of(sae(), best=True, validate_every=10).fit(Planted(WORLD, 64))
    trainer_of(sae(), tmp_path, best=True, validate_every=10).fit(Planted(WORLD, 64), HELD_OUT)
    for path in (tmp_path / "checkpoints").glob("best-*"):
        path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="is gone: put it back"):
        trainer_of(sae(), tmp_path, best=True, validate_every=10).fit(Planted(WORLD, 64), HELD_OUT, resume=True)


def test_the_best_dictionary_in_a_checkpoint_has_the_averaged_weights(tmp_path):
    trainer = trainer_of(sae(), tmp_path, validate_every=10, best=True, ema=0.8, lr=1e-3)
    trainer.fit(Planted(WORLD, 64), HELD_OUT)
    (found,) = (tmp_path / "checkpoints").glob("best-*")
    held = checkpoint.load(found)
    fresh = sae().eval()
    fresh.load_state_dict(held.tensors)
    lines = [line for line in read_metrics(tmp_path) if line.get("best")]
    assert validate(fresh, HELD_OUT)["val_fvu"] == pytest.approx(lines[-1]["val_fvu"]) == held.notes["val_fvu"]


def test_callbacks_of_the_user_are_told_apart_by_their_names():
    with pytest.raises(ValueError, match="different names, got ema twice"):
        trainer_of(sae(), callbacks=[Spy("ema", weights)], ema=0.9)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        trainer_of(sae(), ema=1.0)
