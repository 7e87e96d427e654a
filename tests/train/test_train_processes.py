"""Two processes do what one does with twice the batch, fail together, and may become one and two again."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visae.sae import kinds, load_sae
from visae.sae.slices import cannot_shard
from visae.train import Processes, read_metrics
from visae.train.pieces import Pieces, write

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("visae_train_team", HERE / "team.py")
kit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kit)


@pytest.fixture(scope="module")
def start():
    """Runs a task of `team.py` in several processes; returns their exit codes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, str(HERE / "team.py")], text=True, env=environment, **pipes)

    def run(task, out, processes=2, **options):
        out.mkdir(exist_ok=True)
        request = {"task": task, "out": str(out), "processes": processes, **options}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait()


def results(out, name):
    """What both processes found; they must agree to the bit."""
    tensors = [load_file(out / f"{rank}.safetensors") for rank in (0, 1)]
    mine = {key.removeprefix(f"{name}/"): t for key, t in tensors[0].items() if key.startswith(f"{name}/")}
    assert all(torch.equal(t, tensors[1][f"{name}/{key}"]) for key, t in mine.items())
    notes = [json.loads((out / f"{rank}.json").read_text())[name] for rank in (0, 1)]
    after = notes[1].pop("history")  # the main process knows the lines from before a resume, too
    assert notes[0] == notes[1] | {"history": notes[0]["history"]}
    assert notes[0]["history"][-len(after) :] == after
    return mine, notes[0]


def check_equal(found, expected, tolerance):
    (tensors, notes), (wanted, told) = found, expected
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(tensors[name], tensor, atol=tolerance, rtol=tolerance, msg=lambda m: f"{name}: {m}")  # noqa: B023
    assert (notes["samples"], notes["steps"]) == (told["samples"], told["steps"])
    check_lines(notes["history"], told["history"], tolerance)


def check_lines(lines, others, tolerance):
    for line, other in zip(lines, others, strict=True):
        numbers, wanted = (
            {k: v for k, v in one.items() if k not in ("warnings", "rows_per_second", "kernels")}
            for one in (line, other)
        )
        assert numbers == pytest.approx(wanted, abs=tolerance, rel=tolerance)
        assert line.get("warnings") == other.get("warnings")


SETTINGS = {
    "topk in float32": {"kind": "topk", "dtype": "float32"},
    "batch_topk, validated": {"kind": "batch_topk", "validation": True, "validate_every": 3},
    "feature_choice, validated": {"kind": "feature_choice", "validation": True},
    "jumprelu, validated": {"kind": "jumprelu", "validation": True},
    "topk, tilted": {"kind": "topk", "tilt": 2.0},
    "batch_topk, annealed": {"kind": "batch_topk", "start_k": 8.0, "anneal": 0.7},
    "topk, from the median": {"kind": "topk", "centre": "median"},
    "relu_l1, resampled": {"kind": "relu_l1", "resample_every": 2, "dead_window": 65},
    "topk, best of averages": {"kind": "topk", "validation": True, "validate_every": 2, "best": True, "ema": 0.5},
    "temporal, validated": {"kind": "temporal", "validation": True},
    "topk, reference kernels": {"kind": "topk", "ops": "reference"},
    "batch_topk, a budget in tokens": {"kind": "batch_topk", "steps": None, "tokens": 500, "dead_window": None},
}
JOBS = {kind: {"kind": kind} for kind in kinds()} | SETTINGS


@pytest.fixture(scope="module")
def fitted(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted")
    assert start("fits", out, jobs=JOBS) == [0, 0], (out / "0.txt").read_text() + (out / "1.txt").read_text()
    return out


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_with_the_dictionary_of_one_with_twice_the_batch(fitted, name):
    job = JOBS[name]
    tolerance = 2e-4 if job.get("dtype") == "float32" else 1e-9
    check_equal(results(fitted, name), kit.told(*kit.fit(**job)), tolerance)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jumprelu"])
def test_gradients_are_those_of_all_rows(start, tmp_path, kind):
    assert start("grades", tmp_path, kind=kind) == [0, 0], (tmp_path / "0.txt").read_text()
    (tmp_path / "alone").mkdir()
    kit.grades(tmp_path / "alone", 0, 1, kind)
    wanted = load_file(tmp_path / "alone" / "0.safetensors")
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, gradient in wanted.items():
            assert float(gradient.abs().max()) > 0
            torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9)


def test_one_folder_is_written_by_the_main_process_alone(start, tmp_path):
    job = {"kind": "batch_topk", "checkpoint_every": 4, "validation": True}
    assert start("fits", tmp_path, jobs={"run": {**job, "out": str(tmp_path / "team")}}) == [0, 0]
    _, result = kit.fit(**job, out=tmp_path / "alone")
    names = [sorted(str(p.relative_to(out)) for p in out.rglob("*")) for out in (tmp_path / "team", tmp_path / "alone")]
    assert names[0] == names[1]
    check_lines(read_metrics(tmp_path / "team"), result.history, 1e-9)


