"""transformers: vision models and vision towers, by model type (random weights), by hub id or folder, or held modules.

Random weights: `transformers:clip` with `pretrained=False`; options go to the configuration. Only the vision tower is
built. Images are prepared by the checkpoint's processor, and without one by the default of the model type. An input
that is not square is reached by squashing.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from visae.adapters.base import fetching, load_weights
from visae.framing import describe, misplacement
from visae.geometry import Framing
from visae.model import AdaptedModel, Request, register_family
from visae.naming import Naming
from visae.registry import UnknownName

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("BitImageProcessor", {**IMAGENET, "size": {"shortest_edge": 256}}),
    "dinov2_with_registers": ("BitImageProcessor", {**IMAGENET, "size": {"shortest_edge": 256}}),
    "siglip2": ("SiglipImageProcessor", {"resample": 2}),
    "ijepa": ("ViTImageProcessor", {}),
    "blip": ("BlipImageProcessor", {}),
}
"""Processor of model types whose checkpoints differ from the default of the library, or that have no default."""

TOWERS = ("vision_model", "vision_tower", "visual", "vit")
"""Where models that do more than see images keep the part that does."""

RASTER = (
    "ViTModel", "CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "Dinov2Model", "DINOv3ViTModel",
    "Dinov2WithRegistersModel", "DeiTModel", "BeitModel", "Data2VecVisionModel", "BlipVisionModel", "IJepaModel",
    "SwinModel", "ViTMAEModel", "ViTMSNModel",
    "LevitModel", "PvtModel", "PvtV2Model", "CvtModel", "CLIPVisionTransformer", "SiglipVisionTransformer",
)  # fmt: skip
"""Classes whose forward keeps tokens in raster order (read in transformers 5.23; MAE with `mask_ratio` 0)."""


def names() -> list[str]:
    """Model types of transformers that see images."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    towers = {name.removesuffix("_vision_model") for name in CONFIG_MAPPING_NAMES if name.endswith("_vision_model")}
    whole = {"vit_mae", "dinov3_vit", "dinov3_convnext", "ijepa", "blip", "hiera", "vit_msn"}
    return sorted((set(CLASSIFIERS) | towers | whole) & set(CONFIG_MAPPING_NAMES))


@register_family("transformers", names=names, package="transformers")
def transformers_model(request: Request) -> AdaptedModel:
    """A vision model of transformers."""
    module = _create(request) if request.module is None else request.module
    path, tower = _tower(module)
    config: Any = tower.config
    if _hides(tower) and config.mask_ratio:
        raise ValueError(
            f"{request.name} hides {config.mask_ratio:.0%} of its patches, so tokens have no fixed place; "
            "set module.config.mask_ratio = 0 (visae orders the rest), or load it by name"
        )
    size = request.image_size or _own_size(config)
    if request.transform is not None:
        from visae.framing import read_transform

        reading = read_transform(request.transform)
        framing, details, transform = reading.framing, reading.details, request.transform
    else:
        framing, details, transform = _processing(request, config, size)
    naming = Naming(raster=RASTER, pooled=(path, "pooler_output"))
    return AdaptedModel(
        id=f"transformers:{request.name}", module=module, framing=framing, preprocessing=describe(framing, details),
        transform=transform, call=_call(tower, framing.input_hw), tower=tower, naming=naming,
    )  # fmt: skip


def _create(request: Request) -> nn.Module:
    import transformers

    published = "/" in request.name or Path(request.name).is_dir()
    options = dict(request.options)
    if published:
        with fetching(f"transformers:{request.name}"):
            config = transformers.AutoConfig.from_pretrained(request.name, **options)
    elif request.name.removesuffix("_vision_model") not in names():
        raise UnknownName("transformers model type", request.name, names(), "Or give a hub id such as owner/name.")
    elif request.pretrained:
        raise ValueError(
            f"transformers:{request.name} is a model type: pass pretrained=False for random weights, or "
            "name a checkpoint (transformers:owner/name)"
        )
    else:
        config = transformers.AutoConfig.for_model(request.name, **options)
    config = getattr(config, "vision_config", config)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0
    kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", transformers.AutoModel)
    if request.pretrained:
        with fetching(f"transformers:{request.name}"):
            return cast(nn.Module, kind.from_pretrained(request.name, config=config))
    if request.image_size and request.image_size[0] == request.image_size[1] and hasattr(config, "image_size"):
        config.image_size = request.image_size[0]
    module = cast(nn.Module, kind(config) if kind is not transformers.AutoModel else kind.from_config(config))
    if request.checkpoint:
        load_weights(module, request.checkpoint)
    return module


def _tower(module: nn.Module) -> tuple[str, nn.Module]:
    """The part of a model that sees images, and its path."""
    takes = inspect.signature(type(module).forward).parameters
    if "input_ids" not in takes and type(module).__name__ != "ViTMAEForPreTraining":
        return "", module
    for holder in ("", "model."):
        for name in TOWERS:
            part = dict(module.named_modules()).get(holder + name)
            if part is not None and hasattr(part, "config"):
                return holder + name, part
    raise ValueError(f"{type(module).__name__} has none of the towers {', '.join(TOWERS)}: wrap its vision model")


def _hides(tower: nn.Module) -> bool:
    """Whether this is a masked autoencoder, which leaves out patches and shuffles the others."""
    return type(tower).__name__.startswith("ViTMAE")


