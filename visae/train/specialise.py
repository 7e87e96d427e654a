"""Fine-tuning a general dictionary on a part of the data, for concepts too rare for it to have found."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from visae.sae import Card, Dictionary
from visae.train.config import TrainConfig, default_lr
from visae.train.trainer import Trainer, TrainResult

SHARE = 0.1
"""Peak learning rate of fine-tuning, as a share of what training anew would take."""


def specialise(
    sae: Dictionary,
    loader: Iterable[Any],
    config: TrainConfig,
    validation: Iterable[Tensor] | None = None,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    log_with: str | list[str] | None = None,
) -> tuple[Dictionary, TrainResult]:
    """Trains a copy of a dictionary further on tokens of a subdomain (specialised SAEs, Muhamed, Diab and Smith 2024).

    A dictionary spends its latents where the data are: what is rare gets none. On a subset in which it is frequent
    (tokens or images near a few examples of it) latents turn to it. The paper also tilts the loss (`TrainConfig.tilt`);
    tilt alone, on all data, finds less than no tilt (`tests/train/test_train_specialise.py` shows both). The statistics
    of the inputs stay those of the general dictionary; thresholds are calibrated on the subset, so expect another L0
    elsewhere.

    Args:
        sae: the general dictionary; it is not changed.
        loader: batches of the subset, see `Trainer.fit`.
        config: settings; where `lr` is None it is a tenth of `default_lr`; `start` is `given`.
        validation: held-out batches of the subset.
        out: folder of the run.
        resume: go on from the newest checkpoint in `out`.
        progress: whether to show a bar.
        log_with: accelerate's trackers.

    Returns:
        The specialised dictionary, whose card says what it came from, and how its run ended.

    Raises:
        ValueError: see `Trainer.fit`; for a dictionary without weights.
    """
    special, config = deepcopy(sae), fine_tuning(config, sae.n_latents)
    trainer = Trainer(special, config, out, progress=progress, log_with=log_with)
    result = trainer.fit(loader, validation, resume=resume)
    if sae.card is not None:
        training = {"config": config.to_dict(), **specialised_from(sae.card)}
        training |= {"steps": result.steps, "samples": result.samples, "warnings": result.warnings}
        special.card = sae.card.updated(metrics={}, training=training)
    return special, result


def fine_tuning(config: TrainConfig, n_latents: int) -> TrainConfig:
    """The settings with the weights that are given, and a learning rate for them where none is set."""
    return replace(config, start="given", lr=config.lr or SHARE * default_lr(n_latents, config.total_steps()))


def specialised_from(card: Card) -> dict[str, Any]:
    """What the card of a specialised dictionary says of the general one: its weights, data and training."""
    return {"specialised_from": {"weights": card.weights, "data": card.data, "training": card.training}}
