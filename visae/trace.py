"""What flows through a model: one forward pass, in which every tensor that a module takes or gives is read as tokens.

Two images go through together: noise, and the same noise with a square painted on it. Where a tensor could be read in
more than one way (which axis is the batch, which the channels), the reading in which the square shows up at its own
place is the right one.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visae.receptive import Map, Maps
from visae.sites import Layout, to_tokens

IMAGES = 2
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


@dataclass
class Reading:
    """A tensor read as tokens.

    Attributes:
        shape: of the native tensor.
        index: place or key in what the module gave; None for a plain tensor.
        layout: how the tensor is laid out; None where it could not be read as tokens, a map or a vector per image.
        d: length of a token vector.
        kinds: kind of every token.
        map: grid of the patch tokens; None where there is none.
        hit: whether the painted square shows up at its place; None where the two images do not differ.
        overwritten: whether a later operation works in place on the tensor.
    """

    shape: tuple[int, ...]
    index: int | str | None = None
    layout: Layout | None = None
    d: int = 0
    kinds: tuple[str, ...] = ()
    map: Map | None = None
    hit: bool | None = None
    overwritten: bool = False

    @property
    def stream(self) -> tuple[Any, ...]:
        """What tensors that carry the same tokens have in common."""
        return self.layout, self.kinds, self.map.grid if self.map else None


@dataclass
class Call:
    """One module during the traced forward: when it ran, what it took and gave.

    Attributes:
        path: module path.
        begin: place in the order in which modules started.
        end: place in the order in which modules finished.
        runs: how often it ran.
        arguments: its tensor arguments; the index of each is its place or name.
        given: every tensor that it gave.
    """

    path: str
    begin: int
    end: int = -1
    runs: int = 1
    arguments: list[Reading] = field(default_factory=list)
    given: list[Reading] = field(default_factory=list)

    @property
    def taken(self) -> Reading | None:
        """The first argument."""
        return self.arguments[0] if self.arguments else None

    def source(self, given: Reading) -> Reading | None:
        """The argument that a given tensor continues: the first with its shape and tokens, else the first of all."""
        same = (a for a in self.arguments if a.shape == given.shape and a.kinds == given.kinds)
        return next(same, self.taken)

    @property
    def text(self) -> bool:
        """Whether it gave the tokens of a text among others."""
        return any(set(given.kinds) == {"text"} for given in self.given)

    @property
    def output(self) -> Reading | None:
        """The first given tensor that could be read, with a grid before others."""
        read = [reading for reading in self.given if reading.layout]
        return next((r for r in read if r.map), read[0] if read else None)


def tensors(value: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """Tensors that a module gave, with their place or key."""
    if isinstance(value, Tensor):
        yield None, value
    elif isinstance(value, Mapping):
        yield from ((key, item) for key, item in value.items() if isinstance(item, Tensor))
    elif isinstance(value, tuple | list):
        yield from ((i, item) for i, item in enumerate(value) if isinstance(item, Tensor))


def floating(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[int | str, Tensor]]:
    """The floating tensors among the arguments of a module, and their places or names."""
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return [(key, v) for key, v in named if isinstance(v, Tensor) and v.is_floating_point()]


@dataclass(frozen=True)
class Square:
    """Where the square is painted, in input pixels, or in cells of `cell` input pixels."""

    top: int
    left: int
    size: tuple[int, int]
    cell: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def on(cls, input_hw: tuple[int, int], cell: tuple[float, float] = (1.0, 1.0)) -> "Square":
        """A square an eighth as large as the input (given in cells), off both diagonals."""
        height, width = input_hw
        return cls(int(height * 0.25), int(width * 0.6875), (max(1, height // 8), max(1, width // 8)), cell)

    def images(self, input_hw: tuple[int, int], channels: int = 3) -> Tensor:
        """Noise without and with the square, `[2, channels, H, W]` in float32, H and W counting cells."""
        noise = torch.randn(1, channels, *input_hw, generator=torch.Generator().manual_seed(0)).mul_(0.5)
        made = noise.repeat(IMAGES, 1, 1, 1)
        patch = made[1, :, self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        patch.mul_(-1).add_(2.0 - 4.0 * (torch.arange(channels) % 2)[:, None, None])
        return made

    def shows(self, rows: Tensor, grid: Map) -> bool | None:
        """Whether most of the patch tokens `[2, t, d]` that differ most between the images lie at the square.

        As many tokens are looked at as fit on the square; None where the images do not differ.
        """
        change = (rows[1].float() - rows[0].float()).abs().sum(-1)
        if not bool(change.max() > 0):
            return None
        axes = (grid.rows, grid.columns)
        sides = [size * cell for size, cell in zip(self.size, self.cell, strict=True)]
        room = [max(1.0, side / axis.spacing) for axis, side in zip(axes, sides, strict=True)]
        peaks = change.topk(min(len(change), int(room[0] * room[1]))).indices
        places = (peaks // grid.grid[1], peaks % grid.grid[1])
        corner = (self.top * self.cell[0], self.left * self.cell[1])
        on = [
            (axis.centre + places[i] * axis.spacing - corner[i] - sides[i] / 2).abs() <= sides[i] / 2 + axis.spacing
            for i, axis in enumerate(axes)
        ]
        return bool((on[0] & on[1]).float().mean() >= 0.5)


class Tracer:
    """Hooks on every module that note what flows through; see `trace`.

    Args:
        maps: follows the grids.
        prefix: kinds of the tokens that the model may put in front of the patches.
        square: what is painted on one of the two inputs.
        texts: lengths of the texts that go along with the image.
    """

    def __init__(self, maps: Maps, prefix: tuple[str, ...], square: Square, texts: Sequence[int] = ()):
        self.maps, self.square, self.texts = maps, square, texts
        options = [prefix, (), tuple(k for k in prefix if k == "cls"), tuple(k for k in prefix if k == "reg")]
        self.prefixes = list(dict.fromkeys([*options, *(("text",) * length for length in texts)]))
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
        if not known:
            return reading
        best = next((r for r in known if r.hit), known[0])
        if best.map is not None and best.map.grid not in self.maps and (best.hit or value.dim() == 3):
            self.maps.file(best.map)
        return best

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
        if value.dim() == 2 and shape[0] == IMAGES:
            yield "NC", shape[1], ("pooled",), None, True
        elif value.dim() == 4 and shape[0] == IMAGES:
            yield from self._guess_map("NCHW", shape[1], shape[2:])
            yield from self._guess_map("NHWC", shape[3], shape[1:3])
        elif value.dim() == 3:
            for layout, batch, length in (("NLC", shape[0], shape[1]), ("LNC", shape[1], shape[0])):
                if batch == IMAGES:
                    yield from self._guess_sequence(layout, shape[2], length)  # type: ignore[arg-type]

    def _guess_map(self, layout: Layout, d: int, grid: tuple[int, ...]) -> Iterator[Any]:
        if tuple(grid) == (1, 1):
            yield layout, d, ("pooled",), None, True
        elif (found := self.maps.get(tuple(grid))) is not None:  # type: ignore[arg-type]
            yield layout, d, (), found, True

    def _guess_sequence(self, layout: Layout, d: int, length: int) -> Iterator[Any]:
        known = self.maps.latest_first()
        if length in self.texts:
            yield layout, d, ("text",) * length, None, True
        if length == 1:
            yield layout, d, ("cls",) if "cls" in self.prefixes[0] else ("pooled",), None, True
            return
        for prefix in self.prefixes:
            patches = length - len(prefix)
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
    """Everything noted in one forward: calls by module path, in the order in which they began."""

    calls: dict[str, Call]


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
    return Trace(dict(sorted(tracer.calls.items(), key=lambda item: item[1].begin)))
