"""Train a dictionary on a site of a model, from images to card."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visae import store
from visae.data import load_data
from visae.data.sample import ImageData
from visae.evaluate import evaluate_sae
from visae.model import AdaptedModel, load_model
from visae.sae import Card, kind_options, load_sae, make_sae, save_sae
from visae.store import ActivationSource, Loader
from visae.tokens import TokenPolicy
from visae.train import Processes, TrainConfig, Trainer, TrainResult, rows_per_step
from visae.workflows.estimate import training_estimate
from visae.workflows.extract import announce
from visae.workflows.run import CONFIG, Run, other_split, pick_device


@dataclass(frozen=True)
class Trained:
    """A finished run and what was measured; prints as a summary."""

    run: Run
    metrics: dict[str, Any]

    def __str__(self) -> str:
        card = self.run.card
        overall = self.metrics
        return (
            f"{card.kind} dictionary of {card.n_latents:,} latents on {card.model['id']} {card.site['name']}\n"
            f"FVU {overall['fvu']:.4f}, L0 {overall['l0']:.1f}, dead {overall['dead']:.1%} "
            f"(of {overall['n']:,} tokens of {overall['data']})\n"
            f"saved in {self.run.folder}; look at it with: visae report {self.run.folder}"
        )


def train(
    out: Path = Path("runs/first"),
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str = "world:train?n=4000&objects=1",
    validation: str | None = None,
    activations: Path | None = None,
    stream: bool = False,
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: str = "topk",
    latents: int | None = None,
    expansion: float = 8,
    k: int = 32,
    options: dict[str, float] = {},  # noqa: B006 (read only)
    normaliser: str = "scale",
    rows: int | None = None,
    passes: float = 8,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    track: tuple[str, ...] = (),
    image_batch: int = 64,
    workers: int = 2,
    pretrained: bool = True,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a sparse autoencoder on one site of a vision model.

    Extracts the activations (or reads or streams them), trains, measures on held-out images, and leaves a folder with
    the dictionary and its card. Stopped at any moment, the same command goes on where it was.

    Several GPUs: `accelerate launch --num_processes 4 -m visae train ...`; each takes `--batch` rows per step. Without
    GPUs, accelerate needs `--multi_gpu` to start more than one process. A run may go on with another number of them.

    Example:
        visae train runs/clip --model open_clip:ViT-B-16/openai --site blocks.9 --data ~/photos --latents 12288 --k 32

    Args:
        out: folder of the run.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`; `blocks.-2` is the last but one block.
        data: images to train on, see `visae extract --help`.
        validation: images to measure on; a world's own validation split, else the training images.
        activations: read this store (from `visae extract`) instead of extracting into the run's folder.
        stream: compute activations while training and store nothing.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows.
        kind: kind of dictionary, see `visae kinds`.
        latents: width of the dictionary; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token, for kinds that have it.
        options: further options of the kind, e.g. `--options l1 0.01`.
        normaliser: of the inputs: `scale` (one scalar), `none`, `unit`, `layer_norm` (per token) or `whiten`.
        rows: rows to train on; `passes` over the data if not given.
        passes: passes over the data.
        batch: rows per step and process.
        lr: peak learning rate; a rule of width and budget if not given.
        seed: of the weights and of the order of the rows.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        track: accelerate's trackers beside metrics.jsonl, e.g. `tensorboard`.
        image_batch: images per forward pass.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    config = plain(
        {name: value for name, value in locals().items() if name not in ("out", "device", "workers", "track")}
    )
    processes = Processes(device)
    with processes.together():
        with processes.main_first():
            run = begin(Path(out), config)
        place = pick_device(device)
        adapted = load_model(model, pretrained=pretrained, image_size=image_size, device=place)
        images = load_data(data)
        policy = TokenPolicy.parse(tokens, per_image=per_image)
        folder = run.folder / "activations"
        with processes.main_first():  # which extracts; the others find the rows there
            there = activations if processes.main or stream else activations or folder
            source = open_source(adapted, site, images, folder, policy, dtype, there, stream, image_batch, workers)
        width = latents or round(expansion * source.d)
        chosen = {**({"k": k} if "k" in kind_options(kind) else {}), **options}
        budget = rows or round(passes * source.n_rows)
        announce(f"training: {training_estimate(kind, source.d, width, chosen, budget, batch, place, timed=False)}")
        settings = TrainConfig(
            tokens=budget,
            batch=batch,
            lr=lr,
            seed=seed,
            precision=precision,
            device=place,
            checkpoint_every=checkpoint_every,
        )
        if not finished(run, source.meta, settings):
            sae = make_sae(kind, source.d, width, normaliser=normaliser, **chosen)
            trainer = Trainer(sae, settings, run.folder, log_with=list(track) or None)
            result = trainer.fit(share_of(source, processes, run.folder, batch, seed), resume=True)
            if processes.main:
                save_sae(sae, run.folder, describe(adapted, source, settings, result))
        with processes.main_first():
            return Trained(run, measure(run, adapted, images, validation, image_batch, workers))


def share_of(source: ActivationSource, processes: Processes, folder: Path, batch: int, seed: int) -> Loader:
    """This process's share of the rows, in batches that keep the rows per step of a run that was begun with others."""
    rows = processes.share.rows
    begun = rows_per_step(folder)
    return source.loader(
        batch if begun is None else max(1, begun // rows.size), seed=seed, rank=rows.rank, processes=rows.size
    )


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Options as they come back from JSON."""
    return json.loads(json.dumps(config, default=str))


def begin(out: Path, config: dict[str, Any]) -> Run:
    """The folder of a new run, or of the same one again.

    Raises:
        ValueError: if the folder holds a run with other options, each named.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / CONFIG
    if file.is_file():
        then = json.loads(file.read_text(encoding="utf8"))
        if changed := [
            f"{key}: {then.get(key)!r} then, {value!r} now" for key, value in config.items() if then.get(key) != value
        ]:
            raise ValueError(
                f"{out} holds a run with other options ({'; '.join(changed)}): take another folder, or the same options"
            )
    else:
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(config, indent=1), encoding="utf8")
        os.replace(partial, file)
    return Run(out, config)


