"""Dictionaries one after another, each trained on what those before it left."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from visae.sae import Dictionary, Ensemble
from visae.train.config import TrainConfig
from visae.train.suite import Member, Suite


def boost(
    make: Callable[[int], Dictionary],
    loader: Callable[[], Iterable[Any]],
    config: TrainConfig,
    stages: int,
    out: Path | str | None = None,
    *,
    validation: Iterable[Tensor] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Ensemble:
    """Trains a boosted ensemble (Gadgil et al. 2025): dictionary j on `x - sum_{l < j} x'_l`, the earlier ones fixed.

    Each stage is a pass over the stream of its own. FVU cannot rise from one stage to the next by more than a stage
    that learnt nothing would add; codes add up, so compare at equal total L0.

    Args:
        make: stage, from 0, to an empty dictionary.
        loader: makes the stream anew for each stage.
        config: settings of each stage; its seed rises by one from stage to stage.
        stages: dictionaries.
        out: folder with a folder `stage-J` for each; None writes nothing.
        validation: see `Trainer.fit`.
        resume: go on from what lies in `out`.
        progress: whether to show bars.

    Raises:
        ValueError: for no stages, and see `Suite.fit`.
    """
    if stages < 1:
        raise ValueError(f"boosting needs at least one stage, got {stages}")
    done: list[Dictionary] = []
    for stage in range(stages):
        settled = replace(config, seed=config.seed + stage)
        member = Member(f"stage-{stage}", make(stage), settled, after=tuple(done))
        Suite([member], out, progress=progress).fit(loader(), validation, resume=resume)
        done.append(member.sae.eval())
    return Ensemble("boost", done)
