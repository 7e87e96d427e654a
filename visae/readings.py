"""What a module took and gave in a traced forward, read as tokens; and the square that shows where a token lies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from visae.receptive import Map
from visae.sites import Layout

VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

PAIR = 2
"""Inputs that are sent together: without and with the square."""


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


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names of its class's signature and in that order."""
    bound = signature(type(module).forward).bind(module, *args, **kwargs)
    own = [p.name for p in list(bound.signature.parameters.values())[1:] if p.kind not in VARIABLE]
    return {**{name: bound.arguments[name] for name in own if name in bound.arguments}, **kwargs}


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
        made = noise.repeat(PAIR, 1, 1, 1)
        patch = made[1, :, self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        patch.mul_(-1).add_(2.0 - 4.0 * (torch.arange(channels) % 2)[:, None, None])
        return made

    def shows(self, rows: Tensor, grid: Map) -> bool | None:
        """Whether most of the patch tokens `[n, t, d]` that differ most between the last two lie at the square.

        As many tokens are looked at as fit on the square; None where the images do not differ.
        """
        change = (rows[-1].float() - rows[-2].float()).abs().sum(-1)
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
