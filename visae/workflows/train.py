"""Train a dictionary on a site of a model, from images to card."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from visae.sae import make_sae, save_sae
from visae.store import ActivationSource, Loader
from visae.tokens import TokenPolicy
from visae.train import FREE, Processes, TrainConfig, Trainer, rows_done, rows_per_step
from visae.workflows.collecting import Branch, Collect, Weights, ground, looks
from visae.workflows.estimate import training_estimate
from visae.workflows.extract import announce
from visae.workflows.held_out import held_out_data, held_out_rows, measure
from visae.workflows.options import Schemes, kind_choices
from visae.workflows.prepare import begin, describe, finished, open_source, plain, rows_ahead
from visae.workflows.run import Run, pick_device


@dataclass(frozen=True)
class Trained:
    """A finished run and what was measured; prints as a summary."""

    run: Run
    metrics: dict[str, Any]

    def __str__(self) -> str:
        card = self.run.card
        overall = self.metrics
        names = dict.fromkeys(warning["name"] for warning in card.training.get("warnings", []))
        return (
            f"{card.kind} dictionary of {card.n_latents:,} latents on {card.model['id']} {card.site['name']}\n"
            f"FVU {overall['fvu']:.4f}, L0 {overall['l0']:.1f}, dead {overall['dead']:.1%} "
            f"(of {overall['n']:,} tokens of {overall['data']})\n"
            + (f"warned of: {', '.join(names)} (sae.json says more)\n" if names else "")
            + f"saved in {self.run.folder}; look at it with: visae report {self.run.folder}"
        )


def train(
    out: Path = Path("runs/first"),
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str | None = None,
    validation: str | None = None,
    activations: Path | None = None,
    stream: bool = False,
    shards: bool = False,
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: str = "topk",
    latents: int | None = None,
    expansion: float = 8,
    k: float = 32,
    options: dict[str, float | str] = {},  # noqa: B006 (read only)
    normaliser: str = "scale",
    rows: int | None = None,
    passes: float | None = None,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    schemes: Schemes = Schemes(),  # noqa: B008 (frozen)
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    shard_latents: int = 1,
    track: tuple[str, ...] = (),
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
) -> Trained:
    """Train a sparse autoencoder on one site of a vision model, or of a pipeline that makes images.

    Says what it will cost, extracts the activations (or reads or streams them), trains, measures on held-out images,
    and leaves a folder with the dictionary and its card. Stopped at any moment, the same command goes on where it was.
    Trouble is warned of by name (dead, dense, l0, l0-missed, loss-rising, norm-outliers, few-rows), with what to do.

    Several GPUs: `accelerate launch --num_processes 4 -m visae train ...`; each takes `--batch` rows per step. Without
    GPUs, accelerate needs `--multi_gpu` to start more than one process. A run may go on with another number of them.

    Example:
        visae train runs/clip --model open_clip:ViT-B-16/openai --site blocks.9 --data ~/photos --latents 12288 --k 32
        visae train runs/relu --kind relu_l1 --options l1 0.05 penalty tanh --schemes.resample-every 500
        visae train runs/turbo --model diffusers:stabilityai/sdxl-turbo --site unet.mid_block --data p.txt --guidance 0
        visae train runs/long --passes 50 --schemes.validate-every 500 --schemes.patience 5 --schemes.best

    Args:
        out: folder of the run.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`; `blocks.-2` is the last but one block.
        data: images to train on, or prompts for a pipeline, see `visae extract --help`.
        validation: images or prompts to measure on; the validation part of a world or of prompts with `?split=train`,
            else those that were trained on.
        activations: read this store (from `visae extract`) instead of extracting into the run's folder.
        stream: compute activations while training and store nothing; a pipeline's always are, but for `--shards`.
        shards: extract a pipeline's activations into the run's folder and train on them there.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows.
        kind: kind of dictionary, see `visae kinds`.
        latents: width of the dictionary; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token, for kinds that have it; some take fractions.
        options: further options of the kind, e.g. `--options aux 0.1 k_aux 64`; `visae kinds` lists them.
        normaliser: of the inputs: `scale` (one scalar), `none`, `unit`, `layer_norm` (per token) or `whiten`.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data; 8, and 1 of a pipeline that makes its images while it trains, if not given.
        batch: rows per step and process.
        lr: peak learning rate; a rule of width and budget if not given.
        seed: of the weights and of the order of the rows.
        schemes: how training departs from the plain run.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        shard_latents: split the latents over so many processes, for a dictionary that does not fit one GPU.
        track: accelerate's trackers beside metrics.jsonl, e.g. `tensorboard`.
        collect: of a pipeline: `generate` collects while it makes images of prompts, `noise` from given images with
            noise added (one call per step), `text` from its text encoders alone.
        steps: of a pipeline: denoising steps; its own number if not given.
        guidance: of a pipeline: guidance scale; its own if not given.
        collect_steps: of a pipeline: collect at these of its timesteps, counted from 0, or from -1 backwards; all if
            not given.
        branch: of a pipeline's guidance: tokens of the prompt (`cond`), of the negative one (`uncond`), or `both`.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    config = plain(
        {name: value for name, value in locals().items() if name not in (*FREE, "out", "workers", "track")}
        | {"schemes": asdict(schemes)}
    )
    processes = Processes(device, shard_latents)
    with processes.together():
        with processes.main_first():
            run = begin(Path(out), config)
        place = pick_device(device)
        on = ground(
            model, site, data, collect=collect, steps=steps, guidance=guidance, collect_steps=collect_steps,
            branch=branch, image_batch=image_batch, pretrained=pretrained, weights=weights,
            image_size=image_size, device=place,
        )  # fmt: skip
        stream, passes = on.streams(stream, shards, activations), on.passes(passes, shards, activations)
        adapted, policy, folder = on.model, TokenPolicy.parse(tokens, per_image=per_image), run.folder
        chosen = kind_choices(kind, k, options)
        if not run.done:
            n_rows, d = rows_ahead(adapted, site, on.data, policy, dtype, activations, on.collected)
            width, budget = latents or round(expansion * d), rows or round(passes * n_rows)
            slices, spread, done = width // shard_latents, processes.share.rows.size, rows_done(folder)
            left, own = max(1, budget - done), batch_of(folder, batch, spread)
            told = training_estimate(kind, d, slices, chosen, left, own, place, schemes.settings(), spread)
            sliced = f", in each of {shard_latents} shards" if shard_latents > 1 else ""
            announce(f"training{f', {done:,} rows done' if done else ''}: {told}{sliced}")
        with processes.main_first():  # which extracts; the others find the rows there
            there = activations if processes.main or stream else activations or folder / "activations"
            source = open_source(
                adapted, site, on.data, folder / "activations", policy, dtype, there, stream, on.batch, workers,
                on.collected,
            )  # fmt: skip
        settings = TrainConfig(
            tokens=rows or round(passes * source.n_rows),
            batch=batch,
            lr=lr,
            seed=seed,
            precision=precision,
            device=place,
            checkpoint_every=checkpoint_every,
            shard_latents=shard_latents,
            **schemes.settings(),
            **looks(source.meta.collected, source.n_rows),
        )
        if not finished(run, source.meta, settings):
            sae = make_sae(kind, source.d, latents or round(expansion * source.d), normaliser=normaliser, **chosen)
            trainer = Trainer(sae, settings, folder, log_with=list(track) or None)
            seen = None
            if settings.validate_every is not None:
                held_out = held_out_data(on.data, validation, on.collected)
                seen = held_out_rows(adapted, site, held_out, policy, on.batch, workers, on.collected)
            result = trainer.fit(share_of(source, processes, folder, batch, seed), seen, resume=True)
            if processes.main:
                save_sae(sae, folder, describe(adapted, source, settings, result))
        with processes.main_first():
            return Trained(run, measure(run, adapted, on.data, validation, on.batch, workers))


def batch_of(folder: Path, batch: int, processes: int) -> int:
    """Rows per step of a process: as asked for, or what keeps those of a run that was begun with other processes."""
    begun = rows_per_step(folder)
    return batch if begun is None else max(1, begun // processes)


def share_of(source: ActivationSource, processes: Processes, folder: Path, batch: int, seed: int) -> Loader:
    """This process's share of the rows, in batches that keep the rows per step of a run that was begun with others."""
    rows = processes.share.rows
    own = batch_of(folder, batch, rows.size)
    return source.loader(own, seed=seed, rank=rows.rank, processes=rows.size)
