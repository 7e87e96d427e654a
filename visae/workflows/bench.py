"""Benchmarks: speed as a ratio to a floor that is measured in the same run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visae.codes.bench import bench_codes
from visae.json_files import write_json
from visae.model import AdaptedModel, load_model
from visae.store.bench import bench_extract, bench_store
from visae.store.bench_generate import bench_generate
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.train.bench import Size, bench_step
from visae.train.quality import Contest, Task, entrants, summary
from visae.workflows.extract import announce
from visae.workflows.run import pick_device

PIPELINES = ("diffusers", "visae")
"""Families with pipelines, whose models are never built with random weights."""


@dataclass(frozen=True)
class Measurement:
    """Numbers of a benchmark; prints as a table."""

    numbers: dict[str, Any]

    def __str__(self) -> str:
        return text_table(["measured", "value"], [[name, _short(value)] for name, value in _flat(self.numbers)])


@dataclass(frozen=True)
class Steps(Measurement):
    """Times of a step; prints one line per floor, tier and peer."""

    def __str__(self) -> str:
        floors, size = self.numbers["floors"], self.numbers["size"]
        head = ["step", "ms", "x fp32 floor", "x bf16 floor", "peak MB"]
        bare = [
            [
                f"encoder product {name}",
                f"{ms:.1f}",
                f"{ms / floors['fp32_ms']:.2f}",
                f"{ms / floors['bf16_ms']:.2f}",
                "",
            ]
            for name, ms in (("fp32", floors["fp32_ms"]), ("bf16", floors["bf16_ms"]))
        ]
        names = ["name", "ms", "over_fp32_floor", "over_bf16_floor", "peak_mb"]
        rows = [[_short(row[name]) for name in names] for row in self.numbers["rows"]]
        first = (
            f"{size['kind']}: d {size['d']}, F {size['n_latents']:,}, batch {size['batch']:,}, k {size['k']}; "
            f"{self.numbers['device']}, {self.numbers['threads']} threads; medians"
        )
        missing = [f"{name}: {why}" for name, why in self.numbers["failed"].items()]
        return "\n".join([first, "", text_table(head, bare + rows), *missing])


def _flat(numbers: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _keep(numbers: dict[str, Any], file: Path | None) -> Measurement:
    if file is not None:
        write_json(file, numbers)
    return Measurement(numbers)


def extract(
    model: str = "timm:vit_base_patch16_224",
    *,
    site: str | None = None,
    images: int | None = None,
    batch: int | None = None,
    steps: int = 20,
    repeats: int = 5,
    device: str = "cpu",
    json: Path | None = None,
) -> Measurement:
    """Compare extraction with the bare forward pass of a model, or collecting with bare generation of a pipeline.

    Of a pipeline, an edit that changes nothing is timed too.

    Example:
        visae bench extract timm:vit_small_patch16_224 --json extract.json
        visae bench extract diffusers:stabilityai/sdxl-turbo --site unet.mid_block --steps 4

    Args:
        model: model name; one that sees images is built with random weights, so no network is needed.
        site: where to read; the last but one block, or the middle one of a pipeline's denoiser if not given.
        images: per turn; 64, of a pipeline 4 if not given.
        batch: images per forward pass, or made at a time; 8, of a pipeline 4 if not given.
        steps: of a pipeline: denoising steps.
        repeats: turns of each.
        device: `auto`, `cpu`, `cuda`, ...
        json: write the numbers here too.
    """
    own = model.partition(":")[0] in PIPELINES
    adapted = load_model(model, pretrained=own, device=pick_device(device))
    if isinstance(adapted, AdaptedModel):
        return _keep(bench_extract(adapted, site or "blocks.-2", images=images or 64, batch=batch or 8,
                                   repeats=repeats), json)  # fmt: skip
    blocks = [s.name for s in adapted.sites().values() if s.kind == "output" and s.stream == "image"]
    named = site or blocks[len(blocks) // 2]
    numbers = bench_generate(
        adapted, named, images=images or 4, batch=batch or 4, steps=steps, repeats=repeats, progress=True
    )
    return _keep(numbers, json)


def store(
    *,
    rows: int = 1_000_000,
    d: int = 768,
    folder: Path | None = None,
    json: Path | None = None,
) -> Measurement:
    """Compare writing and shuffled reading of a store with a plain memory map of the same rows.

    Example:
        visae bench store --rows 500000 --json store.json

    Args:
        rows: activations.
        d: length of each.
        folder: where to write; a temporary folder if not given.
        json: write the numbers here too.
    """
    return _keep(bench_store(rows, d, folder), json)


def codes(*, json: Path | None = None) -> Measurement:
    """Time questions about single latents in a code table of a million tokens.

    Example:
        visae bench codes --json codes.json

    Args:
        json: write the numbers here too.
    """
    return _keep(bench_codes(), json)


def step(
    *,
    d: int = 768,
    latents: int = 12_288,
    batch: int = 2048,
    k: int = 32,
    kind: str = "topk",
    repeats: int = 10,
    peers: bool = True,
    device: str = "auto",
    json: Path | None = None,
) -> Steps:
    """Compare a training step of every tier of kernels, and of other libraries, with the encoder's product alone.

    Example:
        visae bench step --d 384 --latents 6144 --json step.json

    Args:
        d: length of a token.
        latents: width of the dictionary.
        batch: tokens per step.
        k: codes per token.
        kind: kind of dictionary, see `visae kinds`.
        repeats: timed steps of each.
        peers: time other libraries too, those that are installed (`pip install "visae[bench]"`); on a CPU only.
        device: `auto`, `cpu` or `cuda`.
        json: write the numbers here too.
    """
    size = Size(d, latents, batch, k, kind, pick_device(device))
    numbers = bench_step(size, repeats, progress=True, peers=peers)
    return Steps(_keep(numbers, json).numbers)


@dataclass(frozen=True)
class Quality(Measurement):
    """The planted table; prints one line per trainer."""

    def __str__(self) -> str:
        head = ["trainer", "lr", "FVU", "sd", "MMCS", "sd", "recovered", "L0", "dead", "seconds"]
        names = ["name", "lr", "fvu", "fvu_sd", "mmcs", "mmcs_sd", "recovered", "l0", "dead", "seconds"]
        cuts = [name for name in self.numbers["rows"][0] if name.startswith("fvu_at_")]
        head += [f"FVU at {name.removeprefix('fvu_at_')}" for name in cuts]
        table = text_table(head, [[row[name] for name in names + cuts] for row in self.numbers["rows"]])
        missing = [f"{name}: {why}" for name, why in self.numbers["failed"].items()]
        return "\n".join([table, *missing])


def quality(
    *,
    kinds: tuple[str, ...] = ("topk", "batch_topk", "jumprelu", "matryoshka"),
    seeds: int = 3,
    latents: int = 1024,
    k: int = 16,
    batch: int = 1024,
    steps: int = 1500,
    peers: bool = True,
    lr: float | None = None,
    tilt: float = 0.0,
    peer_lr: tuple[float, ...] = (2e-3, 4e-3),
    cuts: tuple[int, ...] = (),
    json: Path = Path("quality.json"),
) -> Quality:
    """Compare how well trainers find 512 planted features in 128 dimensions, at equal steps, batch and k.

    Every run is kept as soon as it is done: stopped at any moment, the same command goes on where it was.

    Example:
        visae bench quality --kinds topk --seeds 1 --no-peers

    Args:
        kinds: of dictionary, see `visae kinds`.
        seeds: worlds and starts; the table has means and standard deviations over them.
        latents: width of the dictionary.
        k: codes per token.
        batch: tokens per step.
        steps: of every run.
        peers: run other libraries too, those that are installed (`pip install "visae[bench]"`).
        lr: peak learning rate of visae's kinds; the rule of `visae train` if not given.
        tilt: above 0, tokens that are explained worst count more in the loss of visae's kinds.
        peer_lr: peak learning rates of the peers, one line of the table for each.
        cuts: also measure FVU where only so many codes of each token are kept, the largest.
        json: write the numbers here, and go on with the runs that are there already.
    """
    task = Task(n_latents=latents, k=k, batch=batch, steps=steps)
    found, failed = entrants(task, kinds, peer_lr if peers else (), lr, tilt)
    if wrong := [cut for cut in cuts if not 0 < cut <= latents]:
        raise ValueError(f"cuts are numbers of codes from 1 to the width {latents}, got {', '.join(map(str, wrong))}")
    contest = Contest(task, found, seeds, json, cuts)
    if contest.open:
        announce(f"quality: {len(contest.open)} runs, about {duration(contest.seconds())}, kept in {json}")
    runs = contest.run(progress=True)
    numbers = {
        "bench": "quality",
        "task": asdict(task),
        "rows": summary(runs),
        "failed": failed,
        "runs": contest.kept,
    }
    write_json(json, numbers)
    return Quality(numbers)
