"""What a run computes and records: budget, schedule, dead latents, thresholds, trouble."""

import math
from itertools import islice

import pytest
import torch

from visae.ops import fast_precision, make_ops
from visae.sae import Rows, kind_options, kinds, make_sae
from visae.train import Feed, LoaderEnded, Planted, PlantedConfig, TrainConfig, Trainer, default_lr, schedule

WORLD = PlantedConfig(d=12, n_features=24, active=3)


def sae(kind="topk", **options):
    return make_sae(kind, 12, 64, **({"k": 3} if "k" in kind_options(kind) else {}), **options)


def fit(loader, kind="topk", out=None, validation=None, **changes):
    config = TrainConfig(**{"steps": 30, "batch": 64, "stat_rows": 256, "log_every": 10, "device": "cpu", **changes})
    trainer = Trainer(sae(kind), config, out, progress=False)
    return trainer, trainer.fit(loader, validation)


def world(kind, batch=64, part=0):
    """With the side information that the kind needs."""
    return Planted(WORLD, batch, part, needs=sae(kind).needs)


@pytest.mark.parametrize("kind", kinds())
def test_the_loss_falls_and_every_logged_quantity_is_there(kind, tmp_path):
    held_out = world(kind, part=1).rows(500)
    trainer, result = fit(world(kind), kind, tmp_path, [held_out], steps=200, lr=5e-3)
    steps = [line for line in result.history if "loss" in line]
    assert steps[-1]["fvu"] < 0.7 * steps[0]["fvu"]
    assert [line["step"] for line in steps] == list(range(10, 201, 10))
    assert {"samples", "loss", "recon", "fvu", "l0", "dead", "lr", "rows_per_second", "kernels"} <= set(steps[0])
    assert steps[0]["kernels"] == f"{make_ops().name} {fast_precision()}"
    assert steps[-1]["samples"] == 200 * 64 == result.samples
    terms = ["recon", *(penalty.name for penalty in trainer.sae.penalties)]
    assert steps[-1]["loss"] == pytest.approx(sum(steps[-1].get(term, 0) for term in terms), rel=1e-5)
    x, side = trainer.sae.unpack(held_out)
    fvu = ((x - trainer.sae(x, **side)).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert result.metrics["val_fvu"] == pytest.approx(fvu, rel=1e-4)
    if trainer.sae.unit_parameters():
        norms = torch.linalg.vector_norm(trainer.sae.W_dec, dim=1)
        assert torch.allclose(norms, torch.ones(64), atol=1e-5)
    assert not trainer.sae.training


# Where codes jump, or small ones are pushed without bound, rounding decides the path of training.
JUMPY = {"kron", "p_anneal", "top_afa"}


@pytest.mark.parametrize("kind", sorted(set(kinds()) - JUMPY))
def test_eager_and_reference_kernels_train_to_the_same_dictionary(kind):
    runs = [fit(world(kind), kind, ops=ops, precision="fp32")[0].sae for ops in ("eager", "reference")]
    for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_statistics_are_taken_from_the_first_rows_which_are_then_trained_on():
    rows = [Planted(WORLD).sample(64, i)[0] for i in range(50)]
    for loader in (Planted(WORLD, 64), iter(rows), rows):
        trainer, _ = fit(loader, steps=3)
        assert torch.allclose(trainer.sae.mean, torch.cat(rows[:4]).mean(0), atol=1e-5)
    seen = []

    class Spy(Planted):
        def __iter__(self):
            for x in super().__iter__():
                seen.append(self.drawn)
                yield x

    fit(Spy(WORLD, 64), steps=3)
    assert seen == [1, 2, 3, 4, 1, 2, 3]


def test_the_budget_in_tokens_counts_on_the_batch_size():
    _, result = fit(Planted(WORLD, 64), steps=None, tokens=1000)
    assert result.steps == 16
    with pytest.raises(ValueError, match="has 32 rows but the run counts on 64"):
        fit(Planted(WORLD, 32), steps=None, tokens=1000)


def test_the_learning_rate_rises_stays_and_falls_and_depends_on_the_step_alone():
    rates = [schedule(step, 100, 0.1, 0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx([1 - 0.05 * i for i in range(20)])
    assert schedule(0, 1, 0.05, 0.2) == 1.0
    assert default_lr(1024, 1500) == pytest.approx(4e-3)
    assert default_lr(4096, 1500) == pytest.approx(2e-3)
    assert default_lr(1024, 100) > default_lr(1024, 1500) > default_lr(1024, 10**6) == pytest.approx(1e-3)


def test_dead_latents_are_counted_in_samples_over_a_share_of_the_budget():
    trainer, result = fit(Planted(WORLD, 64), steps=100)
    assert trainer.dead_window == 64 * 100 // 20
    fired = trainer.sae.samples_since_fired
    assert int(fired.max()) <= 6400
    assert bool((fired % 64 == 0).all())
    assert result.metrics["dead"] == pytest.approx(float((fired >= 320).double().mean()))
    assert Trainer(sae(), TrainConfig(tokens=10**9, device="cpu")).dead_window == 10_000_000


def test_batch_topk_keeps_k_codes_on_tokens_it_never_saw():
    world = PlantedConfig(d=12, n_features=24, active=3, zipf=0.5)
    trainer, _ = fit(Planted(world, 256), "batch_topk", batch=256, steps=300, calibration_rows=20_000)
    x = Planted(world, part=7).sample(20_000)[0]
    codes = trainer.sae.encode(x).l0().double()
    assert float(codes.mean()) == pytest.approx(3, rel=0.03)
    assert float(codes.std()) > 0.5
    one_by_one = torch.cat([trainer.sae.encode(x[i : i + 1]).l0() for i in range(50)])
    assert torch.equal(one_by_one.double(), codes[:50])


def test_the_running_threshold_is_near_before_calibration():
    trainer, _ = fit(Planted(WORLD, 256), "batch_topk", batch=256, steps=200, calibration_rows=20_000)
    calibrated = float(trainer.sae.activation.threshold)
    running = make_sae("batch_topk", 12, 64, k=3)
    running.load_state_dict(trainer.sae.state_dict())
    running.activation.seen.zero_()
    running.train()
    for i in range(30):
        running.activation.observe(running.losses(Planted(WORLD, part=3).sample(256, i)[0], trainer.ops).codes)
    assert float(running.activation.threshold) == pytest.approx(calibrated, rel=0.05)
    codes = running.encode(Planted(WORLD, part=4).sample(5000)[0])
    assert float(codes.l0().float().mean()) == pytest.approx(3, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", kinds())
def test_tokens_of_any_float_dtype_train(kind, dtype):
    def other(x):
        return Rows(x.rows.to(dtype), x.side) if isinstance(x, Rows) else x.to(dtype)

    _, result = fit((other(x) for x in world(kind)), kind)
    assert math.isfinite(result.metrics["loss"])


def test_a_batch_with_nan_ends_with_its_place_its_count_and_advice():
    def loader(value, at):
        for i, x in enumerate(Planted(WORLD, 64)):
            if i == at:
                x[3, 2] = value
                x[5, :2] = value
            yield x

    for value in (math.nan, math.inf):
        message = r"batch 7 \(training step 7\) holds 3 values that are NaN or infinite, in 2 of 64"
        with pytest.raises(ValueError, match=message):
            fit(loader(value, 7), stat_rows=128)
    with pytest.raises(ValueError, match="float16 overflows above 65504"):
        fit(loader(math.nan, 0))


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_constant_tokens_end_with_a_clear_error(value):
    with pytest.raises(ValueError, match="the inputs are constant"):
        fit([torch.full((64, 12), value)] * 3)


def test_what_a_loader_may_not_bring_is_refused_by_shape_and_type():
    for batch, message in (
        (torch.randn(64, 13), r"should be float tokens \[b, 12\].*got torch.float32 \[64, 13\]"),
        (torch.ones(64, 12, dtype=torch.int64), "torch.int64"),
        (torch.randn(0, 12), r"\[0, 12\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fit([batch])
    with pytest.raises(TypeError, match="got list"):
        fit([[1.0]])
    with pytest.raises(LoaderEnded, match="after 0 batches"):
        fit([])


def test_a_run_that_diverges_says_so_and_names_the_learning_rate():
    with pytest.raises(FloatingPointError, match=r"no longer finite at step \d+.*learning rate of 1e\+30"):
        fit(Planted(WORLD, 64), "relu_l1", lr=1e30)


def test_settings_out_of_range_are_refused():
    for settings, message in (
        ({}, "one of them"),
        ({"steps": 1, "tokens": 1}, "one of them"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 5, "lr": -1.0}, "lr must be above 0"),
        ({"steps": 5, "warmup": 0.9, "decay": 0.3}, "sum to at most 1"),
        ({"steps": 5, "precision": "fp8"}, "precision is one of auto, fp32, bf16; got .fp8."),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**settings)
    config = TrainConfig(tokens=5000, lr=1e-3)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_feed_forgets_a_peek_and_replays_iterators_from_memory():
    feed = Feed(iter([torch.full((2, 3), float(i)) for i in range(4)]), 3, torch.device("cpu"))
    assert [float(x[0, 0]) for x in feed.peek(5)] == [0, 1, 2]
    assert [float(next(feed)[0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(LoaderEnded, match="after 4 batches"):
        next(feed)


def test_trackers_of_accelerate_get_the_numbers_on_request(tmp_path):
    from accelerate.tracking import GeneralTracker

    class Memory(GeneralTracker):
        name, requires_logging_directory = "memory", False

        def __init__(self):
            super().__init__()
            self.lines = []

        @property
        def tracker(self):
            return self.lines

        def store_init_configuration(self, values):
            self.lines.append(values)

        def log(self, values, step=None, **kwargs):
            self.lines.append((step, values))

    memory = Memory()
    config = TrainConfig(steps=20, batch=64, stat_rows=128, log_every=10, device="cpu")
    Trainer(sae(), config, tmp_path, log_with=memory, progress=False).fit(Planted(WORLD, 64))
    assert memory.lines[0]["steps"] == 20
    assert [step for step, _ in memory.lines[1:]] == [10, 20]
    assert {"loss", "fvu", "l0"} <= set(memory.lines[1][1])
    assert len(list(islice((tmp_path / "metrics.jsonl").open(), 9))) == 2


def test_an_iterator_that_ends_with_the_budget_still_leaves_a_threshold():
    trainer, _ = fit(islice(Planted(WORLD, 64), 30), "batch_topk")
    codes = trainer.sae.encode(Planted(WORLD, part=2).sample(3000)[0])
    assert float(codes.l0().float().mean()) == pytest.approx(3, rel=0.4)


def test_finishing_twice_does_not_write_the_last_line_twice(tmp_path):
    held_out = [Planted(WORLD, part=1).sample(500)[0]]
    lines = []
    for resume in (False, True):
        config = TrainConfig(steps=20, batch=64, stat_rows=128, log_every=10, validate_every=10, device="cpu")
        Trainer(sae("batch_topk"), config, tmp_path, progress=False).fit(Planted(WORLD, 64), held_out, resume=resume)
        lines.append((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert len(lines[0]) == len(lines[1]) == 5
    assert lines[0] == lines[1]
