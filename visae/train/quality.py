"""How well trainers find planted features: every kind and every peer on the same data, steps, batch and k."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae import __version__
from visae.json_files import write_json
from visae.ops import fast_precision
from visae.sae import Codes, Dictionary, Moments, make_sae
from visae.train.bench import Size, bare_step
from visae.train.config import TrainConfig, default_lr
from visae.train.peers import Coder, Peer, Plan
from visae.train.planted import Planted, PlantedConfig, matches
from visae.train.rivals import installed
from visae.train.trainer import Trainer
from visae.train.trouble import LOG

HELD_OUT = (8, 4096)
"""Batches and rows of each that trainers are measured on."""
MEASURED = ("fvu", "l0", "dead", "mmcs", "recovered", "seconds")


@dataclass(frozen=True)
class Task:
    """A planted world and a budget; the same for all.

    `n_features` unit features in d dimensions, about `active` of them in a sample, frequencies falling as rank^-0.7,
    coefficients N(1, 1/2) of at least 0.1, an offset of 0.3 and noise of 0.02 per dimension. Each seed has a world and
    weights of its own.
    """

    d: int = 128
    n_features: int = 512
    active: int = 16
    n_latents: int = 1024
    k: int = 16
    batch: int = 1024
    steps: int = 1500

    def data(self, seed: int, held_out: bool = False) -> Planted:
        """Batches of the world of a seed, to train on or to measure on."""
        world = PlantedConfig(self.d, self.n_features, self.active, zipf=0.7, seed=1000 + seed)
        return Planted(world, self.batch, part=int(held_out), sae_seed=seed)

    def size(self, kind: str) -> Size:
        """Of a step."""
        return Size(self.d, self.n_latents, self.batch, self.k, kind)


@dataclass(frozen=True)
class Entrant:
    """A trainer with its settings.

    Attributes:
        name: library and kind.
        what: `visae` or `peer`.
        version: of the library.
        lr: peak learning rate.
        train: trains on a task from a seed.
        step: takes one step on a task; for the estimate.
    """

    name: str
    what: str
    version: str
    lr: float
    train: Callable[[Task, int], Coder]
    step: Callable[[Task], Callable[[Tensor], object]]

    def key(self, seed: int) -> dict[str, Any]:
        """What tells one run from another."""
        return {"name": self.name, "what": self.what, "version": self.version, "lr": self.lr, "seed": seed}


def own(kind: str, task: Task, lr: float | None = None, tilt: float = 0.0) -> Entrant:
    """A kind of visae's, as `visae train` would train it; with a peak learning rate of its own rule, or a given one."""

    def make() -> Dictionary:
        return make_sae(kind, task.d, task.n_latents, **task.size(kind).options)

    if needs := make().needs:
        raise ValueError(
            f"kind {kind!r} needs {', '.join(needs)} beside tokens, which planted samples do not have here"
        )

    def train(task: Task, seed: int) -> Coder:
        sae = make()
        config = TrainConfig(steps=task.steps, batch=task.batch, seed=seed, device="cpu", lr=lr, tilt=tilt)
        LOG.disabled = True  # what it would warn of is in the table
        try:
            Trainer(sae, config, progress=False).fit(task.data(seed))
        finally:
            LOG.disabled = False
        return Coder(
            lambda x: sae.encode(x).to_dense(), lambda z: sae.decode(Codes.from_dense(z)), sae.directions().detach()
        )

    def step(task: Task) -> Callable[[Tensor], object]:
        taken = bare_step(task.size(kind), "auto", fast_precision(), [task.data(0).sample(task.batch)[0]])[1]
        return lambda _x: taken()

    rate = lr or default_lr(task.n_latents, task.steps)
    name = f"visae {kind}, tilt {tilt:g}" if tilt else f"visae {kind}"
    return Entrant(name, "visae", __version__, rate, train, step)