@pytest.mark.parametrize("rows", ["store", "other loader"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(start, tmp_path, caplog, before, after, rows):
    job = {"kind": "batch_topk", "steps": None, "tokens": 64 * 12, "checkpoint_every": 4}
    if rows == "store":
        kit.stored(tmp_path / "store")
        job["store"] = str(tmp_path / "store")
    batch = 64 // before  # of each process, as it was when the run began

    def go(processes, resume):
        options = {**job, "out": str(tmp_path / "run"), "resume": resume, "batch": batch}
        if processes == 2:
            codes = start("fits", tmp_path, jobs={"run": options})
            assert codes == [0, 0], (tmp_path / "0.txt").read_text()
            return results(tmp_path, "run"), (tmp_path / "0.txt").read_text()
        caplog.clear()
        return kit.told(*kit.fit(**options)), caplog.text

    go(before, resume=False)
    for late in sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]:
        shutil.rmtree(late)  # step 8 of 12 is the newest now
    found, said = go(after, resume=True)
    check_equal(found, kit.told(*kit.fit(**job)), 1e-9)
    assert f"from {before} processes to {after}: each takes batches of {64 // after} rows instead of {batch}" in said
    assert ("rows go on exactly only if the loader splits the same batches" in said) == (rows != "store")


def test_rows_per_step_that_cannot_be_shared_are_refused(start, tmp_path):
    kit.fit("topk", out=tmp_path / "run", batch=65, checkpoint_every=4)
    job = {"kind": "topk", "out": str(tmp_path / "run"), "resume": True, "batch": 65}
    assert start("fits", tmp_path, jobs={"run": job}) == [1, 1]
    for rank in (0, 1):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "takes steps on 65 rows (1 processes with batches of 65), which 2 processes cannot share evenly" in said


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "OSError: disk on fire"),
        ("nan", "ValueError: batch 5 (training step 5) holds 1 values that are NaN or infinite"),
        ("short", "ValueError: batch 5 has 31 rows but the run counts on 32"),
    ],
)
def test_an_error_in_one_process_ends_all_and_all_say_why(start, tmp_path, fault, reason):
    assert start("fails", tmp_path, fault=fault) == [1, 1]
    assert reason in (tmp_path / "1.txt").read_text().splitlines()[-1]
    last = (tmp_path / "0.txt").read_text().splitlines()[-1]
    assert f"process 1 of this run failed, so process 0 ends, too: {reason}" in last


def test_an_error_before_training_ends_those_who_wait_for_it(start, tmp_path):
    assert start("prepares", tmp_path, patience=2) == [1, 1]
    assert "OSError: disk full" in (tmp_path / "0.txt").read_text().splitlines()[-1]
    last = (tmp_path / "1.txt").read_text().splitlines()[-1]
    assert "process 0 of this run failed, so process 1 ends, too: OSError: disk full" in last


def test_a_process_that_is_killed_ends_the_others(start, tmp_path):
    assert start("fails", tmp_path, fault="die") == [1, -9]
    assert "process 0 lost another process of this run, or waited too long for it" in (tmp_path / "0.txt").read_text()


def test_a_process_that_hangs_is_given_up(start, tmp_path):
    assert start("fails", tmp_path, fault="sleep", patience=2) == [1, 1]
    for rank in (0, 1):
        assert (
            f"process {rank} lost another process of this run, or waited too long"
            in (tmp_path / f"{rank}.txt").read_text()
        )


def can_be_split(kind):
    try:
        return not cannot_shard(kit.make_sae(kind, 12, 64))
    except ValueError:
        return not cannot_shard(kit.make_sae(kind, 12, 64, k=3))


SPLIT = {kind: {"kind": kind} for kind in kinds() if can_be_split(kind)}
SHARDED = SPLIT | {
    "topk in float32": {"kind": "topk", "dtype": "float32"},
    "topk, reference kernels": {"kind": "topk", "ops": "reference"},
    "topk, validated": {"kind": "topk", "validation": True, "validate_every": 4},
    "batch_topk, validated": {"kind": "batch_topk", "validation": True},
    "jumprelu, validated": {"kind": "jumprelu", "validation": True},
}


