"""timm: every model that the library builds, by name, and modules of its classes.

Image size, mean, standard deviation, crop and interpolation come from the model's own `pretrained_cfg`.
"""

from typing import Any

from torch import nn

from visae.adapters.base import fetching, from_transform
from visae.model import AdaptedModel, Request, register_family
from visae.naming import Naming
from visae.registry import UnknownName

RASTER = (
    "VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "NaFlexVit", "Cait", "Xcit", "ConVit",
    "SwinTransformer", "SwinTransformerV2", "VisionTransformerRelPos", "MlpMixer", "PyramidVisionTransformerV2",
    "Levit", "LevitDistilled", "TinyVit", "MultiScaleVit", "Twins", "TNT", "CrossViT", "PoolingVisionTransformer",
)  # fmt: skip
"""Classes whose forward keeps tokens in raster order (read in timm 1.0.31)."""


def names() -> list[str]:
    """Models of timm, and each with its weight tags."""
    import timm

    return timm.list_models() + timm.list_pretrained()


@register_family("timm", names=names, package="timm")
def timm_model(request: Request) -> AdaptedModel:
    """A timm model; options go to `timm.create_model`."""
    import timm

    module = _create(request) if request.module is None else request.module
    config = dict(timm.data.resolve_model_data_config(module))
    if (size := _input_hw(request, module)) is not None:
        config["input_size"] = (config["input_size"][0], *size)
    if config["input_size"][0] != 3:
        raise ValueError(f"{request.name} takes images of {config['input_size'][0]} channels; visae brings RGB")
    transform = timm.data.create_transform(**config, is_training=False)
    naming = Naming(raster=RASTER, classifier=_classifiers(module))
    return from_transform(request, "timm", module, transform, module, module, naming=naming)


def _classifiers(module: Any) -> tuple[str, ...]:
    """Paths of the layers that make scores, as the model itself names them."""
    layers = module.get_classifier() if hasattr(module, "get_classifier") else ()
    layers = layers if isinstance(layers, tuple | list | nn.ModuleList) else (layers,)
    return tuple(path for path, part in module.named_modules() if any(part is layer for layer in layers))


def _input_hw(request: Request, module: nn.Module) -> tuple[int, int] | None:
    """Height and width asked for, else those that the model's patch embedding was built for."""
    if request.image_size is not None:
        return request.image_size
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return (size, size) if isinstance(size, int) else size


def _create(request: Request) -> nn.Module:
    import timm

    base = request.name.removeprefix("hf_hub:").removeprefix("hf-hub:")
    if base == request.name and request.name.partition(".")[0] not in timm.list_models():
        raise UnknownName("timm model", request.name, timm.list_models())
    options: dict[str, Any] = dict(request.options)
    if request.image_size is not None:
        options["img_size"] = request.image_size

    def build() -> nn.Module:
        return timm.create_model(request.name, pretrained=request.pretrained, **options)

    try:
        if not request.pretrained:
            return build()
        with fetching(f"timm:{request.name}"):
            return build()
    except TypeError as error:  # convolutional models take any size and have no argument for it
        if "img_size" not in str(error) or options.pop("img_size", None) is None:
            raise
        return build()