def open_source(
    adapted: AdaptedModel,
    site: str,
    images: ImageData,
    folder: Path,
    policy: TokenPolicy,
    dtype: str,
    activations: Path | None,
    stream: bool,
    image_batch: int,
    workers: int,
) -> ActivationSource:
    """Rows to train on: a store that exists, a stream, or a store made now in `folder`.

    Raises:
        ValueError: if a store of another model or site is named, or a store and a stream at once.
    """
    if activations is not None and stream:
        raise ValueError("give activations (a store) or stream, not both")
    if activations is not None:
        found = store.open_store(activations)
        if (found.meta.model, found.meta.revision) != (adapted.id, adapted.revision) or found.meta.site != adapted.site(
            site
        ):
            raise ValueError(
                f"{activations} holds {found.meta.model} {found.meta.site.name} (weights {found.meta.revision}), "
                "asked for "
                f"{adapted.id} {adapted.site(site).name} (weights {adapted.revision}): name the same model and site"
            )
        return found
    if stream:
        return store.Stream(adapted, site, images, policy, dtype=dtype, batch=image_batch, workers=workers)
    announce(
        f"activations: {store.estimate(adapted, site, images, folder, policy=policy, dtype=dtype, batch=image_batch)}"
    )
    return store.extract(adapted, site, images, folder, policy=policy, dtype=dtype, batch=image_batch, workers=workers)


def finished(run: Run, meta: store.StoreMeta, settings: TrainConfig) -> bool:
    """Whether the folder holds the dictionary of this very run, so that there is nothing left to train."""
    try:
        card = run.card
    except FileNotFoundError:
        return False
    same = card.training.get("config") == plain(settings.to_dict()) and card.data.get("hash") == meta.content_hash
    if not same:
        raise ValueError(f"{run.folder} holds another dictionary already: take another folder")
    load_sae(run.folder)
    return True


def describe(adapted: AdaptedModel, source: ActivationSource, settings: TrainConfig, result: TrainResult) -> Card:
    """The card, but for what the dictionary itself knows and what is measured later."""
    meta = source.meta
    return Card(
        kind="",
        d=source.d,
        n_latents=0,
        model={"id": adapted.id, "revision": adapted.revision},
        site=meta.site.to_dict(),
        policy=meta.policy.to_dict(),
        preprocessing=meta.preprocessing,
        geometry=meta.geometry,
        data={"name": meta.data, "fingerprint": meta.fingerprint, "hash": meta.content_hash, "rows": source.n_rows},
        training={"config": plain(settings.to_dict()), "steps": result.steps, "samples": result.samples},
    )


def held_out_images(images: ImageData, given: str | None) -> ImageData:
    """Images to measure on: what the user names, a world's validation split, else the training images."""
    if given is not None:
        return load_data(given)
    return load_data(other_split(images.name, "validation")) if images.name.startswith("world:train") else images


def measure(
    run: Run, adapted: AdaptedModel, images: ImageData, validation: str | None, image_batch: int, workers: int
) -> dict[str, Any]:
    """Metrics on held-out images, kept in the card."""
    card = run.card
    if card.metrics:
        return card.metrics
    held_out = held_out_images(images, validation)
    policy = TokenPolicy.from_dict(card.policy)
    source = store.Stream(
        adapted, card.site["name"], held_out, policy, dtype="float32", batch=image_batch, workers=workers
    )
    sae = run.sae(adapted)
    metrics = plain(evaluate_sae(sae, source.chunks()).to_dict()) | {
        "data": held_out.name,
        "held_out": held_out is not images,
    }
    save_sae(sae, run.folder, card.updated(metrics=metrics))
    return metrics
