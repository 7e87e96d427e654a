"""Puts diffusers pipelines together, from a recipe, and writes them as folders."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from visae.world.models.clip_tokenizer import write_clip_tokenizer
from visae.world.models.t5_tokenizer import write_t5_tokenizer
from visae.world.pipeline_recipes import AutoencoderRecipe, PipelineRecipe
from visae.world.training.text import like_tiny_clip


def make_autoencoder(recipe: AutoencoderRecipe) -> Any:
    """An `AutoencoderKL` of diffusers, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**recipe.config)


def components(recipe: PipelineRecipe, folder: Path) -> dict[str, Any]:
    """The components of a pipeline by diffusers' names, without its autoencoder.

    Args:
        recipe: of the pipeline.
        folder: where the tokenizer is written and read.

    Returns:
        Networks with random weights, but for a CLIP text encoder, which has those of `tiny-clip`.
    """
    import diffusers
    import transformers

    classes, config = recipe.classes, recipe.config
    clip = classes["tokenizer"] == "CLIPTokenizer"
    (write_clip_tokenizer if clip else write_t5_tokenizer)(folder)
    tokenizer = getattr(transformers, classes["tokenizer"]).from_pretrained(folder)
    encoder_class = getattr(transformers, classes["text_encoder"])
    encoder = encoder_class(encoder_class.config_class(**config["text_encoder"])).eval()
    if clip:
        like_tiny_clip(encoder, tokenizer.get_vocab())
    return {
        recipe.trained[0]: getattr(diffusers, classes["denoiser"])(**config["denoiser"]),
        "scheduler": getattr(diffusers, classes["scheduler"])(**config["scheduler"]),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
    }


def pipeline(recipe: PipelineRecipe, parts: dict[str, Any], vae: Any) -> Any:
    """The upstream pipeline of these components."""
    import diffusers

    return getattr(diffusers, recipe.classes["pipeline"])(**parts, vae=vae, **recipe.absent)


def write_pipeline(pipe: Any, target: Path) -> None:
    """Write a pipeline as a folder of fp16 files; a kill leaves the old folder, at worst with `.old` after its name.

    The weights of the pipeline are rounded on the way, and are fp32 again afterwards.
    """
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    part, old = (target.with_name(target.name + suffix) for suffix in (".part", ".old"))
    shutil.rmtree(part, ignore_errors=True)
    for network in networks:
        network.half()
    pipe.save_pretrained(part)
    for network in networks:
        network.float()
    for file in part.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it lay on this machine
        if "dtype" in config:
            # transformers loads a network in the type that its file names, diffusers in fp32 unless told otherwise:
            # two halves of a pipeline must not differ.
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")
    for weights in part.glob("*/*.safetensors"):
        weights.chmod(0o644)  # safetensors writes for the owner only
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
