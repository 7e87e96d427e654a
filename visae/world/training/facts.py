"""Scenes and captions as small integer arrays, so that the truth of many captions about many images is one sum."""

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from visae.world.captions import Caption
from visae.world.factors import FACTORS, ROTATIONLESS
from visae.world.scene import Scene

FACT_FACTORS = ("shape", "family", "subfamily", "style", "colour", "size", "position", "rotation")
N_SLOTS = 3
_NOWHERE = -2
"""Marks the slots of objects that an image does not have: no statement is true of them."""
_SHAPE, _ROTATION = FACT_FACTORS.index("shape"), FACT_FACTORS.index("rotation")
_TURNLESS = [FACTORS["shape"].index(shape) for shape in ROTATIONLESS]


def scene_facts(scene: Scene) -> np.ndarray:
    """`[3 * 8 + 2]` int8: the factors of up to three objects, then background and count."""
    out = np.full(N_SLOTS * len(FACT_FACTORS) + 2, _NOWHERE, np.int8)
    for slot, thing in enumerate(scene.things):
        known = thing.labels
        for f, factor in enumerate(FACT_FACTORS):
            out[slot * len(FACT_FACTORS) + f] = FACTORS[factor].index(known[factor])
    out[-2] = FACTORS["background"].index(scene.background)
    out[-1] = FACTORS["count"].index(scene.count)
    return out


def caption_facts(caption: Caption) -> np.ndarray:
    """`[3 * 8 + 2]` int8 in the same order, -1 for what is left open."""
    out = np.full(N_SLOTS * len(FACT_FACTORS) + 2, -1, np.int8)
    for slot, stated in enumerate(caption.things):
        for factor, value in stated.items():
            out[slot * len(FACT_FACTORS) + FACT_FACTORS.index(factor)] = FACTORS[factor].index(value)
    if caption.background is not None:
        out[-2] = FACTORS["background"].index(caption.background)
    if caption.count is not None:
        out[-1] = FACTORS["count"].index(caption.count)
    return out


def truth(scenes: Tensor, captions: Tensor) -> Tensor:
    """Which captions are true of which images.

    Args:
        scenes: `[n, 26]` from `scene_facts`.
        captions: `[m, 26]` from `caption_facts`.

    Returns:
        `[n, m]` bool, the same as `Caption.holds`.
    """
    n, m, width = len(scenes), len(captions), len(FACT_FACTORS)
    have = scenes[:, :-2].reshape(n, 1, N_SLOTS, 1, width)
    say = captions[:, :-2].reshape(1, m, 1, N_SLOTS, width)
    fits = torch.ones(n, m, N_SLOTS, N_SLOTS, dtype=torch.bool, device=scenes.device)
    for f in range(width):
        fits &= (say[..., f] < 0) | (say[..., f] == have[..., f])
    things = torch.zeros(n, m, dtype=torch.bool, device=scenes.device)
    for order in permutations(range(N_SLOTS)):
        things |= fits[:, :, order[0], 0] & fits[:, :, order[1], 1] & fits[:, :, order[2], 2]
    ground = (captions[None, :, -2:] < 0) | (captions[None, :, -2:] == scenes[:, None, -2:])
    return things & ground.all(-1)


def presence(scenes: Tensor, factors: dict[str, list[str]]) -> tuple[Tensor, Tensor]:
    """Which values are present in which images.

    Args:
        scenes: `[n, 26]` from `scene_facts`.
        factors: factor -> values, in the order of the outputs.

    Returns:
        (`[n, C]` float 0 or 1, `[n, C]` float weight: 0 where nobody could see the answer, the rotation of a circle).
    """
    n = len(scenes)
    things = scenes[:, :-2].reshape(n, N_SLOTS, len(FACT_FACTORS)).long()
    blind = torch.isin(things[:, :, _SHAPE], torch.tensor(_TURNLESS, device=scenes.device)).any(1)
    columns, weights = [], []
    for factor, values in factors.items():
        codes = torch.arange(len(values), device=scenes.device)
        if factor in ("background", "count"):
            column = scenes[:, -2 if factor == "background" else -1, None].long() == codes
        else:
            column = (things[:, :, FACT_FACTORS.index(factor), None] == codes).any(1)
        columns.append(column.float())
        seen = ~blind if factor == "rotation" else torch.ones_like(blind)
        weights.append(seen[:, None].float().expand(n, len(values)))
    return torch.cat(columns, 1), torch.cat(weights, 1)


def difficulty(scenes: np.ndarray) -> np.ndarray:
    """How hard it is to make out the shape in each image, for the curriculum.

    Args:
        scenes: `[n, 26]` from `scene_facts`.

    Returns:
        `[n]` 0 one large upright object in a plain style, 1 the same at any angle, 2 in any style, 3 also of medium
        size, 4 of any size, 5 several objects.
    """
    size, turn, style = (scenes[:, FACT_FACTORS.index(factor)] for factor in ("size", "rotation", "style"))
    plain = np.isin(style, [FACTORS["style"].index(name) for name in ("flat", "outline", "gradient")])
    upright = turn == FACTORS["rotation"].index("upright")
    by_size = np.select([size == FACTORS["size"].index(name) for name in ("large", "medium")], [2, 3], 4)
    one = np.where((by_size == 2) & plain, np.where(upright, 0, 1), by_size)
    return np.where(scenes[:, -1] == FACTORS["count"].index("one"), one, 5)
