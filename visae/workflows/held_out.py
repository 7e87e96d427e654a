"""What comes after training, and beside it: held-out images, metrics on them, and what these warn of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visae.data import load_data, load_prompts
from visae.data.prompts import part_of
from visae.data.sample import ImageData, PromptData
from visae.evaluate import evaluate_sae
from visae.evaluate.core import ENOUGH
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Card, Dictionary, Rows, save_sae
from visae.store import Collection, Stream
from visae.store.store import Chunk
from visae.tokens import TokenPolicy
from visae.train.trouble import LOG, judge
from visae.workflows.prepare import plain
from visae.workflows.run import Run, other_split

ROWS = 16_384
"""Held-out rows that a run looks at while training."""

PROMPTS = 64
"""Held-out prompts that a pipeline makes images of, at most."""


def held_out_data(data: ImageData | PromptData, given: str | None, collected: Collection | None) -> Any:
    """Images or prompts to measure on: what the user names, the validation part, else those that were trained on."""
    if collected is None or collected.mode == "noise":
        return held_out_images(data, given)  # type: ignore[arg-type]
    named = given or part_of(data.name, "validation", PROMPTS)
    return data if named is None else load_prompts(named)


def held_out_images(images: ImageData, given: str | None) -> ImageData:
    """Images to measure on: what the user names, a world's validation split, else the training images."""
    if given is not None:
        return load_data(given)
    return load_data(other_split(images.name, "validation")) if images.name.startswith("world:train") else images


def measure(
    run: Run,
    adapted: AdaptedModel | AdaptedPipeline,
    data: ImageData | PromptData,
    validation: str | None,
    image_batch: int,
    workers: int,
) -> dict[str, Any]:
    """Metrics on held-out images or prompts, kept in the card."""
    card = run.card
    if card.metrics:
        return card.metrics
    collected = Collection.from_dict(card.sampling) if card.sampling else None
    held_out, policy = held_out_data(data, validation, collected), TokenPolicy.from_dict(card.policy)
    source = Stream(
        adapted, card.site["name"], held_out, policy, dtype="float32", batch=image_batch, workers=workers,
        sampling=collected,
    )  # fmt: skip
    sae = run.sae(adapted)
    scale = collected.scale if collected else "variance"
    metrics = plain(evaluate_sae(sae, source.chunks(), scale=scale).to_dict()) | {
        "data": held_out.name,
        "held_out": held_out is not data,
    }
    save_sae(sae, run.folder, judged(card, metrics, run.folder, wanted(sae)))
    return metrics


def wanted(sae: Any) -> float | None:
    """Codes per token that a dictionary was asked for; None for one that has no such number, and for ensembles."""
    return sae.activation.k if isinstance(sae, Dictionary) else None


def judged(card: Card, metrics: dict[str, Any], where: Path, k: float | None = None) -> Card:
    """A card with its metrics, and with the warnings that they give rise to, which are logged as well.

    Args:
        card: of the dictionary.
        metrics: on held-out tokens.
        where: the dictionary's folder.
        k: codes per token that it was asked for.
    """
    dead = metrics["dead"] if metrics["n"] >= ENOUGH else 0.0  # with fewer tokens, silence does not mean death
    found = judge(card.d, "held-out", dead=dead, dense=metrics["dense"], l0=metrics["l0"], k=k)
    for notice in found:
        LOG.warning("%s: %s", where, notice)
    earlier = [warning for warning in card.training.get("warnings", []) if warning["stage"] != "held-out"]
    warnings = [*earlier, *(notice.to_dict() for notice in found)]
    return card.updated(metrics=metrics, training={**card.training, "warnings": warnings})


def held_out_rows(
    adapted: AdaptedModel | AdaptedPipeline,
    site: str,
    data: ImageData | PromptData,
    policy: TokenPolicy,
    image_batch: int,
    workers: int,
    collected: Collection | None = None,
) -> list[Tensor | Rows]:
    """The first rows of held-out images or prompts, in float32, to look at while training."""
    source = Stream(
        adapted, site, data, policy, dtype="float32", batch=image_batch, workers=workers, sampling=collected
    )
    return first_rows(({site: chunk} for chunk in source.chunks(ROWS // 4)), collected)[site]


def first_rows(parts: Iterable[Mapping[str, Chunk]], collected: Collection | None) -> dict[str, list[Tensor | Rows]]:
    """Batches by site, until there are as many rows as a run looks at; with their noise levels where they have some.

    Args:
        parts: chunks of equally many rows by site, about a quarter of those rows at a time.
        collected: how a pipeline runs.
    """
    found: dict[str, list[Tensor | Rows]] = defaultdict(list)
    n = 0
    for chunks in parts:
        for site, chunk in chunks.items():
            timed = collected is not None and collected.timed and chunk.sigma is not None
            found[site].append(Rows(chunk.rows, {"sigma": chunk.sigma}) if timed else chunk.rows)  # type: ignore[dict-item]
        n += max(len(chunk.rows) for chunk in chunks.values())
        if n >= ROWS:
            break
    return found
