"""What pictures of the built-in world show, by the shipped judges: the oracles for what a pipeline has drawn.

Two of different families: `judged`, a convolutional network that was trained to name every factor, and `clip_judged`,
which asks `tiny-clip` zero-shot which caption is nearest. What one of them could be fooled by need not fool the other.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visae.adapted import revision_of
from visae.world import models
from visae.world.factors import FACTORS

if TYPE_CHECKING:
    from torch import nn

_BATCH = 250
_ZERO_SHOT = ("shape", "style", "colour", "background")


@cache
def _model(name: str) -> "nn.Module":
    return models.build(name)


@cache
def judges_revision() -> list[str]:
    """Revisions of the two judges; another judge sees other things."""
    return [revision_of(_model(name)) for name in ("judge", "tiny-clip")]


@cache
def _class_codes(factor: str) -> Tensor:
    """Text codes of the values of a factor."""
    from visae.world.training.evaluate import class_codes

    return class_codes(_model("tiny-clip"), models.tokenizer(), factor)


@torch.inference_mode()
def judged(pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
    """The likeliest value of every factor in every picture.

    Args:
        pictures: of any size; they are brought to the judge's 64 pixels.

    Returns:
        Factor -> one value for each picture, e.g. `{"shape": ["star", ...], "colour": ["red", ...]}`.
    """
    labels = models.config("judge")["labels"]
    logits = torch.cat([_model("judge")(pixels) for pixels in _fitted(pictures, "judge")])
    return _likeliest(
        dict(zip(labels, logits.split([len(names) for names in labels.values()], 1), strict=True)), labels
    )


@torch.inference_mode()
def clip_judged(pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
    """For some factors the value whose captions are nearest to the picture in the space of `tiny-clip`.

    Args:
        pictures: of any size; they are brought to 64 pixels.

    Returns:
        As `judged`, of the factors shape, style, colour and background.
    """
    codes = clip_vectors(pictures)
    return _likeliest({factor: codes @ _class_codes(factor).T for factor in _ZERO_SHOT}, FACTORS)


@torch.inference_mode()
def clip_vectors(pictures: Sequence[Image.Image]) -> Tensor:
    """Vectors `[n, 128]` of unit length of pictures of any size, in the space of `tiny-clip`."""
    model: Any = _model("tiny-clip")
    return torch.cat([model.encode_image(pixels, normalize=True) for pixels in _fitted(pictures, "tiny-clip")])


def _fitted(pictures: Sequence[Image.Image], name: str) -> list[Tensor]:
    """Pictures as a model eats them, in batches."""
    from visae.world.training.tasks import normalised

    config = models.preprocess_config(name)
    small = [p.convert("RGB").resize(tuple(config["size"]), Image.Resampling.BICUBIC) for p in pictures]
    return [
        normalised(np.stack([np.asarray(p) for p in small[start : start + _BATCH]]), config)
        for start in range(0, len(small), _BATCH)
    ]


def _likeliest(scores: dict[str, Tensor], values: dict[str, list[str]]) -> dict[str, list[str]]:
    return {factor: [values[factor][place] for place in part.argmax(1).tolist()] for factor, part in scores.items()}
