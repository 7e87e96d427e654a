"""The quality benchmark: its measures on dictionaries that are known, its means, and that no finished run is lost."""

import json
import math

import pytest
import torch

from visae.train import quality
from visae.train.peers import Coder
from visae.train.quality import Contest, Entrant, Task, entrants, judge, summary
from visae.workflows import bench

TINY = Task(d=16, n_features=24, active=3, n_latents=32, k=3, batch=64, steps=30)


def truth(task: Task, seed: int) -> Coder:
    """Knows the features and codes by least squares on those that are there: the best that any dictionary can be."""
    world = task.data(seed)
    lookup = {}
    for i in range(quality.HELD_OUT[0]):
        x, codes = task.data(seed, held_out=True).sample(quality.HELD_OUT[1], i)
        lookup[float(x.sum())] = torch.nn.functional.pad(codes, (0, task.n_latents - task.n_features))
    atoms = torch.nn.functional.pad(world.features, (0, 0, 0, task.n_latents - task.n_features))
    return Coder(lambda x: lookup[float(x.sum())], lambda z: z @ atoms + world.offset, atoms)


def test_a_dictionary_of_the_true_features_gets_full_marks():
    marks = judge(truth(TINY, 3), TINY, 3)
    world = TINY.data(3)
    x, codes = world.sample(20_000, 77)
    assert marks["mmcs"] == pytest.approx(1.0, abs=1e-6)
    assert marks["recovered"] == 1.0
    assert marks["dead"] == pytest.approx(1 - 24 / 32)
    assert marks["l0"] == pytest.approx(float((codes != 0).sum(1).float().mean()), rel=0.02)
    noise = world.config.noise**2 * TINY.d
    assert marks["fvu"] == pytest.approx(noise / float((x - x.mean(0)).square().sum(1).mean()), rel=0.03)


def test_a_dictionary_that_codes_nothing_explains_nothing():
    mean = TINY.data(0).sample(50_000, 5)[0].mean(0)
    nothing = Coder(lambda x: torch.zeros(len(x), 32), lambda z: mean.expand(len(z), 16), torch.randn(32, 16))
    marks = judge(nothing, TINY, 0)
    assert marks["fvu"] == pytest.approx(1.0, abs=1e-3)
    assert (marks["l0"], marks["dead"]) == (0.0, 1.0)


def test_cut_codes_are_the_largest_of_each_token():
    atoms = torch.nn.functional.pad(torch.eye(16), (0, 0, 0, 16))
    everything = Coder(lambda x: torch.nn.functional.pad(x, (0, 16)), lambda z: z @ atoms, atoms)
    marks = judge(everything, TINY, 2, cuts=(3, 16))
    x = torch.cat([TINY.data(2, held_out=True).sample(quality.HELD_OUT[1], i)[0] for i in range(quality.HELD_OUT[0])])
    lost = x.square().sort(dim=1).values[:, :13].double().sum()
    assert marks["fvu_at_16"] == pytest.approx(marks["fvu"], abs=1e-9)
    assert marks["fvu_at_3"] == pytest.approx(float(lost / (x - x.mean(0)).double().square().sum()), rel=1e-5)


def test_held_out_samples_are_of_the_same_world_but_others():
    x, held = TINY.data(1).sample(8)[0], TINY.data(1, held_out=True).sample(8)[0]
    assert torch.equal(TINY.data(1).features, TINY.data(1, held_out=True).features)
    assert not torch.equal(x, held)
    assert not torch.equal(TINY.data(1).features, TINY.data(2).features)


def test_the_table_has_means_and_deviations_over_seeds():
    shared = {"name": "a", "what": "visae", "version": "1", "lr": 0.1}
    runs = [{**shared, "seed": s, **dict.fromkeys(quality.MEASURED, v)} for s, v in enumerate((0.1, 0.2, 0.6))]
    (row,) = summary([*runs])
    assert row["seeds"] == 3
    assert row["l0"] == pytest.approx(0.3)
    assert row["fvu_sd"] == row["mmcs_sd"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2), abs=1e-5)
    assert [r["lr"] for r in summary([*runs, {**runs[0], "lr": 0.2}])] == [0.1, 0.2]


def test_a_contest_that_is_stopped_goes_on_where_it_was(tmp_path):
    file, done = tmp_path / "quality.json", []

    def train(task, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(seed)
        return truth(task, seed)

    found = [Entrant(name, "visae", "1", 1e-3, train, lambda _t: lambda _x: None) for name in ("a", "b")]
    with pytest.raises(KeyboardInterrupt):
        Contest(TINY, found, 2, file).run()
    assert done == [0, 0, 1]
    again = Contest(TINY, found, 2, file)
    assert [(entrant.name, seed) for entrant, seed in again.open] == [("b", 1)]
    assert again.seconds() >= 0
    done.clear()
    assert [(run["name"], run["seed"]) for run in again.run()] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert done == [1]
    with pytest.raises(ValueError, match="another task"):
        Contest(Task(), found, 2, file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="name another"):
        Contest(TINY, found, 2, file)


def test_the_command_measures_the_kinds_that_are_asked_for(tmp_path):
    file = tmp_path / "q.json"
    options = {"kinds": ("topk", "relu_l1"), "seeds": 1, "latents": 64, "batch": 128, "steps": 40, "json": file}
    shown = str(bench.quality(**options, peers=False))
    numbers = json.loads(file.read_text())
    assert [row["name"] for row in numbers["rows"]] == ["visae topk", "visae relu_l1"]
    assert numbers["task"]["steps"] == 40
    for row in numbers["rows"]:
        assert 0 < row["fvu"] < 1.5
        assert row["name"] in shown
    before = numbers["runs"]
    bench.quality(**options, peers=False)
    assert json.loads(file.read_text())["runs"] == before
    assert "FVU at 2" in str(bench.quality(**options, peers=False, cuts=(2,)))
    tilted = bench.quality(**options | {"kinds": ("topk",), "json": tmp_path / "tilted.json"}, peers=False, tilt=3.0)
    assert [row["name"] for row in tilted.numbers["rows"]] == ["visae topk, tilt 3"]
    assert tilted.numbers["rows"][0]["fvu"] != numbers["rows"][0]["fvu"]
    with pytest.raises(ValueError, match="from 1 to the width 64, got 0"):
        bench.quality(**options, peers=False, cuts=(0,))


def test_a_kind_that_needs_more_than_tokens_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="kind 'temporal' needs"):
        entrants(TINY, ["topk", "temporal"], ())


def test_peers_are_left_out_or_entered_once_for_each_rate():
    assert [e.name for e in entrants(TINY, ["topk"], ())[0]] == ["visae topk"]
    found, failed = entrants(TINY, ["topk"], (1e-3, 2e-3))
    foreign = [(e.name, e.lr) for e in found if e.what == "peer"]
    assert len(foreign) == 2 * (4 - len(failed))
