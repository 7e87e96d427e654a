"""The small models that ship with visae: native modules of open_clip and timm, and a judge, with their weights.

Each folder of an encoder beside this file holds `model.safetensors` (fp16), a configuration, a `card.json` and, for
`tiny-clip`, a tokenizer. `open_clip.create_model("local-dir:<folder of tiny-clip>")` reads that folder too.
The folders of pipelines are complete diffusers folders, `DiffusionPipeline.from_pretrained(folder("tiny-sd"))`, with a
`card.json`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visae.registry import UnknownName

if TYPE_CHECKING:
    from torch import nn

    from visae.world.models.word_tokenizer import WorldTokenizer

MODELS = ("tiny-clip", "tiny-vit", "judge")
"""Names for `build`."""

PIPELINES = ("tiny-sd", "tiny-dit")
"""Names for `pipeline`."""

CONFIG_FILES = {"tiny-clip": "open_clip_config.json", "tiny-vit": "config.json", "judge": "config.json"}


def folder(name: str) -> Path:
    """Where the files of a model or a pipeline lie.

    Raises:
        UnknownName: if there is no such model.
    """
    if name not in (*MODELS, *PIPELINES):
        raise UnknownName("built-in model", name, (*MODELS, *PIPELINES))
    return Path(__file__).parent / name


def pipeline(name: str, path: Path | None = None) -> Any:
    """A shipped text-to-image pipeline, as diffusers loads it, in fp32 on the CPU.

    Args:
        name: "tiny-sd" (`StableDiffusionPipeline`) or "tiny-dit" (`PixArtAlphaPipeline`).
        path: another folder to load it from than the shipped one.

    Raises:
        UnknownName: if there is no such pipeline.
        FileNotFoundError: if the folder holds no pipeline.
    """
    if name not in PIPELINES:
        raise UnknownName("built-in pipeline", name, PIPELINES)
    where = path or folder(name)
    if not (where / "model_index.json").exists():
        raise FileNotFoundError(
            f"the pipeline {name!r} should lie in {where}, which has no model_index.json: this version of visae comes "
            f"without its weights; make them with `python -m visae.world.train {name}`"
        )
    import torch
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(where, dtype=torch.float32)


def config(name: str) -> dict[str, Any]:
    """The configuration as stored: what `make` needs, what goes in (`preprocess_cfg`), what comes out (`labels`)."""
    return json.loads((folder(name) / CONFIG_FILES[name]).read_text(encoding="utf-8"))


def card(name: str, path: Path | None = None) -> dict[str, Any]:
    """Recipe, seed, training data and measured metrics, of the shipped folder or of another one."""
    return json.loads(((path or folder(name)) / "card.json").read_text(encoding="utf-8"))


def preprocess_config(name: str) -> dict[str, Any]:
    """How images enter a model.

    Returns:
        `size` (side in pixels), `mean` and `std` (per channel, of values in 0 .. 1), `interpolation`, `resize_mode`,
        in the vocabulary of open_clip's `preprocess_cfg`.
    """
    return config(name)["preprocess_cfg"]


def labels(name: str) -> list[tuple[str, str]]:
    """(factor, value) of every output of `tiny-vit` or `judge`, in order; empty for `tiny-clip`."""
    return [(factor, value) for factor, values in config(name).get("labels", {}).items() for value in values]


def make(name: str, stored: dict[str, Any]) -> "nn.Module":
    """A model without weights.

    Args:
        name: one of `MODELS`.
        stored: its configuration, as `config` returns it.
    """
    if name == "tiny-clip":
        from open_clip.model import CLIP

        parts = stored["model_cfg"]
        return CLIP(parts["embed_dim"], dict(parts["vision_cfg"]), dict(parts["text_cfg"]))
    if name == "tiny-vit":
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(**stored["model_args"])
    if name == "judge":
        from visae.world.models.network import Judge

        return Judge(**stored["model_args"])
    raise UnknownName("built-in model", name, MODELS)


def build(name: str) -> "nn.Module":
    """A shipped model with its weights, in fp32 and evaluation mode.

    Args:
        name: "tiny-clip" (open_clip `CLIP`), "tiny-vit" (timm `VisionTransformer`) or "judge" (`Judge`).

    Raises:
        UnknownName: if there is no such model.
    """
    from safetensors.torch import load_file

    weights = load_file(folder(name) / "model.safetensors")
    model = make(name, config(name))
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    )
    return model.eval()


def tokenizer(name: str = "tiny-clip") -> "WorldTokenizer":
    """The tokenizer of a model with a text tower: texts to ids `[n, context]`."""
    from visae.world.models.word_tokenizer import WorldTokenizer

    if name != "tiny-clip":
        folder(name)
        raise ValueError(f"{name!r} has no text tower; only 'tiny-clip' has a tokenizer")
    return WorldTokenizer(folder(name) / "tokenizer.json", config(name)["model_cfg"]["text_cfg"]["context_length"])
