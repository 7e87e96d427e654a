"""visae: the small models that come with the package, trained on its built-in world; they need no network.

`tiny-clip` is a CLIP of open_clip, `tiny-vit` a VisionTransformer of timm; their folders hold a configuration and
`model.safetensors`. `tiny-sd` and `tiny-dit` are pipelines of diffusers, in complete diffusers folders.
"""

import json
from dataclasses import replace
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from torch import nn

from visae.adapters.base import from_transform, load_weights, refuse_options
from visae.adapters.diffusers import diffusers_pipeline
from visae.adapters.open_clip import RASTER
from visae.model import AdaptedModel, Request, register_family
from visae.naming import Naming
from visae.pipelines import AdaptedPipeline
from visae.registry import UnknownName

MODELS = ("tiny-clip", "tiny-vit")
PIPELINES = ("tiny-sd", "tiny-dit")
CONFIGS = ("open_clip_config.json", "config.json")


def names() -> list[str]:
    """Models that ship with visae."""
    return [*MODELS, *(name for name in PIPELINES if _folder(name).joinpath("model_index.json").is_file())]


def _folder(name: str) -> Traversable:
    return files("visae.world").joinpath("models", name)


@register_family("visae", names=names)
def shipped_model(request: Request) -> AdaptedModel | AdaptedPipeline:
    """A model that ships with visae; `pretrained=False` gives random weights, which pipelines do not have."""
    if request.module is not None:
        raise ValueError("visae's own models are loaded by name; wrap(module) finds the family of other modules")
    if request.name not in (*MODELS, *PIPELINES):
        raise UnknownName("model that ships with visae", request.name, (*MODELS, *PIPELINES))
    return (_pipeline if request.name in PIPELINES else _vision)(request)


def _pipeline(request: Request) -> AdaptedPipeline:
    folder = _folder(request.name)
    if not folder.joinpath("model_index.json").is_file():
        raise FileNotFoundError(
            f"this version of visae comes without the weights of visae:{request.name} ({folder}); "
            f"make them with: python -m visae.world.train {request.name}"
        )
    # Called as it was trained and measured, whatever is installed: diffusers changes captions of PixArt if it can.
    recipe = json.loads(folder.joinpath("card.json").read_text(encoding="utf-8"))["recipe"]
    options = {**recipe["call"], **request.options}
    adapted = diffusers_pipeline(replace(request, name=str(Path(str(folder))), options=options))
    assert isinstance(adapted, AdaptedPipeline)
    adapted.id = f"visae:{request.name}"
    return adapted


def _vision(request: Request) -> AdaptedModel:
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    refuse_options("visae", request.options, "none")
    folder = _folder(request.name)
    stored = [item for name in CONFIGS if (item := folder.joinpath(name)).is_file()]
    if not stored:
        raise FileNotFoundError(f"this installation of visae lacks visae:{request.name} ({folder}): install it anew")
    config = json.loads(stored[0].read_text(encoding="utf-8"))
    prepare = merge_preprocess_dict(PreprocessCfg(), config["preprocess_cfg"])
    size = (prepare["size"],) * 2 if isinstance(prepare["size"], int) else tuple(prepare["size"])
    if request.image_size not in (None, size):
        raise ValueError(f"visae:{request.name} sees images of {size[0]} x {size[1]} pixels, not {request.image_size}")
    module, tower = _build(config)
    if request.pretrained:
        with as_file(folder.joinpath("model.safetensors")) as path:
            load_weights(module, path)
    naming = Naming(raster=RASTER, pooled=("visual", None) if tower is not module else None)
    transform = image_transform_v2(PreprocessCfg(**prepare), is_train=False)
    return from_transform(request, "visae", module, transform, tower, tower, naming=naming)


def _build(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The native module, and the part of it that sees images."""
    if "model_cfg" in config:
        from open_clip.model import CLIP

        parts = config["model_cfg"]
        module = CLIP(parts["embed_dim"], dict(parts["vision_cfg"]), dict(parts["text_cfg"]))
        return module, module.visual
    from timm.models.vision_transformer import VisionTransformer

    whole = VisionTransformer(**config["model_args"])
    return whole, whole
