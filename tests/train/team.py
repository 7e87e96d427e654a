"""Processes for `test_train_processes.py`: a server that has imported everything and forks as many as are asked for."""

import json
import os
import signal
import socket
import sys
import time
import traceback
from itertools import islice
from pathlib import Path

import torch

torch.set_num_threads(1)

import accelerate  # noqa: F401 (what training needs is imported once, before forking)
import scipy.sparse  # noqa: F401
import torch._dynamo
import torch.distributed.tensor
from safetensors.torch import save_file

from visae.sae import kind_options, make_sae, save_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, rows_per_step
from visae.train.pieces import Pieces, in_order
from visae.train.processes import Processes

WORLD = PlantedConfig(d=12, n_features=24, active=3)
CONFIG = {"steps": 8, "stat_rows": 256, "log_every": 4, "dead_window": 192, "calibration_rows": 512, "device": "cpu"}
ROWS = 64


def stored(folder):
    """A store of 240 planted rows, in four shards."""
    from visae.store import Store
    from visae.store.bench import _made_up_meta, _write_store

    if not folder.exists():
        rows = Planted(WORLD).sample(240)[0].view(1, 60, 4, 12)
        _write_store(folder, _made_up_meta(60, 4, 12), rows.numpy().astype("float16"))
    return Store(folder)


class Part(Planted):
    """The share of one of several processes of batches of 64; `fault` happens at the sixth batch of the last one."""

    def __init__(self, rank=0, processes=1, fault="", needs=()):
        super().__init__(WORLD, ROWS, needs=needs)
        self.rank, self.processes, self.fault = rank, processes, fault

    def __iter__(self):
        for x in super().__iter__():
            own = x[self.rank * ROWS // self.processes : (self.rank + 1) * ROWS // self.processes]
            if self.fault and self.rank == self.processes - 1 and self.drawn == 6:
                if self.fault == "raise":
                    raise OSError("disk on fire")
                if self.fault == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.fault == "sleep":
                    time.sleep(6)
                if self.fault == "nan":
                    own[3, 2] = torch.nan
                if self.fault == "short":
                    own = own[:-1]
            yield own


def fit(
    kind, rank=0, processes=1, out=None, dtype="float64", validation=False, resume=False, fault="", width=64,
    apart=False, store=None, **changes
):  # fmt: skip
    """Trains a small dictionary on this process's share."""
    sae = make_sae(kind, 12, width, **({"k": 3} if "k" in kind_options(kind) else {}))
    shards = changes.get("shard_latents", 1)
    if not apart:
        rank, processes = rank // shards, max(1, processes // shards)
    config = TrainConfig(**{**CONFIG, "batch": ROWS // processes, "precision": "fp32", **changes})
    held_out = [Planted(WORLD, part=1, needs=sae.needs).rows(n, n) for n in (65, 40)] if validation else None
    trainer = Trainer(sae.to(getattr(torch, dtype)), config, out, progress=False)
    loader = Part(rank, processes, fault, sae.needs)
    if store is not None:
        rows = rows_per_step(Path(out)) or ROWS if out else ROWS
        part = {"rank": rank, "processes": processes, "buffer_bytes": 1000}
        loader = stored(Path(store)).loader(rows // processes, seed=1, **part)
    return trainer, trainer.fit(loader, held_out, resume=resume)


def told(trainer, result):
    """Tensors and numbers that must not depend on the number of processes."""
    tensors = {f"sae.{name}": t for name, t in trainer.sae.state_dict().items()}
    tensors |= {f"adam.{name}": t for name, t in trainer.optimiser.state_dict().items()}
    found, tensors = trainer.shards.collect(tensors), {}
    for name in in_order(found):
        whole = found[name]
        tensors[name] = torch.cat(list(whole.rows())) if isinstance(whole, Pieces) else whole
    lines = [{k: v for k, v in line.items() if k != "rows_per_second"} for line in result.history]
    return tensors, {"history": lines, "samples": result.samples, "steps": result.steps}


def fits(out, rank, processes, jobs):
    """Several trainings one after the other; what they found goes into files."""
    tensors, notes = {}, {}
    for name, job in jobs.items():
        found, notes[name] = told(*fit(rank=rank, processes=processes, **job))
        tensors |= {f"{name}/{key}": t.contiguous() for key, t in found.items()}
    save_file(tensors, Path(out) / f"{rank}.safetensors")
    (Path(out) / f"{rank}.json").write_text(json.dumps(notes))


def saves(out, rank, processes, kind):
    """A dictionary in two slices, saved by the main process."""
    trainer, _ = fit(kind, rank, processes, dtype="float32", shard_latents=2)
    if trainer.processes.main:
        save_sae(trainer.shards.whole, Path(out) / "sae")


def fails(out, rank, processes, fault, patience=60):
    """A training in which something happens to the last process."""
    del out
    Processes("cpu", patience=patience)
    fit("batch_topk", rank, processes, fault=fault, steps=20)


def prepares(out, rank, processes, patience):
    """Something slow that the main process does first, and fails at; the others are patient with it."""
    del out, rank
    team = Processes("cpu", patience=patience)
    with team.together(), team.main_first():
        assert team.main, "the others came in first"
        time.sleep(patience + 1)
        raise OSError("disk full")


def grades(out, rank, processes, kind):
    """The gradients of one step."""
    from visae.ops import sharing

    sae = make_sae(kind, 12, 64, **({"k": 3} if "k" in kind_options(kind) else {})).double()
    config = TrainConfig(steps=9, stat_rows=256, batch=ROWS // processes, device="cpu", precision="fp32")
    trainer = Trainer(sae, config, progress=False)
    run = trainer.run(trainer.feed(Part(rank, processes)))
    next(run)
    with sharing(trainer.processes.share):
        trainer.grade(next(islice(Part(rank, processes), 3, 4)))
    save_file({name: p.grad for name, p in sae.named_parameters()}, Path(out) / f"{rank}.safetensors")


def serve():
    """Reads requests, one line of JSON each; answers with the exit codes."""
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [_start(rank, port, **request) for rank in range(request["processes"])]
        print(json.dumps([_ended(pid, time.monotonic() + 90) for pid in pids]), flush=True)


def _start(rank, port, out, processes, task, **options):
    if pid := os.fork():
        return pid
    code = 1
    try:
        said = os.open(Path(out) / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
        globals()[task](out, rank, processes, **options)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(pid, deadline):
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


if __name__ == "__main__":
    serve()
