"""One traced forward of each part of a pipeline, called as the pipeline calls it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, cat, nn

from visae.first_calls import FirstCall
from visae.readings import PAIR, Square
from visae.receptive import Axis, Map, Maps
from visae.trace import Trace, Tracer, watch

FAILURES = (RuntimeError, ValueError, TypeError, IndexError)
"""What a denoiser raises when a batch or a text has another length than it can take."""


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
    grid = latent_grid(sample, image_hw)
    cell = image_hw[0] / grid[0], image_hw[1] / grid[1]
    rows, columns = (Axis(n, side, side / 2, side) for n, side in zip(grid, cell, strict=True))
    square = Square.on(grid, cell)
    planted = square.images(grid, sample.shape[1 if sample.dim() == 4 else 2])

    def traced(kept: int, more: int = 0) -> Trace:
        asked = call if not more else _longer(call, more)
        tracer = Tracer(Maps(image_hw, Map(rows, columns, image_hw)), (), square, _texts(asked), PAIR * kept)
        return watch(parts, lambda: call_denoiser(parts, name, asked, planted.repeat(kept, 1, 1, 1), kept), tracer)

    return _without_doubt(traced, sample.shape[0])


def call_denoiser(parts: nn.Module, name: str, call: FirstCall, latents: Tensor, kept: int = 1) -> Any:
    """What the denoiser gives for other latents than the pipeline's.

    Args:
        parts: holds the pipeline's parts by name.
        name: of the denoiser.
        call: how the pipeline called it.
        latents: `[n, c, h, w]`; n is a multiple of `kept`.
        kept: how many of the last rows of the pipeline's batch go along, each for as many latents.
    """
    sample = call.tensors[0]
    latents = latents.to(sample.device, sample.dtype)
    latents = latents if sample.dim() == 4 else latents.flatten(2).transpose(1, 2)
    rows = _repeated(call, sample.shape[0], kept, len(latents) // kept)
    first = rows.tensors[0]
    asked = rows.mapped(lambda _, value: latents if value is first else value)
    return parts.get_submodule(name)(**asked.arguments)


def trace_text(parts: nn.Module, name: str, call: FirstCall) -> Trace:
    """Sends a text, twice, through a text encoder."""
    ids, module = call.tensors[0], parts.get_submodule(name)
    pair = _repeated(call, ids.shape[0], 1, PAIR)
    tracer = Tracer(Maps((1, 1)), (), Square.on((1, 1)), [ids.shape[1]])
    return watch(parts, lambda: module(**pair.arguments), tracer)


def _without_doubt(traced: Callable[..., Trace], rows: int) -> Trace:
    """A trace of the last row, or of all where attention takes the batch apart; corrected where texts are in doubt."""
    kept = 1
    try:
        found = traced(kept)
    except FAILURES as failure:
        kept = rows
        try:
            found = traced(kept)
        except FAILURES:
            raise failure from None
    if found.doubtful:
        try:
            found.correct(traced(kept, more=1))
        except FAILURES:
            return found  # the painted square has decided as well as it can
    return found


def _repeated(call: FirstCall, rows: int, kept: int, times: int) -> FirstCall:
    """The call with its last `kept` rows, each so many times; the last is, with guidance, most often the prompt's."""

    def repeat(_: str, value: Tensor) -> Tensor:
        return value[-kept:].repeat_interleave(times, 0) if value.dim() and value.shape[0] == rows else value

    return call.mapped(repeat)


def _texts(call: FirstCall) -> list[int]:
    """Lengths of the texts that go into the denoiser."""
    return sorted({t.shape[1] for t in call.tensors[1:] if t.dim() == 3 and t.is_floating_point() and t.shape[1] > 1})


def _longer(call: FirstCall, more: int) -> FirstCall:
    """The call with tokens added to its longest text (and its mask, and its positions), copies of the last one."""
    sample, length = call.tensors[0], _texts(call)[-1]

    def lengthen(key: str, value: Tensor) -> Tensor:
        axis = None
        if value.dim() == 3 and value.is_floating_point() and value.shape[1] == length:
            axis = 1
        elif "mask" in key and value.shape[-1] == length:
            axis = value.dim() - 1
        elif "ids" in key and key.startswith(("txt", "text")) and value.dim() > 1 and value.shape[-2] == length:
            axis = value.dim() - 2
        if axis is None or value is sample:
            return value
        return cat([value, *[value.narrow(axis, length - 1, 1)] * more], axis)

    return call.mapped(lengthen)


def latent_grid(sample: Tensor, image_hw: tuple[int, int]) -> tuple[int, int]:
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
