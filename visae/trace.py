"""What flows through a model: one forward pass, in which every tensor that a module takes or gives is read as tokens.

Two images go through together: noise, and the same noise with a square painted on it. Where a tensor could be read in
more than one way (which axis is the batch, which the channels), the reading in which the square shows up at its own
place is the right one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.readings import PAIR, Call, Reading, Square, floating, tensors
from visae.receptive import Map, Maps
from visae.sites import Layout, to_tokens

MOST_LEARNT = 64
"""Learnt tokens that a denoiser may put in front of its texts."""

TOKEN_PARAMETERS = (
    (re.compile(r"(^|\.)(cls_tokens?(_\d+)?|class_token|class_embedding)$"), "cls"),
    (re.compile(r"(^|\.)(dist_token|distillation_token)$"), "cls"),
    (re.compile(r"(^|\.)(reg_token|reg_tokens|register_tokens|registers|storage_tokens)$"), "reg"),
)
"""Names under which models keep the tokens that they put in front of the patches, in that order."""


def leading_kinds(tower: nn.Module) -> tuple[str, ...]:
    """Kinds of the tokens that an image tower puts in front of its patches, from the parameters that hold them."""
    kinds: list[str] = []
    named = list(tower.named_parameters()) + list(tower.named_buffers())
    for pattern, kind in TOKEN_PARAMETERS:
        for name, value in named:
            if pattern.search(name) and "decoder" not in name:
                kinds += [kind] * (value.numel() // value.shape[-1])
                break
    return tuple(kinds)


class Tracer:
    """Hooks on every module that note what flows through; see `trace`.

    Args:
        maps: follows the grids.
        prefix: kinds of the tokens that the model may put in front of the patches.
        square: what is painted on one of the two inputs.
        texts: lengths of the texts that go along with the image.
        batch: inputs sent together, in pairs of which the last is looked at.
    """

    def __init__(
        self, maps: Maps, prefix: tuple[str, ...], square: Square, texts: Sequence[int] = (), batch: int = PAIR
    ):
        self.maps, self.square, self.texts, self.batch = maps, square, list(texts), batch
        options = [prefix, (), tuple(k for k in prefix if k == "cls"), tuple(k for k in prefix if k == "reg")]
        self.prefixes = list(dict.fromkeys(options))
        self.doubtful = False
        self.calls: dict[str, Call] = {}
        self.stack: list[tuple[Call, list[tuple[Reading, Tensor, int]]]] = []
        self.ticks = 0

    def _tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def before(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes what a module takes."""
        call = Call(path, self._tick())
        found = floating(args, kwargs)
        call.arguments = [self.read(value, key) for key, value in found]
        held = [(reading, v, v._version) for reading, (_, v) in zip(call.arguments, found, strict=True)]
        self.stack.append((call, held))

    def after(self, path: str, out: Any) -> None:
        """Notes what a module gave, and which tensors inside it were overwritten."""
        call, held = self.stack.pop()
        call.end = self._tick()
        given = list(tensors(out))
        call.given = [self.read(value, index) for index, value in given]
        kept = {value.untyped_storage().data_ptr() for _, value in given}
        goes_on, own = [], {id(reading) for reading in call.arguments}
        for reading, value, version in held:
            reading.overwritten |= value._version != version
            if value.untyped_storage().data_ptr() in kept or id(reading) in own:
                goes_on.append((reading, value, version))
        if self.stack:
            new = [(reading, v, v._version) for reading, (_, v) in zip(call.given, given, strict=True)]
            self.stack[-1][1].extend(goes_on + new)
        if path in self.calls:
            self.calls[path].runs += 1
        else:
            self.calls[path] = call

    def read(self, value: Tensor, index: int | str | None) -> Reading:
        """Reads a tensor as tokens, a map or one vector per image."""
        reading = Reading(tuple(value.shape), index)
        if not value.is_floating_point():
            return reading
        found = [self._judge(reading, value, *guess) for guess in self._guesses(value)]
        known = [r for r, sure in found if sure] or [r for r, _ in found if r.hit]
        if self._longer_text(value):
            self.texts.append(value.shape[1])
            return Reading(reading.shape, index, "NLC", value.shape[2], ("text",) * value.shape[1])
        if not known:
            return reading
        texts = [r for r in known if set(r.kinds) == {"text"}]
        if texts and len(known) > 1:
            self.doubtful |= not self._alike(value)
            known = [r for r in known if r.hit] or texts
        best = next((r for r in known if r.hit), known[0])
        if best.map is not None and best.map.grid not in self.maps and (best.hit or value.dim() == 3):
            self.maps.file(best.map)
        return best

    def _longer_text(self, value: Tensor) -> bool:
        """Whether a sequence is that of the texts one after the other, maybe behind learnt tokens.

        It knows nothing of the image, and its tokens differ (unlike those of a branch that starts at zero).
        """
        if not self.texts or value.dim() != 3 or value.shape[0] != self.batch:
            return False
        if not max(self.texts) < value.shape[1] <= sum(self.texts) + MOST_LEARNT or not self._alike(value):
            return False
        return not torch.equal(value[-1], value[-1, :1].expand_as(value[-1]))

    @staticmethod
    def _alike(value: Tensor) -> bool:
        """Whether the last pair of a batch does not differ: what knows nothing of the image."""
        return torch.equal(value[-1], value[-2])

    def _judge(
        self,
        reading: Reading,
        value: Tensor,
        layout: Layout,
        d: int,
        kinds: tuple[str, ...],
        grid: Map | None,
        sure: bool,
    ) -> tuple[Reading, bool]:
        patches = (*kinds, *["patch"] * (grid.rows.size * grid.columns.size)) if grid else kinds
        hit = self.square.shows(to_tokens(value, layout)[:, len(kinds) :], grid) if grid else None
        return Reading(reading.shape, reading.index, layout, d, patches, grid, hit), sure

    def _guesses(self, value: Tensor) -> Iterator[tuple[Layout, int, tuple[str, ...], Map | None, bool]]:
        """Ways to read a tensor: layout, width, leading kinds, grid, and whether the square need not confirm it."""
        shape = tuple(value.shape)
        if value.dim() == 2 and shape[0] == self.batch:
            yield "NC", shape[1], ("pooled",), None, True
        elif value.dim() == 4 and shape[0] == self.batch:
            yield from self._guess_map("NCHW", shape[1], shape[2:])
            yield from self._guess_map("NHWC", shape[3], shape[1:3])
        elif value.dim() == 3:
            for layout, batch, length in (("NLC", shape[0], shape[1]), ("LNC", shape[1], shape[0])):
                if batch == self.batch:
                    yield from self._guess_sequence(value, layout, shape[2], length)  # type: ignore[arg-type]

    def _guess_map(self, layout: Layout, d: int, grid: tuple[int, ...]) -> Iterator[Any]:
        if tuple(grid) == (1, 1):
            yield layout, d, ("pooled",), None, True
        elif (found := self.maps.get(tuple(grid))) is not None:  # type: ignore[arg-type]
            yield layout, d, (), found, True

    def _guess_sequence(self, value: Tensor, layout: Layout, d: int, length: int) -> Iterator[Any]:
        if length in self.texts:
            yield layout, d, ("text",) * length, None, True
        if length == 1:
            yield layout, d, ("cls",) if "cls" in self.prefixes[0] else ("pooled",), None, True
            return
        plain = [guess for prefix in self.prefixes for guess in self._guess_patches(layout, d, prefix, length)]
        yield from plain
        if not any(sure for *_, sure in plain) and not self._alike(value):
            for text in self.texts:
                for made in self.maps.latest_first():
                    if made.rows.size * made.columns.size == length - text:
                        yield layout, d, ("text",) * text, made, True

    def _guess_patches(self, layout: Layout, d: int, prefix: tuple[str, ...], length: int) -> Iterator[Any]:
        """Patches on a grid that is known, on one half as fine, or on one coarser in whole steps, behind a prefix."""
        known, patches = self.maps.latest_first(), length - len(prefix)
        for made in known:
            if made.rows.size * made.columns.size == patches:
                yield layout, d, prefix, made, True
        for made in known:
            if (halved := made.each(lambda axis, _: axis.halve())).rows.size * halved.columns.size == patches:
                yield layout, d, prefix, halved, True
        for made in known:
            rows, columns = made.grid
            for step in range(2, min(rows, columns)):
                if rows % step == columns % step == 0 and (rows // step) * (columns // step) == patches:
                    yield layout, d, prefix, made.regrouped((rows // step, columns // step)), False


@dataclass(frozen=True)
class Trace:
    """Everything noted in one forward.

    Attributes:
        calls: by module path, in the order in which they began.
        doubtful: whether a text was as long as an image has tokens, so that the two could be taken for each other.
    """

    calls: dict[str, Call]
    doubtful: bool = False

    def correct(self, longer: "Trace") -> None:
        """Reads every tensor as another forward has shown, in which texts were longer and nothing was in doubt."""
        for path, call in self.calls.items():
            other = longer.calls[path]
            for mine, theirs in zip(call.arguments + call.given, other.arguments + other.given, strict=True):
                if theirs.layout is not None:
                    kinds = theirs.kinds[sum(theirs.shape) - sum(mine.shape) :]
                    mine.layout, mine.d, mine.kinds = theirs.layout, theirs.d, kinds
                    mine.map, mine.hit = theirs.map, theirs.hit


def trace(
    module: nn.Module, forward: Callable[[Tensor], Any], input_hw: tuple[int, int], prefix: tuple[str, ...]
) -> Trace:
    """Runs one forward and notes what every module takes and gives.

    Args:
        module: the native model, whose modules are watched.
        forward: brings a batch `[n, 3, H, W]` through the model.
        input_hw: height and width of the input.
        prefix: kinds of the tokens that the model may put in front of the patches.
    """
    square = Square.on(input_hw)
    return watch(module, lambda: forward(square.images(input_hw)), Tracer(Maps(input_hw), prefix, square))


@torch.no_grad()
def watch(module: nn.Module, run: Callable[[], Any], tracer: Tracer) -> Trace:
    """Notes what every module of a model takes and gives while `run` sends a pair of inputs through it."""
    handles = []
    try:
        for path, child in module.named_modules():
            handles.append(
                child.register_forward_pre_hook(
                    lambda _m, args, kwargs, path=path: tracer.before(path, args, kwargs), with_kwargs=True
                )
            )
            handles.append(child.register_forward_hook(lambda _m, _a, out, path=path: tracer.after(path, out)))
        with tracer.maps:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(dict(sorted(tracer.calls.items(), key=lambda item: item[1].begin)), tracer.doubtful)
