"""Train many dictionaries from one stream of activations, and compare them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from visae.tokens import TokenPolicy
from visae.train import TrainConfig
from visae.workflows.collecting import Branch, Collect, Weights, ground, looks
from visae.workflows.held_out import held_out_data
from visae.workflows.options import Schemes
from visae.workflows.prepare import plain
from visae.workflows.run import pick_device
from visae.workflows.site_rows import SiteRows
from visae.workflows.suite_report import SuiteReport
from visae.workflows.suite_work import Work, check_ensembles
from visae.workflows.sweep import expand


def suite(
    out: Path = Path("runs/suite"),
    *,
    model: str = "visae:tiny-clip",
    site: tuple[str, ...] = ("blocks.-2",),
    data: str | None = None,
    validation: str | None = None,
    stream: bool = False,
    shards: bool = False,
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
    mfr: tuple[float, ...] = (0.0,),
    bag: bool = False,
    boost: int = 1,
    schemes: Schemes = Schemes(),  # noqa: B008 (frozen)
    cases: tuple[dict[str, Any], ...] = (),
    rows: int | None = None,
    passes: float | None = None,
    batch: int = 4096,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    collect: Collect = "generate",
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: tuple[int, ...] = (),
    branch: Branch = "cond",
    image_batch: int | None = None,
    workers: int = 2,
    pretrained: bool = True,
    weights: Weights = "float32",
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
        visae suite runs/tiny --model visae:tiny-sd --site unet.mid_block unet.up_blocks.0 --kind topk temporal

    As YAML (`visae suite sweep.yaml`, see examples/sweep.yaml), where `cases` may each override the lists above them:

        kind: [topk, batch_topk]
        k: [8, 16, 32]
        seeds: 2
        cases:
          - {}
          - {kind: relu_l1, options: {l1: [0.03, 0.1]}, schemes: {resample_every: 500}}

    Args:
        out: folder of the suite.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`.
        data: images to train on, or prompts for a pipeline, see `visae extract --help`.
        validation: images or prompts to measure on, see `visae train --help`.
        stream: compute activations while training, all sites with the same tokens in one forward pass or one
            generation, and store nothing; a pipeline's always are, but for `--shards`.
        shards: extract a pipeline's activations into the suite's folder and train on them there.
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
        mfr: coefficients that draw dictionaries which differ only in the seed towards one another; 0 leaves them alone.
        bag: measure the mean of all seeds of a setting, too, as one dictionary.
        boost: so many dictionaries one after another, each on what those before left, measured as one, too.
        schemes: how training departs from the plain run, for all; a case may have `schemes` of its own, laid over it.
        cases: in YAML only: a list of settings, each laid over the others and crossed by itself.
        rows: rows to train on at each site; `passes` over the data if not given.
        passes: passes over the data, see `visae train --help`.
        batch: rows per step.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        collect: how a pipeline runs, see `visae train --help`, like the next four.
        steps: of a pipeline: denoising steps.
        guidance: of a pipeline: guidance scale.
        collect_steps: of a pipeline: collect at these of its timesteps.
        branch: of a pipeline's guidance: tokens of which branch.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    base = {
        "site": site, "kind": kind, "latents": latents or (None,), "expansion": expansion, "k": k, "lr": lr or (None,),
        "normaliser": normaliser, "mfr": mfr, "seed": several_seeds(seed, seeds), "options": options,
    }  # fmt: skip
    common = {
        "model": model, "data": data, "validation": validation, "stream": stream, "shards": shards,
        "tokens": tokens, "per_image": per_image, "dtype": dtype, "rows": rows, "passes": passes, "batch": batch,
        "order": seed[0], "precision": precision, "collect": collect, "steps": steps, "guidance": guidance,
        "collect_steps": collect_steps, "branch": branch, "image_batch": image_batch, "pretrained": pretrained,
        "weights": weights, "image_size": image_size, "schemes": asdict(schemes),
    }  # fmt: skip
    settings, place = expand(base, cases), pick_device(device)
    on = ground(
        model, list(dict.fromkeys(one.site for one in settings)), data, collect=collect, steps=steps,
        guidance=guidance, collect_steps=collect_steps, branch=branch, image_batch=image_batch, pretrained=pretrained,
        weights=weights, image_size=image_size, device=place,
    )  # fmt: skip
    settings = list({repr(s): s for s in (replace(s, site=on.model.site(s.site).name) for s in settings)}.values())
    site_rows = SiteRows(
        on.model, dict.fromkeys(one.site for one in settings), on.data, TokenPolicy.parse(tokens, per_image=per_image),
        Path(out), dtype=dtype, stream=on.streams(stream, shards, None), image_batch=on.batch, workers=workers,
        collected=on.collected,
    )  # fmt: skip
    passes = on.passes(passes, shards, None)
    configs = {
        name: TrainConfig(
            tokens=rows or round(passes * n_rows),
            batch=batch,
            precision=precision,
            device=place,
            checkpoint_every=checkpoint_every,
            **{"stat_rows": min(65_536, n_rows)} | looks(on.collected, n_rows),  # one pass tells all that there is
            **schemes.settings(),
        )
        for name, n_rows in site_rows.n_rows.items()
    }
    work = Work(
        on.model, site_rows, plain(common), Path(out),
        order=seed[0], schemes=schemes, held_out=held_out_data(on.data, validation, on.collected),
    )  # fmt: skip
    jobs = work.plan(settings, configs)
    if bag or boost > 1:
        check_ensembles(jobs)
    failed = work.train(jobs, stages=boost)
    done = [job for job in jobs if job.name not in failed]
    entries = [work.entry(job) for job in done]
    entries += work.bags(done) if bag else []
    entries += work.boosts(done, boost) if boost > 1 else []
    found = SuiteReport(Path(out), *work.measure(entries, on.data), failed=failed)
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
