"""Images that have suffered, as those of a small generator have, with what they show still plain to see."""

import torch
from torch import Tensor
from torch.nn import functional

BENDS = ((4, 1.5), (12, 1.0))
"""Knots along a side, and by how many pixels the strongest bend moves them (standard deviation)."""
STAINS = 0.12
"""Standard deviation of the strongest stains, in that of the images."""


def worn(images: Tensor, share: float, seed: int) -> Tensor:
    """Some of the images bent, blurred and stained, each by an amount of its own; the others as they are.

    Oracles that saw clean drawings alone take a disc with a wobbly outline for a heart.

    Args:
        images: `[B, 3, S, S]` of about unit variance.
        share: of the images that are worn.
        seed: decides which, and how.
    """
    draw = torch.Generator().manual_seed(seed)
    n, _, side, _ = images.shape

    def amount(most: float) -> Tensor:
        return most * torch.rand(n, 1, 1, 1, generator=draw)

    def field(channels: int, knots: int) -> Tensor:
        noise = torch.randn(n, channels, knots, knots, generator=draw)
        return functional.interpolate(noise, (side, side), mode="bicubic", align_corners=False)

    with torch.autocast("cpu", enabled=False):  # bf16 would round places
        moved = sum((amount(most) * field(2, knots) for knots, most in BENDS), start=torch.zeros(n, 2, side, side))
        place = functional.affine_grid(torch.eye(2, 3).expand(n, 2, 3), [n, 3, side, side], align_corners=False)
        grid = place + moved.permute(0, 2, 3, 1) * 2 / side
        stains = amount(STAINS) * field(3, side // 4)
        blur, chosen = amount(1.0), torch.rand(n, 1, 1, 1, generator=draw) < share
        bent = functional.grid_sample(
            images.float(), grid.to(images.device), padding_mode="reflection", align_corners=False
        )  # fmt: skip
        soft = functional.avg_pool2d(functional.pad(bent, (1, 1, 1, 1), mode="replicate"), 3, 1)
        suffered = bent.lerp(soft, blur.to(images.device)) + stains.to(images.device)
    return torch.where(chosen.to(images.device), suffered, images.float())
