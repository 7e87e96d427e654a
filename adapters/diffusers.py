"""diffusers: pipelines that make images, from a folder, from the hub, or held by the caller, offloaded or not."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from visae.adapters import diffusers_dit, diffusers_unet, text_encoder
from visae.adapters.base import fetching
from visae.geometry import Framing
from visae.model import Request, register_family
from visae.pipelines import AdaptedPipeline, Part

DENOISERS = {part.COMPONENT: part.NAMING for part in (diffusers_unet, diffusers_dit)}


@register_family("diffusers", package="diffusers")
def diffusers_pipeline(request: Request) -> AdaptedPipeline:
    """A pipeline of diffusers; `image_size` sets height and width of its images.

    Options that its call understands (`max_sequence_length`, `guidance_scale`) hold for every call; others go to
    `from_pretrained` (`variant`, `revision`).
    """
    pipe, options = _loaded(request) if request.module is None else (request.module, dict(request.options))
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
        options=options,
        texts=tuple(Part(part, text_encoder.NAMING) for part in texts),
    )


def _loaded(request: Request) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a folder or hub id, and those options that its call takes."""
    import diffusers

    if not request.pretrained:
        raise ValueError(
            f"diffusers:{request.name} is loaded with its weights; for random ones build the pipeline from "
            "configurations and pass it to visae.wrap"
        )
    here = Path(request.name).is_dir()
    with nullcontext() if here else fetching(f"diffusers:{request.name}"):
        config = diffusers.DiffusionPipeline.load_config(request.name, local_files_only=here)
        takes = _takes(getattr(diffusers, str(config["_class_name"]), None))
        load = {key: value for key, value in request.options.items() if key not in takes}
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            request.name, dtype=request.dtype, local_files_only=here, **load
        )
    return pipe, {key: value for key, value in request.options.items() if key in takes}


def _takes(kind: type | None) -> set[str]:
    """Arguments of the call of a class of pipelines."""
    return set(inspect.signature(kind.__call__).parameters) if kind else set()  # type: ignore[operator]


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
