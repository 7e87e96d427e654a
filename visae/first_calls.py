"""How a pipeline calls its parts, seen in one run that stops before the denoiser, and one traced forward of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.receptive import Axis, Map, Maps
from visae.trace import IMAGES, Square, Trace, Tracer, watch


@dataclass(frozen=True)
class FirstCall:
    """What a part was called with the first time."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments, in the order in which they stand."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "FirstCall":
        """The same call with every tensor changed."""
        return FirstCall(_mapped(self.args, change), _mapped(self.kwargs, change))


class _Reached(BaseException):
    """The denoiser is about to run; no pipeline handles this one as an error of its own."""


def first_calls(pipe: Any, names: Sequence[str], denoiser: str, request: dict[str, Any]) -> dict[str, FirstCall]:
    """Starts a generation, notes how each part is called first, and stops it when the denoiser is reached.

    Args:
        pipe: the diffusers pipeline.
        names: its parts.
        denoiser: the one that ends it.
        request: arguments of the pipeline's call.

    Raises:
        RuntimeError: if the pipeline never called its denoiser.
    """
    seen: dict[str, FirstCall] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(name, FirstCall(args, kwargs))
        if name == denoiser:
            raise _Reached

    handles = [
        getattr(pipe, name).register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
        )
        for name in names
    ]
    bar = getattr(pipe, "_progress_bar_config", None)
    try:
        pipe.set_progress_bar_config(disable=True)
        with torch.random.fork_rng():
            pipe(**request)
    except _Reached:
        return seen
    finally:
        for handle in handles:
            handle.remove()
        pipe._progress_bar_config = bar or {}
        pipe.maybe_free_model_hooks()
    raise RuntimeError(f"{type(pipe).__name__} made an image without calling {denoiser}: its sites cannot be traced")


def trace_denoiser(parts: nn.Module, name: str, call: FirstCall, image_hw: tuple[int, int]) -> Trace:
    """Sends two noises, alike but for a square, through the denoiser.

    Args:
        parts: holds the pipeline's parts by name.
        name: of the denoiser.
        call: how the pipeline called it.
        image_hw: height and width of the image in pixels, on which the latents lie.

    Raises:
        ValueError: if the denoiser's first tensor is neither a map nor a sequence of tokens on a grid.
    """
    sample = call.tensors[0]
    grid = _grid(sample, image_hw)
    cell = image_hw[0] / grid[0], image_hw[1] / grid[1]
    square, maps = Square.on(grid, cell), Maps(image_hw)
    rows, columns = (Axis(n, side, side / 2, side) for n, side in zip(grid, cell, strict=True))
    maps.file(Map(rows, columns, image_hw))
    pair = _in_pairs(call, sample.shape[0])
    channels = sample.shape[1] if sample.dim() == 4 else sample.shape[2]
    planted = square.images(grid, channels).to(sample.device, sample.dtype)
    planted = planted if sample.dim() == 4 else planted.flatten(2).transpose(1, 2)
    first = pair.tensors[0]
    pair = pair.mapped(lambda value: planted if value is first else value)
    texts = {t.shape[1] for t in pair.tensors if t.dim() == 3 and t.is_floating_point() and t is not planted}
    module = parts.get_submodule(name)
    tracer = Tracer(maps, (), square, sorted(length for length in texts if length > 1))
    return watch(parts, lambda: module(*pair.args, **pair.kwargs), tracer)


def trace_text(parts: nn.Module, name: str, call: FirstCall) -> Trace:
    """Sends a text, twice, through a text encoder."""
    ids = call.tensors[0]
    pair, module = _in_pairs(call, ids.shape[0]), parts.get_submodule(name)
    tracer = Tracer(Maps((1, 1)), (), Square.on((1, 1)), [ids.shape[1]])
    return watch(parts, lambda: module(*pair.args, **pair.kwargs), tracer)


def _in_pairs(call: FirstCall, rows: int) -> FirstCall:
    """The call with its last row twice: with guidance in one batch, most often that of the prompt."""
    return call.mapped(
        lambda value: (
            value[-1:].repeat(IMAGES, *[1] * (value.dim() - 1)) if value.dim() and value.shape[0] == rows else value
        )
    )


def _grid(sample: Tensor, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of latents `[n, c, h, w]`, or of a sequence `[n, h w, c]` of cells that are as high as wide."""
    if sample.dim() == 4:
        return sample.shape[2], sample.shape[3]
    if sample.dim() == 3:
        height, width = image_hw
        for side in range(1, min(image_hw) + 1):
            if height % side == width % side == 0 and (height // side) * (width // side) == sample.shape[1]:
                return height // side, width // side
    raise ValueError(
        f"the denoiser takes {list(sample.shape)} for an image of {image_hw[0]} x {image_hw[1]} pixels, which is "
        "neither a map [n, c, h, w] nor a sequence [n, h * w, c] of square cells in raster order"
    )


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    return value
