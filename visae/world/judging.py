"""What pictures of the built-in world show, by the shipped judge: the oracle for what a pipeline has drawn."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from visae.world import models

if TYPE_CHECKING:
    from torch import nn

_BATCH = 250


@cache
def _judge() -> "nn.Module":
    return models.build("judge")


@torch.inference_mode()
def judged(pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
    """The likeliest value of every factor in every picture.

    Args:
        pictures: of any size; they are brought to the judge's 64 pixels.

    Returns:
        Factor -> one value for each picture, e.g. `{"shape": ["star", ...], "colour": ["red", ...]}`.
    """
    from visae.world.training.tasks import normalised

    config = models.config("judge")
    side = config["preprocess_cfg"]["size"]
    fitted = [p.convert("RGB").resize(side, Image.Resampling.BICUBIC) for p in pictures]
    logits = torch.cat(
        [
            _judge()(normalised(np.stack([np.asarray(p) for p in fitted[i : i + _BATCH]]), config["preprocess_cfg"]))
            for i in range(0, len(fitted), _BATCH)
        ]
    )
    values = logits.split([len(values) for values in config["labels"].values()], dim=1)
    return {
        factor: [names[place] for place in part.argmax(1).tolist()]
        for (factor, names), part in zip(config["labels"].items(), values, strict=True)
    }
