"""module: any `nn.Module` that the caller holds and that takes images `[n, 3, H, W]`, of torchvision for instance.

Framing comes from the transform that is passed, or from `framing=`; with `image_size` alone, images are resized to
cover it, cropped, and normalised with ImageNet's mean and standard deviation.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from visae.adapters.base import refuse_options
from visae.framing import Reading, describe, read_transform
from visae.geometry import Framing
from visae.model import AdaptedModel, Request, register_family
from visae.naming import Naming

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register_family("module")
def plain_module(request: Request) -> AdaptedModel:
    """A module that belongs to no known family.

    Options: `prefix`, kinds of the tokens in front of the patches, where parameters such as `cls_token` do not tell;
    `framing`, where the transform does not tell; `naming`, how the module calls its parts.
    """
    if request.module is None:
        raise ValueError(f"'module:{request.name}' has no weights to load: use visae.wrap(module, image_size=...)")
    options = dict(request.options)
    prefix, framing, naming = options.pop("prefix", None), options.pop("framing", None), options.pop("naming", None)
    refuse_options("module", options, "prefix, framing and naming")
    if request.transform is None and framing is None and request.image_size is None:
        raise ValueError(
            f"{request.name} does not say how large its images are: pass image_size=, or transform=, the "
            "function that makes a tensor [3, H, W] of a PIL image"
        )
    reading, transform = _preparation(request, framing)
    return AdaptedModel(
        id=f"module:{request.name}", module=request.module, framing=reading.framing,
        preprocessing=describe(reading.framing, reading.details), transform=transform, call=request.module,
        tower=request.module, naming=naming or Naming(), prefix=None if prefix is None else tuple(prefix),
    )  # fmt: skip


def _preparation(request: Request, framing: Framing | None) -> tuple[Reading, Callable[[Any], Tensor]]:
    if request.transform is not None:
        return (Reading(framing, {}) if framing else read_transform(request.transform)), request.transform
    from torchvision import transforms as tv

    height, width = framing.input_hw if framing else request.image_size  # type: ignore[misc]
    framing = framing or Framing((height, width), "cover", size_rounding="round")

    def resize(image: Any) -> Any:
        rows, columns = framing.resized((image.height, image.width))
        return tv.functional.resize(image, [rows, columns], tv.InterpolationMode.BICUBIC)

    transform = tv.Compose([resize, tv.CenterCrop((height, width)), tv.ToTensor(), tv.Normalize(MEAN, STD)])
    return Reading(framing, {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"}), transform
