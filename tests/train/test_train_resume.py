"""A run that is stopped, or killed, and resumed ends with the very same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from visae.sae import kind_options, kinds, make_sae
from visae.train import LoaderEnded, Planted, PlantedConfig, TrainConfig, Trainer, checkpoint, read_metrics

WORLD = PlantedConfig(d=12, n_features=24, active=3)
CONFIG = {"batch": 64, "stat_rows": 256, "log_every": 3, "dead_window": 128, "calibration_rows": 256, "device": "cpu"}


def sae(kind, **options):
    return make_sae(kind, 12, 64, **({"k": 3} if "k" in kind_options(kind) else {}), **options)


class Stop(Exception):
    pass


class StopsAfter:
    """A loader that breaks off in the middle of a step, as a crash would."""

    def __init__(self, loader, batches):
        self.loader, self.batches = loader, batches

    def __iter__(self):
        for i, x in enumerate(self.loader):
            if i == self.batches:
                raise Stop
            yield x

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


def state_of(folder):
    return checkpoint.load(checkpoint.listing(folder / "checkpoints")[-1])


def without_speed(folder):
    return [{k: v for k, v in line.items() if k != "rows_per_second"} for line in read_metrics(folder)]


def fit(kind, folder, loader, resume=False, steps=20, held_out=None, options={}, **changes):  # noqa: B006
    config = TrainConfig(**{"steps": steps, "checkpoint_every": 10, **CONFIG, **changes})
    trainer = Trainer(sae(kind, **options), config, folder, progress=False)
    return trainer, trainer.fit(loader, held_out, resume=resume)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("kind", kinds())
def test_ten_steps_a_crash_and_ten_more_equal_twenty_bit_for_bit(kind, precision, tmp_path):
    world = partial(Planted, WORLD, 64, needs=sae(kind).needs)
    whole, result = fit(kind, tmp_path / "whole", world(), precision=precision)
    with pytest.raises(Stop):  # 4 batches for the statistics, 10 steps, a checkpoint, 5 steps, a crash
        fit(kind, tmp_path / "cut", StopsAfter(world(), 15), precision=precision)
    assert len(read_metrics(tmp_path / "cut")) == 5
    torch.manual_seed(99)  # the state of the caller must not matter
    resumed, again = fit(kind, tmp_path / "cut", world(), resume=True, precision=precision)
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name
    a, b = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
    assert a.notes == b.notes
    assert without_speed(tmp_path / "whole") == without_speed(tmp_path / "cut")
    assert (result.steps, result.samples) == (again.steps, again.samples) == (20, 1280)


SCHEMES = {
    "k annealed": ("batch_topk", {"start_k": 9, "anneal": 0.8, "anneal_shape": "exponential"}),
    "penalty rises": ("jumprelu", {"sparsity_warmup": 0.9, "centre": "median"}),
    "tilted": ("matryoshka", {"tilt": 2.0, "start": "random"}),
    "averaged": ("gated", {"ema": 0.9}),
    "resampled": ("relu_l1", {"resample_every": 4, "dead_window": 64, "sparsity_warmup": 0.0}),
    "best": ("topk", {"best": True, "patience": 3, "validate_every": 2, "ema": 0.5, "lr": 3e-3}),
    "warned": ("topk", {"checkpoint_every": 2, "log_every": 5, "lr": 3.0}),
    "stopped early": ("topk", {"patience": 1, "validate_every": 4, "best": True, "lr": 3.0}),
}
HELD_OUT = [Planted(WORLD, part=1).sample(200)[0]]


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_resumes_bit_for_bit_after_a_crash_at_any_step(name, tmp_path):
    kind, settings = SCHEMES[name]
    options = {"l1": 5.0} if name == "resampled" else {}
    settings = {"checkpoint_every": 3, **settings}
    whole, result = fit(kind, tmp_path / "whole", Planted(WORLD, 64), held_out=HELD_OUT, options=options, **settings)
    assert (result.steps < 20) == (name == "stopped early")
    if name == "resampled":
        assert sum(line.get("resampled", 0) for line in result.history) > 0
    for batches in (5, 8, 11, 16, 21):
        folder = tmp_path / str(batches)
        with suppress(Stop):
            fit(kind, folder, StopsAfter(Planted(WORLD, 64), batches), held_out=HELD_OUT, options=options, **settings)
        again, ended = fit(
            kind, folder, Planted(WORLD, 64), resume=True, held_out=HELD_OUT, options=options, **settings
        )
        same(whole, again, tmp_path / "whole", folder)
        assert (ended.steps, ended.metrics["val_fvu"]) == (result.steps, result.metrics["val_fvu"])


def same(a, b, first, second):
    assert all(torch.equal(t, b.sae.state_dict()[n]) for n, t in a.sae.state_dict().items())
    one, two = state_of(first), state_of(second)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[n], two.tensors[n]) for n in one.tensors)
    assert one.notes == two.notes
    assert without_speed(first) == without_speed(second)
    assert [p.name for p in sorted((first / "checkpoints").iterdir())] == [
        p.name for p in sorted((second / "checkpoints").iterdir())
    ]


@pytest.mark.parametrize("rename", range(1, 13, 2))
def test_a_kill_at_any_rename_leaves_a_run_that_resumes_to_the_same_bits(rename, tmp_path, monkeypatch):
    settings = {"checkpoint_every": 4, "keep": 1, "validate_every": 2, "best": True}
    whole, _ = fit("topk", tmp_path / "whole", Planted(WORLD, 64), held_out=HELD_OUT, **settings)
    left, replace = [rename], os.replace

    def killed(*paths):
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        replace(*paths)

    for _ in range(2):  # the second time a part of the run is there already
        left[0] = rename
        monkeypatch.setattr(os, "replace", killed)
        with suppress(Stop):
            fit("topk", tmp_path / "cut", Planted(WORLD, 64), resume=True, held_out=HELD_OUT, **settings)
        monkeypatch.setattr(os, "replace", replace)
    again, _ = fit("topk", tmp_path / "cut", Planted(WORLD, 64), resume=True, held_out=HELD_OUT, **settings)
    same(whole, again, tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "make",
    [lambda: islice(Planted(WORLD, 64), 40), lambda: list(islice(Planted(WORLD, 64), 7))],
    ids=["iterator", "list, several epochs"],
)
def test_loaders_without_a_state_are_resumed_by_drawing_what_was_used(make, tmp_path):
    whole, _ = fit("topk", tmp_path / "whole", make())
    with pytest.raises(Stop):
        fit("topk", tmp_path / "cut", islice(Plain(make(), 18), 99))
    resumed, _ = fit("topk", tmp_path / "cut", make(), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.sae.parameters(), resumed.sae.parameters(), strict=True))


class Plain:
    def __init__(self, loader, batches):
        self.loader, self.batches = loader, batches

    def __iter__(self):
        drawn = 0
        while True:
            for x in self.loader:
                if drawn == self.batches:
                    raise Stop
                drawn += 1
                yield x


SCRIPT = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from visae.sae import make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

class Slow(Planted):
    def __iter__(self):
        for x in super().__iter__():
            time.sleep(0.03)
            yield x

config = TrainConfig(steps=150, checkpoint_every=10, batch=64, stat_rows=256, log_every=3, dead_window=128,
                     calibration_rows=256, device="cpu", precision="fp32")
sae = make_sae("topk", 12, 64, k=3)
Trainer(sae, config, Path(sys.argv[1]), progress=False).fit(Slow(PlantedConfig(d=12, n_features=24, active=3), 64))
"""