def _own_size(config: Any) -> tuple[int, int]:
    """Height and width that a configuration is made for; models for any size get 224, or the patches they want."""
    if (size := getattr(config, "image_size", None)) is not None:
        return (size, size) if isinstance(size, int) else (size[0], size[1])
    if patches := getattr(config, "num_patches", None):
        side = int(patches**0.5) * config.patch_size
        return side, side
    return 224, 224


def _processing(
    request: Request, config: Any, size: tuple[int, int]
) -> tuple[Framing, dict[str, Any], Callable[[Any], Tensor]]:
    """Framing, description and function of the checkpoint's image processor, or of the default one for its type."""
    import transformers
    from PIL.Image import Resampling
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    kind = config.model_type.removesuffix("_vision_model")
    if request.pretrained and kind != "siglip2":
        with fetching(f"transformers:{request.name}"):
            processor = transformers.AutoImageProcessor.from_pretrained(request.name)
    else:
        default = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}
        name, options = PROCESSORS.get(kind) or (default.get("torchvision") or "ViTImageProcessor", {})
        processor = getattr(transformers, name)(**options)
    framing = _fit(processor, size, forced=request.image_size is not None or not request.pretrained)

    def transform(image: Any) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    cure = "wrap the module with transform= (torchvision's Resize, CenterCrop, ToTensor, Normalize)"
    try:
        off = max(misplacement(transform, framing, hw) for hw in ((90, 120), (121, 77)))
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{type(processor).__name__} brings no image to a tensor ({error}); {cure}") from error
    if off > 0.75:
        raise ValueError(f"{type(processor).__name__} puts pixels {off:.1f} away from where its settings say; {cure}")
    details = {
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": Resampling(int(processor.resample)).name.lower(),
        "processor": type(processor).__name__,
    }
    return framing, details, transform


def _fit(processor: Any, size: tuple[int, int], forced: bool) -> Framing:
    """Framing of a processor; with `forced` its target becomes `size`, keeping its resize to crop ratio."""
    goal = {key: value for key, value in dict(processor.size).items() if value}
    crops = bool(getattr(processor, "do_center_crop", False))
    percent = getattr(processor, "crop_pct", None)
    if not crops and not goal.keys() & {"height", "shortest_edge"}:
        raise ValueError(
            f"{type(processor).__name__} sizes images by {goal or 'nothing'}; wrap the module with transform="
        )
    target = (
        (processor.crop_size["height"], processor.crop_size["width"])
        if crops
        else ((goal["height"], goal["width"]) if "height" in goal else (goal["shortest_edge"],) * 2)
    )
    if forced and target != size:
        ratio = {key: value / target[0] for key, value in goal.items()}
        square = size[0] == size[1]
        goal = {key: round(size[0] * r) for key, r in ratio.items()} if square else dict(height=size[0], width=size[1])
        processor.size = goal
        if crops:
            processor.crop_size = {"height": size[0], "width": size[1]}
        target = size
    if "height" in goal:
        return Framing(target, "squash", (goal["height"], goal["width"]), crop_rounding="floor")
    edge = goal["shortest_edge"]
    if percent and edge < 384:
        return Framing((edge, edge), "shortest", (int(edge / percent),) * 2, crop_rounding="floor")
    if percent:
        return Framing((edge, edge), "squash", (edge, edge), crop_rounding="floor")
    if not crops:
        raise ValueError(f"{type(processor).__name__} gives images of no fixed size; pass transform=")
    if type(processor).__name__.startswith("Levit"):
        edge = int(256 / 224 * edge)
    return Framing(target, "shortest", (edge, edge), crop_rounding="floor")


def _call(tower: nn.Module, input_hw: tuple[int, int]) -> Callable[[Tensor], Any]:
    """The native forward of a batch, with the arguments that this class needs beside the pixels."""
    takes = inspect.signature(type(tower).forward).parameters
    patch: Any = getattr(tower.config, "patch_size", None)
    if "spatial_shapes" in takes:
        return lambda batch: _call_patches(tower, batch, patch)
    more: dict[str, Any] = {}
    if "interpolate_pos_encoding" in takes and _own_size(tower.config) != tuple(input_hw):
        more["interpolate_pos_encoding"] = True
    if not _hides(tower):
        return lambda batch: tower(pixel_values=batch, **more)

    def in_order(batch: Tensor) -> Any:
        """MAE sorts patches by noise: rising noise keeps the order of the picture."""
        count = (batch.shape[2] // patch) * (batch.shape[3] // patch)
        noise = torch.arange(count, device=batch.device, dtype=torch.float32).expand(len(batch), count)
        return tower(pixel_values=batch, noise=noise, **more)

    return in_order


def _call_patches(tower: nn.Module, batch: Tensor, patch: int) -> Any:
    """SigLIP 2 takes a picture as a list of flat patches, row by row, each `[patch, patch, 3]`."""
    n, channels, height, width = batch.shape
    rows, columns = height // patch, width // patch
    tiles = batch.reshape(n, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.tensor([[rows, columns]] * n, device=batch.device)
    mask = torch.ones(n, rows * columns, device=batch.device, dtype=torch.int32)
    return tower(pixel_values=tiles.reshape(n, rows * columns, -1), pixel_attention_mask=mask, spatial_shapes=shapes)
