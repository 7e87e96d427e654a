"""Trains a text-to-image pipeline from drawn images to a folder that `from_pretrained` reads."""

import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visae.world import models
from visae.world.pipeline_recipes import PIPELINE_RECIPES, AutoencoderRecipe, PipelineRecipe, autoencoder, decoder
from visae.world.training.assemble import components, make_autoencoder, pipeline, write_pipeline
from visae.world.training.autoencode import Autoencoding, standardise
from visae.world.training.cache import Cache, open_cache
from visae.world.training.denoise import denoising
from visae.world.training.latents import open_latents, withheld_combinations
from visae.world.training.loop import fit
from visae.world.training.oracle import STEPS, evaluate_pipeline
from visae.world.world import DRAWING_VERSION

_QUICK = 96
"""Prompts behind the metrics of a card that is not final."""
_INTERIM = 1000
"""Steps between interim pipelines."""
_ABOUT = {
    "tiny-sd": "diffusers' StableDiffusionPipeline: a U-Net that predicts v behind the text tower of tiny-clip",
    "tiny-dit": "diffusers' PixArtAlphaPipeline: a transformer trained on straight paths behind a small T5 of its own",
}


def trained_autoencoder(
    recipe: AutoencoderRecipe, after: AutoencoderRecipe, cache: Cache, work: Path, device: str
) -> Any:
    """The autoencoder with latents of unit variance, trained now unless its checkpoints are complete.

    Args:
        recipe: of both halves.
        after: of the decoder alone, when the scale of the latents is settled.
        cache: on what.
        work: folder for checkpoints.
        device: where.
    """
    torch.manual_seed(recipe.seed)
    model = make_autoencoder(recipe)
    state = fit(Autoencoding(recipe, cache, model, device), recipe, work / "autoencoder.checkpoint", _nothing)
    model.load_state_dict(state)
    standardise(model, cache, recipe.noise)
    model.load_state_dict(fit(Autoencoding(after, cache, model, device), after, work / "decoder.checkpoint", _nothing))
    return model.requires_grad_(False).eval()


def _nothing(*_: Any) -> None:
    pass


def train_pipeline(name: str, target: Path, work: Path, device: str, n_test: int = 960) -> dict[str, float]:
    """Train a pipeline (or go on where a killed run stopped) and write it to a folder.

    The first pipeline trains the autoencoder too; `tiny-dit` takes that of the shipped `tiny-sd`.

    Args:
        name: "tiny-sd" or "tiny-dit".
        target: folder for the pipeline; an interim one lies there from step 1000 on.
        work: folder for drawn images, latents and checkpoints (about 2 GB).
        device: "cpu" or "cuda".
        n_test: prompts for the final metrics.

    Returns:
        The final metrics.

    Raises:
        FileNotFoundError: if `tiny-dit` is to be trained and there is no `tiny-sd`.
    """
    recipe = PIPELINE_RECIPES[name]()
    cache = open_cache(work, recipe.singles, recipe.several)
    if name == "tiny-sd":
        vae = trained_autoencoder(autoencoder(), decoder(), cache, work, device)
    else:
        vae = models.pipeline("tiny-sd").vae
    latents = open_latents(work, cache, recipe.singles, vae, device)
    torch.manual_seed(recipe.seed)
    task = denoising(recipe, cache, latents, components(recipe, work), device)

    def interim(step: int, weights: dict[str, Tensor]) -> None:
        if step % _INTERIM == 0 and step != recipe.last:
            metrics = export_pipeline(recipe, weights, vae, target, step, _QUICK)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
            print(f"step {step}: {shown}", flush=True)  # noqa: T201

    weights = fit(task, recipe, work / f"{name}.checkpoint", interim)
    return export_pipeline(recipe, weights, vae, target, recipe.last, n_test)


def export_pipeline(
    recipe: PipelineRecipe, state: dict[str, Tensor], vae: Any, target: Path, step: int, n_test: int
) -> dict[str, float]:
    """Write a pipeline and its card; the metrics are those of the rounded weights.

    Args:
        recipe: how it was made.
        state: the denoiser's weights.
        vae: the autoencoder.
        target: folder.
        step: steps the denoiser has seen.
        n_test: prompts for the metrics.

    Returns:
        The metrics.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts = components(recipe, Path(folder))
    torch.nn.ModuleDict({name: parts[name] for name in recipe.trained}).load_state_dict(state)
    pipe = pipeline(recipe, parts, vae)
    write_pipeline(pipe, target)
    metrics = evaluate_pipeline(pipe, n_test, guidance=recipe.guidance, **recipe.call)
    networks = {key: part for key, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {key: sum(p.numel() for p in part.parameters()) for key, part in networks.items()}
    card = _card(recipe, step, metrics, n_test, sizes)
    (target / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return metrics


def _card(
    recipe: PipelineRecipe, step: int, metrics: dict[str, float], n_test: int, sizes: dict[str, int]
) -> dict[str, Any]:
    def how(schedule: PipelineRecipe | AutoencoderRecipe) -> dict[str, Any]:
        return {key: value for key, value in asdict(schedule).items() if key not in ("config", "name")}

    return {
        "name": recipe.name,
        "description": _ABOUT[recipe.name],
        "command": f"python -m visae.world.train {recipe.name}",
        "finished": step >= recipe.last,
        "step": step,
        "images_seen": step * recipe.batch,
        "parameters": sizes,
        "weights": "fp16, running average of the training weights; metrics are of these rounded weights",
        "recipe": how(recipe),
        "autoencoder_recipe": how(autoencoder()),
        "decoder_recipe": how(decoder()),
        "trained_on": {
            "drawing_version": DRAWING_VERSION,
            "worlds": ["world:train?objects=1&seed=0", "world:train?objects=1-3&seed=1"],
            "withheld": [" ".join(combination) for combination in withheld_combinations()],
        },
        "evaluated_on": f"{n_test} prompts about scenes of the test split, half of withheld combinations (new), "
        f"{STEPS} steps, guidance {recipe.guidance:g}, read by the judge",
        "evaluation_command": f"python -m visae.world.train eval {recipe.name} --n {n_test}",
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
        "licence": "same as visae; trained on drawn images only",
    }