def test_a_process_killed_outright_leaves_a_run_that_resumes_to_the_same_bits(tmp_path):
    out = tmp_path / "killed"
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=env)
    try:
        deadline = time.monotonic() + 60
        while len(checkpoint.listing(out / "checkpoints")) < 2:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = state_of(out).step
    assert 20 <= reached < 150
    common = {"steps": 150, "precision": "fp32"}
    resumed, _ = fit("topk", out, Planted(WORLD, 64), resume=True, **common)
    whole, _ = fit("topk", tmp_path / "whole", Planted(WORLD, 64), **common)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.sae.state_dict().values(), resumed.sae.state_dict().values(), strict=True)
    )
    assert without_speed(out) == without_speed(tmp_path / "whole")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    fit("topk", tmp_path, Planted(WORLD, 64))
    with pytest.raises(ValueError, match="holds a run already: pass resume=True"):
        fit("topk", tmp_path, Planted(WORLD, 64))


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    fit("topk", tmp_path, Planted(WORLD, 64))
    with pytest.raises(ValueError, match="steps: 20 then, 30 now"):
        fit("topk", tmp_path, Planted(WORLD, 64), resume=True, steps=30)
    with pytest.raises(ValueError, match="kind: 'topk' then, 'relu_l1' now"):
        fit("relu_l1", tmp_path, Planted(WORLD, 64), resume=True)
    _, result = fit("topk", tmp_path, Planted(WORLD, 64), resume=True, log_every=1)
    assert result.steps == 20


def test_only_the_newest_checkpoints_are_kept_and_damage_is_named(tmp_path):
    fit("topk", tmp_path, Planted(WORLD, 64), steps=40)
    found = checkpoint.listing(tmp_path / "checkpoints")
    assert [p.name for p in found] == ["step-000000030", "step-000000040"]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {p.name for p in found}
    file = found[-1] / checkpoint.STATE
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-000000040/state\.safetensors is missing or damaged"):
        fit("topk", tmp_path, Planted(WORLD, 64), resume=True, steps=40)


def test_a_loader_that_ends_early_says_how_far_it_came_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(LoaderEnded, match=r"ended after 13 of 20 steps; a checkpoint of them"):
        fit("topk", tmp_path, islice(Planted(WORLD, 64), 13))
    assert state_of(tmp_path).step == 13

    def killed(source, target):
        if "step-" in str(target):
            raise Stop
        os.rename(source, target)

    with monkeypatch.context() as patched, suppress(Stop, LoaderEnded):
        patched.setattr(os, "replace", killed)  # the same checkpoint again must not cost the one that is there
        fit("topk", tmp_path, islice(Planted(WORLD, 64), 13), resume=True, keep=1)
    assert state_of(tmp_path).step == 13
    _, result = fit("topk", tmp_path, Planted(WORLD, 64), resume=True)
    assert result.steps == 20
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 20
