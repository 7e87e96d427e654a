"""Train many dictionaries from one stream of activations, and compare them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from visae.data import load_data
from visae.data.sample import ImageData
from visae.evaluate import Evaluation
from visae.model import AdaptedModel, load_model
from visae.sae import Dictionary, load_sae, make_sae, save_sae
from visae.store import StoreMeta
from visae.store.errors import human
from visae.store.estimate import duration
from visae.tokens import TokenPolicy
from visae.train import Member, Suite, TrainConfig
from visae.train.stacking import CELLS
from visae.workflows.estimate import TrainingEstimate, training_estimate
from visae.workflows.extract import announce
from visae.workflows.run import Run, pick_device
from visae.workflows.site_rows import SiteRows
from visae.workflows.suite_report import Row, SuiteReport, compare
from visae.workflows.sweep import Setting, expand
from visae.workflows.train import begin, describe, finished, held_out_images, plain


def suite(
    out: Path = Path("runs/suite"),
    *,
    model: str = "visae:tiny-clip",
    site: tuple[str, ...] = ("blocks.-2",),
    data: str = "world:train?n=4000&objects=1",
    validation: str | None = None,
    stream: bool = False,
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: tuple[str, ...] = ("topk",),
    latents: tuple[int, ...] = (),
    expansion: tuple[float, ...] = (8,),
    k: tuple[float, ...] = (32,),
    options: dict[str, tuple[float, ...]] = {},  # noqa: B006 (read only)
    normaliser: tuple[str, ...] = ("scale",),
    lr: tuple[float, ...] = (),
    seed: tuple[int, ...] = (0,),
    seeds: int = 1,
    cases: tuple[dict[str, Any], ...] = (),
    rows: int | None = None,
    passes: float = 8,
    batch: int = 4096,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    image_batch: int = 64,
    workers: int = 2,
    pretrained: bool = True,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> SuiteReport:
    """Train many dictionaries from one stream of activations, and compare them.

    Every list is crossed with every other. All dictionaries of a site see the same batches, each read once; equal
    shapes share one matrix product; each ends as if it had been trained alone, in a folder of its own with its card.
    Then comes a table of FVU against L0 that marks what is dominated, and, for several seeds, how many latents are
    found again. Stopped at any moment, the same command goes on where it was; with longer lists, only what is new is
    trained.

    Example:
        visae suite runs/sweep --kind topk batch_topk --k 8 16 32 --seeds 2 --site blocks.1 blocks.2 --stream

    As YAML (`visae suite sweep.yaml`, see examples/sweep.yaml), where `cases` may each override the lists above them:

        kind: [topk, batch_topk]
        k: [8, 16, 32]
        seeds: 2
        cases:
          - {}
          - {kind: relu_l1, options: {l1: [0.03, 0.1]}}

    Args:
        out: folder of the suite.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`.
        data: images to train on, see `visae extract --help`.
        validation: images to measure on; a world's own validation split, else the training images.
        stream: compute activations while training, all sites in one forward pass, and store nothing.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows.
        kind: kinds of dictionary, see `visae kinds`.
        latents: widths; `expansion` times the token's length if not given.
        expansion: widths as multiples of the token's length.
        k: codes per token, for kinds that have it.
        options: further options of the kinds, e.g. `--options aux 0.03 0.1`.
        normaliser: of the inputs, see `visae train --help`.
        lr: peak learning rates; a rule of width and budget if not given.
        seed: seeds of the weights; the first is that of the order of the rows, too.
        seeds: so many seeds from the first one on; their dictionaries are compared latent by latent.
        cases: in YAML only: a list of settings, each laid over the others and crossed by itself.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data.
        batch: rows per step.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        image_batch: images per forward pass.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    base = {
        "site": site, "kind": kind, "latents": latents or (None,), "expansion": expansion, "k": k, "lr": lr or (None,),
        "normaliser": normaliser, "seed": several_seeds(seed, seeds), "options": options,
    }  # fmt: skip
    common = {
        "model": model, "data": data, "validation": validation, "stream": stream, "tokens": tokens,
        "per_image": per_image, "dtype": dtype, "rows": rows, "passes": passes, "batch": batch, "order": seed[0],
        "precision": precision, "checkpoint_every": checkpoint_every, "image_batch": image_batch,
        "pretrained": pretrained, "image_size": image_size,
    }  # fmt: skip
    settings, place = expand(base, cases), pick_device(device)
    adapted = load_model(model, pretrained=pretrained, image_size=image_size, device=place)
    settings = list({repr(s): s for s in (replace(s, site=adapted.site(s.site).name) for s in settings)}.values())
    images, policy = load_data(data), TokenPolicy.parse(tokens, per_image=per_image)
    site_rows = SiteRows(
        adapted, dict.fromkeys(one.site for one in settings), images, policy, Path(out),
        dtype=dtype, stream=stream, image_batch=image_batch, workers=workers,
    )  # fmt: skip
    budget = rows or round(passes * site_rows.n_rows)
    config = TrainConfig(
        tokens=budget,
        batch=batch,
        precision=precision,
        device=place,
        checkpoint_every=checkpoint_every,
        stat_rows=min(65_536, site_rows.n_rows),  # one pass tells all that there is
    )
    jobs = plan(settings, site_rows, config, common, Path(out))
    failed = train_all(jobs, adapted, site_rows, seed[0], Path(out))
    report = measure_all([job for job in jobs if job.name not in failed], adapted, site_rows, images, validation)
    found = SuiteReport(Path(out), *report, failed=failed)
    found.write()
    return found


def several_seeds(seed: Sequence[int], seeds: int) -> list[int]:
    """The seeds named, or so many from the only one on.

    Raises:
        ValueError: for several named and several counted at once.
    """
    if seeds < 1 or (len(seed) > 1 and seeds > 1):
        raise ValueError(
            f"name the seeds, or one and how many (seeds, at least 1); got seed {list(seed)}, seeds {seeds}"
        )
    return list(seed) if seeds == 1 else [seed[0] + i for i in range(seeds)]


@dataclass(frozen=True)
class Job:
    """A member of the suite and where it lies.

    Attributes:
        name: of its folder.
        setting: what it is.
        run: its folder.
        config: its settings.
        meta: what makes the rows of its site.
    """

    name: str
    setting: Setting
    run: Run
    config: TrainConfig
    meta: StoreMeta

    def sae(self) -> Dictionary:
        """The dictionary, empty."""
        one, d = self.setting, self.meta.d
        return make_sae(one.kind, d, one.width(d), normaliser=one.normaliser, **one.chosen())

    @property
    def finished(self) -> bool:
        """Whether its dictionary lies there already."""
        return finished(self.run, self.meta, self.config)


def plan(
    settings: Sequence[Setting], rows: SiteRows, config: TrainConfig, common: dict[str, Any], out: Path
) -> list[Job]:
    """A folder with its options for each setting.

    Raises:
        ValueError: if a folder holds a run with other options, each named; for two settings of one name.
    """
    jobs: dict[str, Job] = {}
    for setting in settings:
        meta = rows.metas[setting.site]
        name = setting.name(meta.d)
        if name in jobs:
            raise ValueError(f"two settings of the sweep come to the same dictionary, {name}: name one of them")
        told = asdict(setting) | {"latents": setting.width(meta.d), "options": setting.options}
        run = begin(out / name, plain(common | told))
        settled = replace(config, lr=setting.lr, seed=setting.seed)
        jobs[name] = Job(name, setting, run, settled, meta)
    for job in jobs.values():
        job.sae()  # what no dictionary can have is refused before anything runs
    return list(jobs.values())


def train_all(jobs: Sequence[Job], adapted: AdaptedModel, rows: SiteRows, order: int, out: Path) -> dict[str, str]:
    """Trains what is not there yet; returns why members failed, by name."""
    todo = [job for job in jobs if not job.finished]
    announce(estimate(todo, len(jobs)))
    if not todo:
        return {}
    members = [Member(job.name, job.sae(), job.config, job.setting.site) for job in todo]
    result = Suite(members, out).fit(rows.loaders(todo[0].config.batch, order), resume=True)
    for job, member in zip(todo, members, strict=True):
        if job.name in result.results:
            card = describe(adapted, rows.sources[job.setting.site], job.config, result.results[job.name])
            save_sae(member.sae, job.run.folder, card)
    return result.failed


def measure_all(
    jobs: Sequence[Job], adapted: AdaptedModel, rows: SiteRows, images: ImageData, validation: str | None
) -> tuple[list[Row], int, str]:
    """Measures every dictionary in one pass over held-out images, and writes it into the cards.

    Returns:
        Rows of the comparison, tokens measured at a site, name of the images.
    """
    held_out = held_out_images(images, validation)
    saes = {job.name: load_sae(job.run.folder, model=adapted, device=job.config.device) for job in jobs}
    evaluations = {name: Evaluation(sae) for name, sae in saes.items()}
    for parts in rows.held_out(held_out):
        for job in jobs:
            if job.setting.site in parts:
                evaluations[job.name].add(parts[job.setting.site])
    measured = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
    for job in jobs:
        told = plain(measured[job.name].to_dict()) | {"data": held_out.name, "held_out": held_out is not images}
        save_sae(saes[job.name], job.run.folder, job.run.card.updated(metrics=told))
    found = compare({job.name: job.setting for job in jobs}, saes, measured)
    return found, next(iter(measured.values())).n, held_out.name


def estimate(todo: Sequence[Job], members: int) -> str:
    """What a suite will cost, in words; time from a few steps of every kind and width."""
    if not todo:
        return f"suite: all {members} dictionaries are there already"
    config = todo[0].config
    costs: dict[tuple[str, int, int], TrainingEstimate] = {}
    memory, seconds, cells = 0, 0.0, 0
    for job in todo:
        one, d = job.setting, job.meta.d
        key = one.kind, d, one.width(d)
        if key not in costs:
            costs[key] = training_estimate(*key, one.chosen(), config.tokens or 0, config.batch, config.device)
        cells += config.batch * one.width(d)
        memory += costs[key].memory - 2 * config.batch * one.width(d)
        seconds += costs[key].seconds or 0.0
    memory += 2 * min(cells, CELLS)  # pre-activations, of one product at a time
    steps = next(iter(costs.values())).steps
    checkpoints = sum(config.keep * 12 * 2 * job.meta.d * job.setting.width(job.meta.d) for job in todo)
    return (
        f"suite: {len(todo)} of {members} dictionaries to train, {len(costs)} shapes, at "
        f"{len({job.setting.site for job in todo})} sites: {steps:,} steps on {config.tokens or 0:,} rows; "
        f"{human(memory)} of memory, {human(checkpoints)} on disk for checkpoints, about {duration(seconds)}"
    )
