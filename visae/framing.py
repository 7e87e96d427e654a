"""Reads from an image transform of torchvision, timm or open_clip how it frames an image."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from visae.geometry import HW, Framing, Rounding

NEUTRAL = (
    "ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "ToImage", "ToPILImage", "ToDtype",
    "ConvertImageDtype", "ConvertDtype", "ToImageTensor", "Normalize", "MaybeConvertMode", "Identity", "Grayscale",
    "RGB", "ToPureTensor", "_convert_to_rgb", "_convert_image_to_rgb",
)  # fmt: skip
"""Names of transforms that move no pixel."""


@dataclass(frozen=True)
class Reading:
    """What a transform does: framing, and mean, standard deviation and interpolation for the card."""

    framing: Framing
    details: dict[str, Any]


def read_transform(transform: Callable[..., Any]) -> Reading:
    """Framing of a transform made of a resize and a centred crop or pad.

    Args:
        transform: a `Compose` or a single step, or a preset of torchvision's weights (`weights.transforms()`).

    Raises:
        ValueError: if a step is not known to keep the place of pixels, or the input size cannot be told.
    """
    if hasattr(transform, "crop_size") and hasattr(transform, "resize_size"):
        return _preset(transform)
    resize: dict[str, Any] = {"mode": "none"}
    crop: HW | None = None
    details: dict[str, Any] = {}
    for step in _steps(transform):
        name = getattr(step, "__name__", type(step).__name__)
        if name == "Normalize":
            details |= {"mean": _floats(step.mean), "std": _floats(step.std)}
        elif name in ("Resize", "ResizeKeepRatio") and crop is None and resize["mode"] == "none":
            resize = _resize(step, keep_ratio=name == "ResizeKeepRatio")
            details["interpolation"] = _word(step.interpolation)
        elif name in ("CenterCrop", "CenterCropOrPad") and crop is None:
            crop = _pair(step.size)
        elif name not in NEUTRAL:
            raise ValueError(
                f"cannot tell where the step {name} of the transform moves pixels to; known are Resize, "
                "ResizeKeepRatio, CenterCrop and CenterCropOrPad, once each and in this order. Pass framing= to say it"
            )
    if crop is None and resize["mode"] != "squash":
        raise ValueError("the transform gives images of no fixed size: add a CenterCrop, or pass framing=")
    return Reading(Framing(input_hw=crop or resize["resize_hw"], **resize), details)


def _steps(transform: Any) -> Iterator[Any]:
    inner = getattr(transform, "transforms", None)
    if inner is None:
        yield transform
    else:
        for step in inner:
            yield from _steps(step)


def _preset(preset: Any) -> Reading:
    """Torchvision's `ImageClassification` preset: resize the short side, then crop."""
    framing = Framing(_pair(preset.crop_size), "shortest", _pair(preset.resize_size))
    return Reading(
        framing,
        {"mean": _floats(preset.mean), "std": _floats(preset.std), "interpolation": _word(preset.interpolation)},
    )


def _resize(step: Any, keep_ratio: bool) -> dict[str, Any]:
    size = step.size
    if keep_ratio:
        if step.longest not in (0.0, 1.0):
            raise ValueError(f"ResizeKeepRatio with longest={step.longest} frames images in a way that has no name")
        rounding: Rounding = "round"
        return {"mode": "fit" if step.longest else "cover", "resize_hw": _pair(size), "size_rounding": rounding}
    if getattr(step, "max_size", None) is not None:
        raise ValueError("Resize with max_size frames images in a way that has no name; pass framing=")
    if isinstance(size, int) or len(size) == 1:
        return {"mode": "shortest", "resize_hw": _pair(size)}
    return {"mode": "squash", "resize_hw": _pair(size)}


def _pair(size: Any) -> HW:
    values = [int(size)] if isinstance(size, int) else [int(v) for v in size]
    return values[0], values[-1]


def _floats(values: Any) -> list[float]:
    return [float(f"{float(v):.7g}") for v in values]


def _word(interpolation: Any) -> str:
    return str(getattr(interpolation, "value", interpolation))


def describe(framing: Framing, details: Mapping[str, Any]) -> dict[str, Any]:
    """JSON form of a preprocessing, for the card."""
    return {**details, "framing": framing.to_dict()}


def misplacement(transform: Callable[..., Any], framing: Framing, image_hw: HW) -> float:
    """How far, in image pixels, a transform puts pixels from where its framing says.

    Ramps go through the transform, one along each axis, whose values are their own coordinates.

    Args:
        transform: brings an RGB image to `[3, H, W]`, by steps that keep flat areas flat.
        framing: what the transform is said to do.
        image_hw: size of the ramp images; at most 127 pixels each way.

    Returns:
        The largest distance over all input pixels at least two image pixels inside the image; infinite where the input
        has another size.
    """
    import numpy as np
    from PIL import Image

    def through(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        rgb = np.repeat(np.broadcast_to(values, image_hw)[..., None], 3, axis=2).astype(np.uint8)
        return np.asarray(transform(Image.fromarray(rgb))[0].double())

    placement, worst = framing.place(image_hw), 0.0
    black, white = through(np.zeros(image_hw)), through(np.full(image_hw, 255))
    if black.shape != tuple(framing.input_hw):
        return float("inf")
    centres = [(np.arange(n) + 0.5 - placement.offset[i]) / placement.scale[i] for i, n in enumerate(black.shape)]
    inside = [(c > 2) & (c < n - 2) for c, n in zip(centres, image_hw, strict=True)]
    for axis in (0, 1):
        ramp = np.arange(image_hw[axis]) * 2.0
        seen = through(ramp[:, None] if axis == 0 else ramp)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (seen - black) / (white - black) * 255 / 2 + 0.5
        error = np.abs(found - (centres[axis][:, None] if axis == 0 else centres[axis]))[np.ix_(*inside)]
        if error.size:
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
    return worst
