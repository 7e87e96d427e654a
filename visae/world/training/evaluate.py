"""How good the shipped models are, on images that no training ever sees."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from visae.world.captions import prompts
from visae.world.factors import FACTORS, ROTATIONLESS
from visae.world.models.word_tokenizer import WorldTokenizer
from visae.world.training.tasks import normalised
from visae.world.world import World

ZERO_SHOT_FACTORS = ("shape", "family", "style", "colour", "background", "size", "position")
_BATCH = 250


def class_codes(model: Any, tokenizer: WorldTokenizer, factor: str) -> Tensor:
    """Text codes `[values, d]` of a factor: unit vectors, each the mean over its prompts."""
    codes = []
    with torch.inference_mode():
        for value in FACTORS[factor]:
            codes.append(model.encode_text(tokenizer(prompts(factor, value)), normalize=True).mean(0))
    return nn.functional.normalize(torch.stack(codes), dim=-1)


def _outputs(model: nn.Module, world: World, preprocess: dict[str, Any], encode: str) -> Tensor:
    rows = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(world), _BATCH), desc="evaluating", leave=False):
            images = np.stack([world.render(i) for i in range(start, min(start + _BATCH, len(world)))])
            rows.append(getattr(model, encode)(normalised(images, preprocess)))
    return torch.cat(rows)


def _accuracy(scores: Tensor, world: World, factor: str) -> float:
    """Top-1 over images in which the factor can be seen and has one value."""
    hits = total = 0
    for i, best in enumerate(scores.argmax(1).tolist()):
        scene = world.scene(i)
        if factor == "rotation" and scene.things[0].shape in ROTATIONLESS:
            continue
        known = world.labels(i)[factor]
        if len(known) == 1:
            hits += FACTORS[factor][best] == known[0]
            total += 1
    return hits / total


def evaluate_clip(model: nn.Module, tokenizer: WorldTokenizer, preprocess: dict[str, Any], n: int) -> dict[str, float]:
    """Zero-shot top-1 per factor on `n` single-object images of the test split."""
    world = World("test", n)
    codes = nn.functional.normalize(_outputs(model, world, preprocess, "encode_image"), dim=-1)
    return {
        f"zero-shot {factor}": _accuracy(codes @ class_codes(model, tokenizer, factor).T, world, factor)
        for factor in ZERO_SHOT_FACTORS
    }


def evaluate_labels(
    model: nn.Module, labels: dict[str, list[str]], preprocess: dict[str, Any], n: int
) -> dict[str, float]:
    """Top-1 per factor on `n` single-object images of the test split (count: on images of one to three objects).

    The rotation of a circle or a ring cannot be seen; those images are left out for that factor.
    """
    world, crowd = World("test", n), World("test", n, seed=1, objects=(1, 3))
    logits = _outputs(model, world, preprocess, "forward")
    out, at = {}, 0
    for factor, values in labels.items():
        if factor == "count":
            out[factor] = _accuracy(_outputs(model, crowd, preprocess, "forward")[:, at : at + 3], crowd, factor)
        else:
            out[factor] = _accuracy(logits[:, at : at + len(values)], world, factor)
        at += len(values)
    return out


def evaluate(
    model: nn.Module, config: dict[str, Any], tokenizer: WorldTokenizer | None, n: int = 4000
) -> dict[str, float]:
    """Metrics of a model, whichever of the three it is.

    Args:
        model: with weights, in evaluation mode.
        config: its stored configuration.
        tokenizer: where it has a text tower.
        n: test images.

    Returns:
        Metric -> value in 0 .. 1.
    """
    if tokenizer is not None:
        return evaluate_clip(model, tokenizer, config["preprocess_cfg"], n)
    return evaluate_labels(model, config["labels"], config["preprocess_cfg"], n)