def foreign(peer: Peer, kind: str, lr: float) -> Entrant:
    """A peer's kind: 100 of 1500 steps of warm-up, decay over the last fifth, dead after 200 of 1500 steps."""

    def plan(task: Task, seed: int) -> Plan:
        part = task.steps / 1500
        return Plan(lr, task.steps, max(1, int(100 * part)), task.steps // 5, max(1, int(200 * part)), seed=seed)

    def train(task: Task, seed: int) -> Coder:
        learner, data = peer.learner(task.size(kind), plan(task, seed)), task.data(seed)
        for index in range(task.steps):
            learner.step(data.sample(task.batch, index)[0])
        return learner.coder()

    def step(task: Task) -> Callable[[Tensor], object]:
        return peer.learner(task.size(kind), plan(task, 0)).step

    return Entrant(f"{peer.name} {kind}", "peer", peer.version, lr, train, step)


def entrants(
    task: Task, kinds: Sequence[str], rates: Sequence[float], lr: float | None = None, tilt: float = 0.0
) -> tuple[list[Entrant], dict[str, str]]:
    """Trainers to compare, and why some peers are not among them.

    Args:
        task: the task.
        kinds: of dictionary, in visae's names.
        rates: peak learning rates of the peers; none leaves the peers out.
        lr: peak learning rate of visae's kinds; None follows the rule.
        tilt: of the loss of visae's kinds, see `TrainConfig`.
    """
    found = [own(kind, task, lr, tilt) for kind in kinds]
    peers, failed = installed() if rates else ({}, {})
    for kind in kinds:
        found += [foreign(peer, kind, lr) for peer in peers.values() if kind in peer.kinds for lr in rates]
    return found, failed


@torch.no_grad()
def judge(coder: Coder, task: Task, seed: int, cuts: Sequence[int] = ()) -> dict[str, float]:
    """FVU, L0 and share of latents that never fire on held-out samples; MMCS and share of the features recovered.

    With cuts also FVU where only so many codes of each token, the largest, are kept (`fvu_at_4` for a cut of 4).
    """
    data = task.data(seed, held_out=True)
    moments, error, codes = Moments(task.d), 0.0, 0
    cut_error = dict.fromkeys(cuts, 0.0)
    fired = torch.zeros(task.n_latents, dtype=torch.bool)
    for i in range(HELD_OUT[0]):
        x = data.sample(HELD_OUT[1], i)[0]
        z = coder.encode(x)
        error += float((x.double() - coder.decode(z).double()).square().sum())
        for cut in cuts:
            kept = z * torch.zeros_like(z).scatter(1, z.abs().topk(cut, dim=1).indices, 1.0)
            cut_error[cut] += float((x.double() - coder.decode(kept).double()).square().sum())
        codes += int((z != 0).sum())
        fired |= (z != 0).any(0)
        moments.add(x)
    return {
        "fvu": error / moments.total,
        "l0": codes / moments.n,
        "dead": 1 - float(fired.float().mean()),
        **{name: value for name, value in matches(coder.directions, data.features).items() if name in MEASURED},
        **{f"fvu_at_{cut}": value / moments.total for cut, value in cut_error.items()},
    }


class Contest:
    """Runs every trainer on every seed, and keeps what is done.

    Args:
        task: the task.
        found: the trainers.
        seeds: 0 to `seeds - 1`.
        file: keeps each run as soon as it is done; runs found there are not run again. None keeps nothing.
        cuts: numbers of codes per token at which FVU is measured too, see `judge`.

    Raises:
        ValueError: if the file holds another task, or is no file of this benchmark.
    """

    def __init__(
        self,
        task: Task,
        found: Sequence[Entrant],
        seeds: int,
        file: Path | None = None,
        cuts: Sequence[int] = (),
    ):
        self.task, self.found, self.seeds, self.file, self.cuts = task, list(found), seeds, file, tuple(cuts)
        self.kept = [] if file is None or not file.exists() else self._read(file)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        try:
            numbers = json.loads(file.read_text(encoding="utf8"))
            task, runs = numbers["task"], numbers["runs"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a file of `visae bench quality` ({error!r}): name another") from error
        if task != asdict(self.task):
            raise ValueError(
                f"{file} holds runs of another task ({task}; asked for {asdict(self.task)}): name another file"
            )
        return list(runs)

    def _done(self, entrant: Entrant, seed: int) -> dict[str, Any] | None:
        key, wanted = entrant.key(seed), {f"fvu_at_{cut}" for cut in self.cuts}
        fits = (run for run in self.kept if all(run.get(name) == value for name, value in key.items()))
        return next((run for run in fits if wanted <= run.keys()), None)

    @property
    def open(self) -> list[tuple[Entrant, int]]:
        """What is left to run, seed after seed."""
        return [(e, seed) for seed in range(self.seeds) for e in self.found if self._done(e, seed) is None]

    def seconds(self) -> float:
        """What is left in seconds, from a few timed steps of each trainer."""
        cost = {}
        for entrant in dict.fromkeys(entrant for entrant, _ in self.open):
            step, x = entrant.step(self.task), self.task.data(0).sample(self.task.batch)[0]
            step(x)
            started = time.perf_counter()
            for _ in range(3):
                step(x)
            cost[entrant] = (time.perf_counter() - started) / 3 * self.task.steps
        return sum(cost[entrant] for entrant, _ in self.open)

    def run(self, progress: bool = False) -> list[dict[str, Any]]:
        """All runs, those that were kept and those done now: the trainer, what was measured, seconds."""
        for entrant, seed in tqdm(self.open, desc="bench quality", unit="run", disable=not progress):
            started = time.perf_counter()
            coder = entrant.train(self.task, seed)
            seconds = round(time.perf_counter() - started, 1)
            values = {name: round(value, 5) for name, value in judge(coder, self.task, seed, self.cuts).items()}
            self.kept.append({**entrant.key(seed), **values, "seconds": seconds})
            self._write()
        return list(self._runs())

    def _runs(self) -> Iterator[dict[str, Any]]:
        for entrant in self.found:
            yield from (run for seed in range(self.seeds) if (run := self._done(entrant, seed)) is not None)

    def _write(self) -> None:
        if self.file is not None:
            write_json(self.file, {"bench": "quality", "task": asdict(self.task), "runs": self.kept})


def summary(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, one row per trainer; FVU and MMCS also with their standard deviation over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["name"], run["what"], run["version"], run["lr"]), []).append(run)
    rows = []
    for (name, what, made, lr), mine in groups.items():
        row: dict[str, Any] = {"name": name, "what": what, "version": made, "lr": lr, "seeds": len(mine)}
        for field in (*MEASURED, *(name for name in mine[0] if name.startswith("fvu_at_"))):
            row[field] = statistics.fmean(run[field] for run in mine)
            if field in ("fvu", "mmcs"):
                row[f"{field}_sd"] = statistics.stdev(run[field] for run in mine) if len(mine) > 1 else 0.0
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
    return rows
