"""A convolutional classifier of every factor, of another family than the models under study: it only ever judges."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first may halve the resolution."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out),
        )  # fmt: skip
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x) + self.shortcut(x))


class Judge(nn.Module):
    """A small residual network with one output per (factor, value).

    Args:
        n_labels: outputs.
        widths: channels of the stages; the resolution halves between stages.
        image_size: side of the images.
    """

    def __init__(self, n_labels: int, widths: tuple[int, ...] = (32, 64, 96, 128), image_size: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks = [_Block(widths[0], widths[0], 1)]
        for n_in, n_out in pairwise(widths):
            blocks += [_Block(n_in, n_out, 2), _Block(n_out, n_out, 1)]
        self.body = nn.Sequential(*blocks)
        side = image_size // 2 ** len(widths)
        self.head = nn.Linear(widths[-1] * side * side, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, 3, S, S]` to logits `[B, n_labels]`: sigmoid says whether a value is present."""
        return self.head(self.body(self.stem(x)).flatten(1))
