"""Writes a trained model the way it ships: rounded weights, configuration and card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from visae.world import models
from visae.world.models.word_tokenizer import WorldTokenizer
from visae.world.recipes import Recipe
from visae.world.training.evaluate import evaluate
from visae.world.world import DRAWING_VERSION

_ABOUT = {
    "tiny-clip": "open_clip's CLIP: a ViT with 8 x 8 patch tokens and a class token, and a small text tower",
    "tiny-vit": "timm's VisionTransformer with a class token and four registers, trained on labels",
    "judge": "a residual convolutional network; it only judges, it is never analysed",
}


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors to fp16, the others as they are."""
    return {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for key, value in state.items()
    }


def export(
    recipe: Recipe, state: dict[str, Tensor], target: Path, step: int, tokenizer: WorldTokenizer | None, n_test: int
) -> dict[str, float]:
    """Write `model.safetensors`, the configuration and the card; the metrics are those of the rounded weights.

    Args:
        recipe: how it was made.
        state: its weights.
        target: folder.
        step: steps it has seen.
        tokenizer: where it has a text tower.
        n_test: test images for the metrics.

    Returns:
        The metrics.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = rounded(state)
    model = models.make(recipe.name, recipe.config)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    metrics = evaluate(model.eval(), recipe.config, tokenizer, n_test)
    part = target / "model.safetensors.part"
    save_file(weights, part)
    part.chmod(0o644)  # safetensors writes for the owner only
    part.replace(target / "model.safetensors")
    _write(target / models.CONFIG_FILES[recipe.name], recipe.config)
    _write(target / "card.json", _card(recipe, step, metrics, n_test, sum(v.numel() for v in weights.values())))
    return metrics


def _card(recipe: Recipe, step: int, metrics: dict[str, float], n_test: int, n_parameters: int) -> dict[str, Any]:
    how = {key: value for key, value in asdict(recipe).items() if key not in ("config", "name")}
    return {
        "name": recipe.name,
        "description": _ABOUT[recipe.name],
        "command": f"python -m visae.world.train {recipe.name}",
        "finished": step >= recipe.last,
        "step": step,
        "images_seen": step * recipe.batch,
        "parameters": n_parameters,
        "weights": "fp16, running average of the training weights; metrics are of these rounded weights",
        "recipe": how,
        "trained_on": {
            "drawing_version": DRAWING_VERSION,
            "worlds": ["world:train?objects=1&seed=0", "world:train?objects=1-3&seed=1"],
        },
        "evaluated_on": f"world:test?n={n_test}&size=64&seed=0&objects=1",
        "evaluation_command": f"python -m visae.world.train eval {recipe.name} --n {n_test}",
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "torch": torch.__version__,
        "licence": "same as visae; trained on drawn images only",
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
