"""diffusers: pipelines that make images, from a folder, from the hub, or held by the caller, offloaded or not."""

from pathlib import Path
from typing import Any

from visae.adapters import diffusers_unet, text_encoder
from visae.adapters.base import fetching
from visae.geometry import Framing
from visae.model import Request, register_family
from visae.pipelines import AdaptedPipeline, Part

DENOISERS = {diffusers_unet.COMPONENT: diffusers_unet.NAMING}


@register_family("diffusers", package="diffusers")
def diffusers_pipeline(request: Request) -> AdaptedPipeline:
    """A pipeline of diffusers; `image_size` sets height and width of its images."""
    pipe = _load(request) if request.module is None else request.module
    if not hasattr(pipe, "components"):
        raise ValueError(
            f"visae adapts whole pipelines of diffusers, got {type(pipe).__name__}: a denoiser by itself says neither "
            "how it is called nor on which schedule; pass the pipeline"
        )
    name = next((name for name in DENOISERS if getattr(pipe, name, None) is not None), None)
    if name is None:
        held = ", ".join(sorted(pipe.components))
        raise ValueError(f"{type(pipe).__name__} has no {' or '.join(DENOISERS)} (it has {held}): no denoiser to tap")
    texts = [part for part in text_encoder.COMPONENTS if getattr(pipe, part, None) is not None]
    return AdaptedPipeline(
        id=f"diffusers:{request.name}",
        pipe=pipe,
        framing=Framing(request.image_size or _own_size(pipe, name), "cover", size_rounding="round"),
        denoiser=Part(name, DENOISERS[name]),
        texts=tuple(Part(part, text_encoder.NAMING) for part in texts),
    )


def _load(request: Request) -> Any:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ValueError("pipelines need the package diffusers: pip install 'visae[diffusion]'") from error
    if not request.pretrained:
        raise ValueError(
            f"diffusers:{request.name} is loaded with its weights; for random ones build the pipeline from "
            "configurations and pass it to visae.wrap"
        )
    options = {"dtype": request.dtype, **request.options}
    if Path(request.name).is_dir():
        return DiffusionPipeline.from_pretrained(request.name, local_files_only=True, **options)
    with fetching(f"diffusers:{request.name}"):
        return DiffusionPipeline.from_pretrained(request.name, **options)


def _own_size(pipe: Any, denoiser: str) -> tuple[int, int]:
    """Height and width of the images that the pipeline makes when it is not told."""
    cells = getattr(pipe, "default_sample_size", None) or getattr(pipe, denoiser).config.get("sample_size")
    if cells is None:
        raise ValueError(f"{type(pipe).__name__} does not say how large its images are: pass image_size=")
    vae: Any = getattr(pipe, "vae", None)
    levels = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels") if vae else (0,)
    factor = getattr(pipe, "vae_scale_factor", None) or 2 ** (len(levels) - 1)
    height, width = (cells, cells) if isinstance(cells, int) else cells
    return height * factor, width * factor
