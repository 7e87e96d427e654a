"""Where the cells of a feature map lie on the input: stride, first centre and receptive field, measured in one forward.

A convolution or pooling with kernel k, dilation d, stride s and padding p in front turns cells with spacing j, first
centre c and receptive field r into cells with spacing `j s`, first centre `c + ((k - 1) d / 2 - p) j` and receptive
field `r + (k - 1) d j` (Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", 2019).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
HW = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """Cells along one axis of a map: how many, how far apart, where the first one looks, how far each one sees."""

    size: int
    spacing: float = 1.0
    centre: float = 0.5
    field: float = 1.0

    def slide(self, kernel: int, stride: int, before: float, dilation: int, size: int) -> "Axis":
        """Cells after a kernel has slid over these, with `before` cells of padding in front."""
        span = (kernel - 1) * dilation
        centre = self.centre + (span / 2 - before) * self.spacing
        return Axis(size, self.spacing * stride, centre, self.field + span * self.spacing)

    def regroup(self, size: int) -> "Axis":
        """Cells after merging these into fewer (patch merging, adaptive pooling) or splitting them (upsampling)."""
        ratio = self.size / size
        centre = self.centre + (ratio - 1) / 2 * self.spacing
        return Axis(size, self.spacing * ratio, centre, self.field + max(ratio - 1, 0) * self.spacing)

    def halve(self) -> "Axis":
        """Cells after merging these two by two, the last one with padding where their number is odd."""
        return self.slide(2, 2, 0, 1, -(-self.size // 2))

    def pad(self, before: int, size: int) -> "Axis":
        """Cells after padding (or, negative, cropping) in front."""
        return Axis(size, self.spacing, self.centre - before * self.spacing, self.field)

    @property
    def begin(self) -> float:
        """Input coordinate where the first cell begins: half the spacing before its centre."""
        return self.centre - self.spacing / 2

    def reach(self, size: int) -> tuple[float, float]:
        """Part of an input of this size that the receptive fields of the cells cover."""
        last = self.centre + (self.size - 1) * self.spacing
        return max(0.0, self.centre - self.field / 2), min(float(size), last + self.field / 2)


@dataclass(frozen=True)
class Map:
    """A grid of cells: rows and columns, and the input that they lie on."""

    rows: Axis
    columns: Axis
    input_hw: HW

    @property
    def grid(self) -> HW:
        """Number of rows and columns."""
        return self.rows.size, self.columns.size

    def regrouped(self, grid: HW) -> "Map":
        """The cells merged or split into another grid."""
        return self.each(lambda axis, i: axis.regroup(grid[i]))

    def each(self, change: Callable[[Axis, int], Axis]) -> "Map":
        """Changes rows (0) and columns (1) alike."""
        return Map(change(self.rows, 0), change(self.columns, 1), self.input_hw)


class Maps(TorchDispatchMode):
    """Follows the grids that convolutions, poolings, padding and resizing make, while it is entered.

    Grids are told apart by their size alone; of two grids of one size the later one counts. The first is that of the
    pixels, where no other is given.
    """

    def __init__(self, input_hw: HW, first: Map | None = None):
        super().__init__()
        self._known: dict[HW, Map] = {}
        self.file(first or Map(Axis(input_hw[0]), Axis(input_hw[1]), input_hw))

    def file(self, made: Map) -> None:
        """Notes a grid."""
        self._known.pop(made.grid, None)
        self._known[made.grid] = made

    def __contains__(self, grid: object) -> bool:
        return grid in self._known

    def latest_first(self) -> list[Map]:
        """Grids seen so far."""
        return list(reversed(self._known.values()))

    def get(self, grid: HW) -> Map | None:
        """The grid of this size, or one made by merging a grid that was seen in whole steps; None where neither is."""
        if grid in self._known:
            return self._known[grid]
        for known in self.latest_first():
            if (halved := known.each(lambda axis, _: axis.halve())).grid == grid:
                return halved
        for known in self.latest_first():
            ratios = {big / small for big, small in zip(known.grid, grid, strict=True)}
            if len(ratios) == 1 and (ratio := ratios.pop()) > 1 and ratio == int(ratio):
                return known.regrouped(grid)
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and files the grid that it makes.

        What is resized to a grid that exists already is on its way to being added there, and does not move it.
        """
        out = func(*args, **(kwargs or {}))
        rule = RULES.get(func.overloadpacket)
        made = out[0] if isinstance(out, tuple | list) else out
        if rule and isinstance(args[0], Tensor) and args[0].dim() == 4 and made.dim() == 4:
            before = self.get(tuple(args[0].shape[2:]))  # type: ignore[arg-type]
            grid: HW = tuple(made.shape[2:])  # type: ignore[assignment]
            if before is not None and not (rule is _regroup and grid in self._known):
                self.file(rule(before, grid, *args[1:]))
        return out


def _pair(value: int | Sequence[int], default: Sequence[int] = ()) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    found = list(value) or list(default)
    return found[0], found[-1]


def _slide(before: Map, grid: HW, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> Map:
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride, kernel)
    return before.each(lambda axis, i: axis.slide(kernel[i], stride[i], padding[i], dilation[i], grid[i]))


def _convolution(
    before: Map,
    grid: HW,
    weight: Tensor,
    _bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool = False,
    *_: Any,
) -> Map:
    if transposed:
        return before.regrouped(grid)
    return _slide(before, grid, weight.shape[2:], stride, padding, dilation)


def _max_pool(
    before: Map, grid: HW, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Map:
    return _slide(before, grid, kernel, stride, padding, dilation)


def _average_pool(before: Map, grid: HW, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any) -> Map:
    return _slide(before, grid, kernel, stride, padding, 1)


def _pad(before: Map, grid: HW, amounts: Sequence[int], *_: Any) -> Map:
    left, top = amounts[0], amounts[2] if len(amounts) > 2 else 0
    return before.each(lambda axis, i: axis.pad((top, left)[i], grid[i]))


def _regroup(before: Map, grid: HW, *_: Any) -> Map:
    return before.regrouped(grid)


RULES: dict[Any, Callable[..., Map]] = {
    aten.convolution: _convolution,
    aten.max_pool2d: _max_pool,
    aten.max_pool2d_with_indices: _max_pool,
    aten.avg_pool2d: _average_pool,
    aten.constant_pad_nd: _pad,
    aten.reflection_pad2d: _pad,
    aten.replication_pad2d: _pad,
    aten._adaptive_avg_pool2d: _regroup,
    aten.adaptive_max_pool2d: _regroup,
    aten.upsample_bilinear2d: _regroup,
    aten.upsample_nearest2d: _regroup,
    aten.upsample_bicubic2d: _regroup,
}
"""What each operation does to a grid, by the operation's name in torch."""
