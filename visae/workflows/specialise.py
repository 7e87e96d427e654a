"""Fine-tune a dictionary on some images, for concepts that are rare among those it was trained on."""

from pathlib import Path
from typing import Literal

from visae.launch import world_size
from visae.sae import Card, save_sae
from visae.store import Collection, Sampling
from visae.tokens import TokenPolicy
from visae.train import TrainConfig
from visae.train import specialise as fine_tune
from visae.train.specialise import fine_tuning, specialised_from
from visae.workflows.collecting import Branch, Collect, Weights, ground_of, looks
from visae.workflows.held_out import measure
from visae.workflows.prepare import begin, describe, finished, open_source, plain
from visae.workflows.run import Run, pick_device
from visae.workflows.train import Trained


def specialise(
    general: Path,
    out: Path = Path("runs/special"),
    *,
    data: str,
    validation: str | None = None,
    stream: bool = False,
    shards: bool = False,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    rows: int | None = None,
    passes: float | None = None,
    batch: int = 1024,
    lr: float | None = None,
    tilt: float = 0.0,
    seed: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    collect: Collect | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: tuple[int, ...] = (),
    branch: Branch | None = None,
    image_batch: int | None = None,
    workers: int = 2,
    weights: Weights | None = None,
    device: str = "auto",
) -> Trained:
    """Fine-tune a dictionary on a few images, for what is too rare elsewhere to have latents.

    Model, site, tokens and the statistics of the inputs are those of the general dictionary, which stays as it is; of a
    pipeline also how it runs, where nothing else is said. The card of the new one says which it came from.

    Example:
        visae specialise runs/clip runs/rare-birds --data "birds/*.jpg" --passes 20
        visae specialise runs/sd runs/rare-styles --data "styles.txt?split=train" --collect-steps 0 1 2

    Args:
        general: folder of the run that made the general dictionary.
        out: folder of the new run.
        data: images in which the concept is frequent, e.g. those nearest to a few examples; prompts for a pipeline.
        validation: images or prompts to measure on, see `visae train --help`.
        stream: compute activations while training and store nothing; a pipeline's always are, but for `--shards`.
        shards: extract a pipeline's activations into the run's folder and train on them there.
        dtype: of the rows.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data, see `visae train --help`.
        batch: rows per step.
        lr: peak learning rate; a tenth of what training anew would take if not given.
        tilt: above 0, tokens that are explained worst count more.
        seed: of the order of the rows.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        collect: how a pipeline runs, see `visae train --help`, like the next four; as it did for the general
            dictionary if not given.
        steps: of a pipeline: denoising steps.
        guidance: of a pipeline: guidance scale.
        collect_steps: of a pipeline: collect at these of its timesteps.
        branch: of a pipeline's guidance: tokens of which branch.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read and frame images.
        weights: type of the model's weights; that of the general dictionary's run if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    config = plain(
        {name: value for name, value in locals().items() if name not in ("out", "device", "workers", "weights")}
    )
    if world_size() > 1:
        raise ValueError(f"fine-tuning takes one process, {world_size()} were started: start one")
    source_run = Run.open(general)
    kept = ("pretrained", "image_size", "weights")
    like = {name: source_run.config[name] for name in kept if name in source_run.config}
    like |= {"weights": weights} if weights is not None else {}
    run, card = begin(Path(out), config | like), source_run.card
    adapted = Run(run.folder, like).loaded(card.model["id"], pick_device(device))
    site, policy = card.site["name"], TokenPolicy.from_dict(card.policy)
    on = ground_of(adapted, [site], data, sampled(card, collect, steps, guidance, collect_steps, branch), image_batch)
    source = open_source(
        adapted, site, on.data, run.folder / "activations", policy, dtype, None, on.streams(stream, shards, None),
        on.batch, workers, on.collected,
    )  # fmt: skip
    asked = TrainConfig(
        tokens=rows or round(on.passes(passes, shards, None) * source.n_rows),
        batch=batch,
        lr=lr,
        tilt=tilt,
        seed=seed,
        precision=precision,
        device=pick_device(device),
        checkpoint_every=checkpoint_every,
        **looks(on.collected, source.n_rows),
    )
    settings = fine_tuning(asked, card.n_latents)
    if not finished(run, source.meta, settings):
        loader = source.loader(batch, seed=seed)
        special, result = fine_tune(source_run.sae(adapted), loader, settings, out=run.folder, resume=True)
        told = describe(adapted, source, settings, result)
        save_sae(special, run.folder, told.updated(training=told.training | specialised_from(card)))
    return Trained(run, measure(run, adapted, on.data, validation, on.batch, workers))


def sampled(
    card: Card,
    collect: Collect | None,
    steps: int | None,
    guidance: float | None,
    collect_steps: tuple[int, ...],
    branch: Branch | None,
) -> Sampling | Collection:
    """How the pipeline ran for a dictionary, with what is asked otherwise.

    Args:
        card: of the dictionary; one without a pipeline is asked for what is asked, for `ground_of` to refuse.
        collect: see `specialise`, like the others.
        steps: with another number than then, all are collected unless `collect_steps` says which.
        guidance: guidance scale.
        collect_steps: places among the timesteps.
        branch: of guidance.
    """
    if not card.sampling:
        return Sampling(collect or "generate", steps, guidance, None, collect_steps, branch or "cond")
    then = Collection.from_dict(card.sampling)
    if (collect, steps, guidance, collect_steps, branch) == (None, None, None, (), None):
        return then
    timed = then.timed and steps in (None, then.steps)
    own = tuple(dict.fromkeys(slot.step for slot in then.slots)) if timed else ()
    return Sampling(
        mode=collect or then.mode,
        steps=steps or then.steps,
        guidance=then.guidance if guidance is None else guidance,
        negative=then.negative,
        collect=collect_steps or own,
        branch=branch or then.branch,  # type: ignore[arg-type]
        options=then.options,
    )
