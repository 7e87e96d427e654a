"""Centres and receptive fields against gradients: a cell sees the pixels from which a gradient reaches it."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from visae.model import wrap
from visae.receptive import Maps


@st.composite
def layers(draw) -> nn.Module:
    """A convolution, pooling or padding; strides are no longer than kernels, so that fields have no holes."""
    kernel = draw(st.integers(1, 5))
    stride, padding = draw(st.integers(1, min(3, kernel))), draw(st.integers(0, kernel // 2))
    kind = draw(st.sampled_from(["conv", "average", "pad"]))
    if kind == "pad":
        return nn.ZeroPad2d((draw(st.integers(0, 2)), draw(st.integers(0, 2)), padding, 1))
    if kind == "average":
        return nn.AvgPool2d(kernel, stride, padding)
    layer = nn.Conv2d(1, 1, kernel, stride, padding, bias=False)
    nn.init.ones_(layer.weight)
    return layer


@settings(max_examples=60, deadline=None)
@given(stack=st.lists(layers(), min_size=1, max_size=4), size=st.tuples(st.integers(24, 40), st.integers(24, 40)))
def test_a_cell_sees_exactly_the_pixels_its_gradient_reaches(stack, size):
    pixels = torch.ones(1, 1, *size, requires_grad=True)
    maps = Maps(size)
    try:
        with maps:
            out = nn.Sequential(*stack)(pixels)
    except RuntimeError:  # the map has shrunk to nothing
        assume(False)
    found = maps.latest_first()[0]
    assert found.grid == tuple(out.shape[2:])
    for cell in {(0, 0), (found.grid[0] // 2, found.grid[1] // 3), (found.grid[0] - 1, found.grid[1] - 1)}:
        support = torch.autograd.grad(out[0, 0][cell], pixels, retain_graph=True)[0][0, 0] > 0
        for axis, (line, place) in enumerate(zip((found.rows, found.columns), cell, strict=True)):
            seen = support.any(1 - axis).nonzero()[:, 0]
            centre = line.centre + place * line.spacing
            low, high = centre - line.field / 2, centre + line.field / 2
            if len(seen):  # a cell at the border may see padding alone
                assert low - 1e-6 <= float(seen[0])
                assert float(seen[-1]) + 1 <= high + 1e-6
            other = (found.columns, found.rows)[axis]
            middle = other.centre + cell[1 - axis] * other.spacing
            if _inside(centre, line.field, size[axis]) and _inside(middle, other.field, size[1 - axis]):
                assert (float(seen[0]), float(seen[-1]) + 1) == pytest.approx((low, high))


def _inside(centre: float, field: float, size: int) -> bool:
    return centre - field / 2 >= 0 and centre + field / 2 <= size


@pytest.mark.parametrize(("module", "grid", "stride", "offset"), [
    (nn.Conv2d(3, 4, 16, 16), (4, 6), 16, 0),
    (nn.Conv2d(3, 4, 16, 8), (7, 11), 8, 4),  # overlapping patches: the cell of 8 pixels in the middle of 16
    (nn.Conv2d(3, 4, 3, 2, 1), (32, 48), 2, -0.5),  # first centre on pixel 0
    (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.MaxPool2d(2)), (8, 12), 8, 0),
    (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d((4, 6))), (4, 6), 16, 0),
    (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Upsample(scale_factor=2)), (32, 48), 2, 0),
    (nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, 4, 1)), (8, 12), 8, 0),
])  # fmt: skip
def test_stems_in_closed_form(module, grid, stride, offset):
    site = wrap(module, image_size=(64, 96)).site("")
    assert (site.grid, site.stride, site.offset) == (grid, (stride, stride), (offset, offset))