@pytest.fixture(scope="module")
def split(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("split")
    jobs = {name: {**job, "shard_latents": 2} for name, job in SHARDED.items()}
    assert start("fits", out, jobs=jobs) == [0, 0], (out / "0.txt").read_text() + (out / "1.txt").read_text()
    return load_file(out / "0.safetensors"), json.loads((out / "0.json").read_text())


@pytest.mark.parametrize("name", SHARDED)
def test_a_dictionary_split_by_latents_ends_as_one_on_one_process(split, name):
    job = SHARDED[name]
    found = {key.removeprefix(f"{name}/"): t for key, t in split[0].items() if key.startswith(f"{name}/")}
    tolerance = 2e-4 if job.get("dtype") == "float32" else 1e-9
    check_equal((found, split[1][name]), kit.told(*kit.fit(**job)), tolerance)


def test_rows_and_latents_are_split_at_once(start, tmp_path):
    jobs = {kind: {"kind": kind, "shard_latents": 2, "validation": True} for kind in ("topk", "batch_topk")}
    assert start("fits", tmp_path, processes=4, jobs=jobs) == [0] * 4, (tmp_path / "0.txt").read_text()
    tensors, notes = load_file(tmp_path / "0.safetensors"), json.loads((tmp_path / "0.json").read_text())
    for kind in jobs:
        found = {key.removeprefix(f"{kind}/"): t for key, t in tensors.items() if key.startswith(f"{kind}/")}
        check_equal((found, notes[kind]), kit.told(*kit.fit(kind, validation=True)), 1e-9)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_split_run_goes_on_whole_and_a_whole_one_split(start, tmp_path, before, after):
    job = {"kind": "batch_topk", "steps": 12, "checkpoint_every": 4}

    def go(shards, resume):
        options = {**job, "out": str(tmp_path / "run"), "resume": resume, "shard_latents": shards}
        if shards == 1:
            return kit.told(*kit.fit(**options))
        assert start("fits", tmp_path, jobs={"run": options}) == [0, 0], (tmp_path / "0.txt").read_text()
        tensors = load_file(tmp_path / "0.safetensors")
        notes = json.loads((tmp_path / "0.json").read_text())["run"]
        return {key.removeprefix("run/"): t for key, t in tensors.items()}, notes

    go(before, resume=False)
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    check_equal(go(after, resume=True), kit.told(*kit.fit(**job)), 1e-9)


def test_the_whole_is_saved_as_any_dictionary(start, tmp_path):
    assert start("saves", tmp_path, kind="batch_topk") == [0, 0], (tmp_path / "0.txt").read_text()
    trainer, _ = kit.fit("batch_topk", dtype="float32")
    found, x = load_sae(tmp_path / "sae"), kit.Planted(kit.WORLD, part=2).sample(300)[0]
    torch.testing.assert_close(found(x), trainer.sae(x), atol=1e-3, rtol=1e-3)
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["sae.json", "sae.safetensors"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"kind": "hierarchical_topk"}, "kind 'hierarchical_topk' cannot be split by latents (NestedK need"),
        ({"kind": "orthogonal"}, "kind 'orthogonal' cannot be split by latents (Orthogonal need"),
        ({"kind": "topk", "shard_latents": 3}, "2 processes cannot hold a dictionary in 3 shards"),
        ({"kind": "topk", "ema": 0.9}, "ema work on whole dictionaries: with shard_latents leave ema"),
        ({"kind": "topk", "width": 63}, "63 latents cannot be split evenly over 2 processes"),
        ({"kind": "topk", "apart": True}, "must see the same rows: give the loaders of 2 neighbouring processes"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(start, tmp_path, job, message):
    assert start("fits", tmp_path, jobs={"run": {"shard_latents": 2, **job}}) == [1, 1]
    assert message in (tmp_path / "0.txt").read_text()


def test_a_file_written_in_pieces_is_read_by_safetensors_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("visae.train.pieces.VALUES", 10)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    tensors = {f"a.{d}": (10 * torch.randn(7, 3)).to(d) for d in dtypes}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4), "turned": torch.randn(4, 6).T}
    parts = Pieces((7, 3), torch.float32, lambda: iter(tensors["a.torch.float32"].split(2)))
    write(tmp_path / "x.safetensors", tensors | {"parts": parts})
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found.pop("parts"), tensors["a.torch.float32"])
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_accelerate_that_starts_one_process_though_asked_for_more_is_told(monkeypatch, caplog):
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    assert Processes("cpu").size == 1
    assert "started one: on a machine without GPUs it starts more only with --multi_gpu" in caplog.text


def test_accelerate_launches_the_command_and_the_dictionary_is_that_of_one_process(tmp_path):
    """With `--multi_gpu`, by which accelerate means its launcher of several processes, on CPUs too."""
    from visae.workflows.train import train

    options = {
        "data": "world:train?n=30&objects=1",
        "latents": 48,
        "k": 6,
        "rows": 8000,
        "precision": "fp32",
        "lr": 1e-3,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [
        "-m",
        "visae",
        "train",
        str(tmp_path / "two"),
        *flags,
        "--batch",
        "128",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("topk dictionary of 48 latents") == 1  # only the main process talks
    assert done.stderr.count("activations: 1,920 rows") == 1
    train(tmp_path / "one", **options, batch=256, device="cpu", workers=0)
    found, wanted = (load_file(tmp_path / name / "sae.safetensors") for name in ("two", "one"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)
    cards = [json.loads((tmp_path / name / "sae.json").read_text()) for name in ("two", "one")]
    assert cards[0]["metrics"]["fvu"] == pytest.approx(cards[1]["metrics"]["fvu"], rel=1e-3)
    assert (cards[0]["training"]["steps"], cards[0]["data"]) == (cards[1]["training"]["steps"], cards[1]["data"])
    assert len(read_metrics(tmp_path / "two")) == len(read_metrics(tmp_path / "one"))
    names = [sorted(p.name for p in (tmp_path / name).rglob("*")) for name in ("two", "one")]
    assert names[0] == names[1]
