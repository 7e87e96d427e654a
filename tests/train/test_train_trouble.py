"""A run warns by name: each warning is provoked by a run that gives rise to it and to no other."""

import logging

import pytest
import torch

from visae.sae import make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, read_metrics
from visae.train.trouble import TROUBLES, Notice, judge, outliers

WORLD = PlantedConfig(d=16, n_features=128, active=3)


class Shifts(Planted):
    """A stream that turns noisy on the way."""

    def sample(self, n, index=0):
        x, codes = super().sample(n, index)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        return x + (3.0 if index > 70 else 0.0) * noise, codes


class Registers(Planted):
    """One token in a hundred is thirty times as long as the others, in one direction."""

    def sample(self, n, index=0):
        x, codes = super().sample(n, index)
        x[::100] = self.features[0] * 30 * x.norm(dim=1).median()
        return x, codes


def run(kind="topk", latents=96, loader=Planted, world=WORLD, out=None, k=3, options={}, size=1.0, **changes):  # noqa: B006
    settings = {"steps": 120, "batch": 256, "stat_rows": 2048, "log_every": 5, "lr": 5e-3, "device": "cpu"}
    made = make_sae(kind, world.d, latents, k=k, **options)
    trainer = Trainer(made, TrainConfig(**{**settings, "precision": "fp32", **changes}), out, progress=False)
    held_out = Planted(world, part=1).sample(1024)[0]
    return trainer.fit(loader(world, settings["batch"]), [held_out.mean(0) + size * (held_out - held_out.mean(0))])


PROVOKED = {
    "dead": {"latents": 250, "options": {"aux": 0.0}, "world": PlantedConfig(d=16, n_features=20, active=3)},
    "dense": {"latents": 40, "k": 5},
    "l0": {"kind": "feature_choice", "latents": 256, "k": 9},
    "l0-missed": {"k": 4, "lr": 2e-2, "size": 0.01, "validate_every": 10},
    "loss-rising": {"loader": Shifts},
    "norm-outliers": {"loader": Registers, "lr": 1e-3},
    "few-rows": {"steps": 30},
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_run_in_trouble_says_so_once_in_the_log_the_metrics_and_the_result(name, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="visae.train")
    result = run(out=tmp_path, **PROVOKED[name])
    assert [warning["name"] for warning in result.warnings] == [name]
    written = [notice for line in read_metrics(tmp_path) for notice in line.get("warnings", [])]
    assert [notice["name"] for notice in written] == [name]
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}: {name}: {written[0]['found']}")
    assert TROUBLES[name].do in told
    assert "warnings" not in result.metrics


def test_rows_that_come_again_count_once_where_the_loader_tells_how_many_there_are():
    class Told(Planted):
        n_rows = 1920

    def passes(world, batch):
        return list(Planted(world).sample(1920)[0].split(240))

    for loader in (Told, passes):
        (warning,) = run(loader=loader, batch=240).warnings
        assert warning["name"] == "few-rows"
        found = "1,920 different rows, seen 15.0 times, for 96 latents are 20 for each, fewer than 100"
        assert warning["found"] == found


def test_l0_is_missed_where_it_is_more_than_3_percent_from_k_and_known_to_stay_so():
    for l0, names in ((3.88, ["l0-missed"]), (3.89, []), (4.11, []), (4.13, ["l0-missed"])):
        assert [notice.name for notice in judge(16, "held-out", l0=l0, k=4)] == names
    assert judge(16, "held-out", l0=3.0) == []
    assert run(validate_every=10).warnings == []
    found = run(kind="batch_topk", size=0.01, validate_every=10).warnings  # it is calibrated at the end
    assert "l0-missed" not in {warning["name"] for warning in found}


def test_a_healthy_run_says_nothing(caplog):
    assert run().warnings == []
    assert caplog.messages == []


def test_a_run_that_diverges_before_its_first_line_is_told_by_its_fvu():
    found = {warning["name"]: warning["found"] for warning in run(lr=1.0).warnings}
    assert "worse than the data's mean" in found["loss-rising"]


def test_levels_on_held_out_tokens_are_judged_by_the_same_rule():
    assert judge(16, "held-out", dead=0.1, dense=0.05, l0=8.0) == []
    found = judge(16, "held-out", dead=0.11, dense=0.06, l0=8.1)
    assert [notice.name for notice in found] == ["dead", "dense", "l0"]
    assert {notice.stage for notice in found} == {"held-out"}
    assert str(found[0]).startswith("dead: 11% of the latents are dead. Dead latents never fire")
    assert Notice(**found[2].to_dict()) == found[2]


def test_outliers_are_tokens_that_take_over_the_variance_and_not_a_long_tail():
    rows = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)) + 50
    assert outliers(rows) is None
    assert outliers(rows * torch.linspace(0.1, 1, 5000)[:, None]) is None
    rows[:25] = 50 + 100 * torch.nn.functional.normalize(rows[:25] - 50, dim=1)
    found = outliers(rows)
    assert found is not None
    assert found.found.startswith("0.50% of the tokens lie 5 times farther")
