"""Fine-tune a dictionary on some images, for concepts that are rare among those it was trained on."""

from pathlib import Path
from typing import Literal

from visae.data import load_data
from visae.launch import world_size
from visae.sae import save_sae
from visae.tokens import TokenPolicy
from visae.train import TrainConfig
from visae.train import specialise as fine_tune
from visae.train.specialise import fine_tuning, specialised_from
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
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    rows: int | None = None,
    passes: float = 8,
    batch: int = 1024,
    lr: float | None = None,
    tilt: float = 0.0,
    seed: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    image_batch: int = 64,
    workers: int = 2,
    device: str = "auto",
) -> Trained:
    """Fine-tune a dictionary on a few images, for what is too rare elsewhere to have latents.

    Model, site, tokens and the statistics of the inputs are those of the general dictionary, which stays as it is. The
    card of the new one says which it came from.

    Example:
        visae specialise runs/clip runs/rare-birds --data "birds/*.jpg" --passes 20

    Args:
        general: folder of the run that made the general dictionary.
        out: folder of the new run.
        data: images in which the concept is frequent, e.g. those nearest to a few examples.
        validation: images to measure on; the same if not given.
        stream: compute activations while training and store nothing.
        dtype: of the rows.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data.
        batch: rows per step.
        lr: peak learning rate; a tenth of what training anew would take if not given.
        tilt: above 0, tokens that are explained worst count more.
        seed: of the order of the rows.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        image_batch: images per forward pass.
        workers: threads that read and frame images.
        device: `auto`, `cpu`, `cuda`, ...
    """
    config = plain({name: value for name, value in locals().items() if name not in ("out", "device", "workers")})
    if world_size() > 1:
        raise ValueError(f"fine-tuning takes one process, {world_size()} were started: start one")
    source_run = Run.open(general)
    like = {name: source_run.config.get(name) for name in ("pretrained", "image_size") if name in source_run.config}
    run, card = begin(Path(out), config | like), source_run.card
    adapted, images = source_run.model(pick_device(device)), load_data(data)
    site, policy = card.site["name"], TokenPolicy.from_dict(card.policy)
    folder = run.folder / "activations"
    source = open_source(adapted, site, images, folder, policy, dtype, None, stream, image_batch, workers)
    asked = TrainConfig(
        tokens=rows or round(passes * source.n_rows),
        batch=batch,
        lr=lr,
        tilt=tilt,
        seed=seed,
        precision=precision,
        device=pick_device(device),
        checkpoint_every=checkpoint_every,
    )
    settings = fine_tuning(asked, card.n_latents)
    if not finished(run, source.meta, settings):
        loader = source.loader(batch, seed=seed)
        special, result = fine_tune(source_run.sae(adapted), loader, settings, out=run.folder, resume=True)
        told = describe(adapted, source, settings, result)
        save_sae(special, run.folder, told.updated(training=told.training | specialised_from(card)))
    return Trained(run, measure(run, adapted, images, validation, image_batch, workers))
