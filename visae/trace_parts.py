"""One traced forward of each part of a pipeline, called as the pipeline calls it."""

from collections.abc import Callable

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
    sample, module = call.tensors[0], parts.get_submodule(name)
    grid = _grid(sample, image_hw)
    cell = image_hw[0] / grid[0], image_hw[1] / grid[1]
    rows, columns = (Axis(n, side, side / 2, side) for n, side in zip(grid, cell, strict=True))
    square = Square.on(grid, cell)
    planted = square.images(grid, sample.shape[1 if sample.dim() == 4 else 2]).to(sample.device, sample.dtype)
    planted = planted if sample.dim() == 4 else planted.flatten(2).transpose(1, 2)

    def traced(kept: int, more: int = 0) -> Trace:
        maps = Maps(image_hw, Map(rows, columns, image_hw))
        pair = _in_pairs(call, sample.shape[0], kept)
        first, noise = pair.tensors[0], planted.repeat(kept, *[1] * (planted.dim() - 1))
        if more:
            length = _texts(pair)[-1]
            pair = pair.mapped(lambda key, value: value if value is first else _longer(key, value, length, more))
        texts = _texts(pair)
        pair = pair.mapped(lambda _, value: noise if value is first else value)
        tracer = Tracer(maps, (), square, texts, PAIR * kept)
        return watch(parts, lambda: module(*pair.args, **pair.kwargs), tracer)

    return _without_doubt(traced, sample.shape[0])


def trace_text(parts: nn.Module, name: str, call: FirstCall) -> Trace:
    """Sends a text, twice, through a text encoder."""
    ids, module = call.tensors[0], parts.get_submodule(name)
    pair = _in_pairs(call, ids.shape[0])
    tracer = Tracer(Maps((1, 1)), (), Square.on((1, 1)), [ids.shape[1]])
    return watch(parts, lambda: module(*pair.args, **pair.kwargs), tracer)


def _without_doubt(traced: Callable[..., Trace], rows: int) -> Trace:
    """A trace of the last row, or of all where attention takes the batch apart; corrected where texts are in doubt."""
    kept = 1
    try:
        found = traced(kept)
    except FAILURES:
        kept = rows
        found = traced(kept)
    if found.doubtful:
        try:
            found.correct(traced(kept, more=1))
        except FAILURES:
            return found  # the painted square has decided as well as it can
    return found


def _in_pairs(call: FirstCall, rows: int, kept: int = 1) -> FirstCall:
    """The call with its last `kept` rows twice; of guidance in one batch, the last is most often the prompt's."""

    def twice(_: str, value: Tensor) -> Tensor:
        return value[-kept:].repeat_interleave(PAIR, 0) if value.dim() and value.shape[0] == rows else value

    return call.mapped(twice)


def _texts(call: FirstCall) -> list[int]:
    """Lengths of the texts that go into the denoiser."""
    return sorted({t.shape[1] for t in call.tensors[1:] if t.dim() == 3 and t.is_floating_point() and t.shape[1] > 1})


def _longer(key: str, value: Tensor, length: int, more: int) -> Tensor:
    """A tensor that goes with the text of a length (itself, its mask, its positions), its last token repeated."""
    axis = None
    if value.dim() == 3 and value.is_floating_point() and value.shape[1] == length:
        axis = 1
    elif "mask" in key and value.shape[-1] == length:
        axis = value.dim() - 1
    elif "ids" in key and value.dim() > 1 and value.shape[-2] == length:
        axis = value.dim() - 2
    return value if axis is None else cat([value, *[value.narrow(axis, length - 1, 1)] * more], axis)


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
