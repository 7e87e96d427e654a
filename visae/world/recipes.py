"""How the shipped models are made: everything that decides their weights, as data."""

from dataclasses import dataclass, field
from typing import Any

from visae.world.factors import FACTORS

_LABELLED = ("shape", "family", "subfamily", "style", "colour", "background", "count", "size", "position", "rotation")
_PREPROCESS = {
    "size": [64, 64],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def _labels() -> dict[str, list[str]]:
    return {factor: FACTORS[factor] for factor in _LABELLED}


def _n_labels() -> int:
    return sum(len(values) for values in _labels().values())


@dataclass(frozen=True)
class Schedule:
    """What the training loop needs to know of any recipe.

    Attributes:
        name: of the model.
        config: what its configuration file holds.
        steps: optimiser steps.
        batch: images per step.
        lr: peak learning rate of AdamW, after a linear warm-up, then a cosine to 2 %.
        warmup: steps of the warm-up.
        decay: the share of the steps, at the end, over which the learning rate falls; it stays at the peak until then.
        weight_decay: on matrices.
        until: share of the steps after which training ends.
        singles: training images with one object.
        several: training images with one to three objects.
        curriculum: entry l is the share of the steps after which images of difficulty l join in.
        seed: of initialisation and order.
        ema: decay of the running average of the weights, which is what ships.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    steps: int
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 1.0
    weight_decay: float = 0.05
    until: float = 1.0
    singles: int = 80_000
    several: int = 40_000
    curriculum: tuple[float, ...] = (0.0,) * 6
    seed: int = 0
    ema: float = 0.99

    @property
    def last(self) -> int:
        """The step after which training ends."""
        return round(self.until * self.steps)


@dataclass(frozen=True)
class Recipe(Schedule):
    """The training of a vision encoder.

    tiny-clip ends soon after it refines (`until`): longer, and single latents of a dictionary no longer tell colours
    from one another.

    Attributes:
        dense: weight of the auxiliary loss that reads shape, style and colour off patch tokens (its heads are thrown
            away): it makes tokens say what they show where they are, and learning several times faster.
        dense_block: which block's output that loss reads.
        mask: weight of the second auxiliary loss, which reads off early tokens which of their pixels show an object.
        mask_block: which block's output that loss reads.
        refine: share of the steps after which patches at the rim of objects are asked to name nothing: it makes tokens
            say what is at their centre rather than near by.
        curriculum: as in `Schedule`; the easy images come first.
        worn: share of the images that are bent, blurred and stained, see `visae.world.training.wear`.
    """

    dense: float = 0.0
    dense_block: int = -2
    mask: float = 3.0
    mask_block: int = 1
    refine: float = 1.0
    worn: float = 0.0
    curriculum: tuple[float, ...] = (0.0, 0.10, 0.14, 0.18, 0.24, 0.35)


def tiny_clip(vocab_size: int) -> Recipe:
    """Width 160, five blocks, 8 x 8 patch tokens; the text tower is as small as the grammar allows."""
    model = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 160, "layers": 5, "head_width": 32},
        "text_cfg": {
            "context_length": 40,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tokenizer",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }
    return Recipe(
        "tiny-clip",
        {"model_cfg": model, "preprocess_cfg": _PREPROCESS},
        steps=4000,
        dense=1.0,
        refine=0.75,
        until=0.8125,
    )


def tiny_vit() -> Recipe:
    """A timm ViT with a class token and four registers, trained on labels."""
    args = {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": 160,
        "depth": 5,
        "num_heads": 5,
        "class_token": True,
        "reg_tokens": 4,
        "num_classes": _n_labels(),
        # timm's default starts every matrix at a deviation of 0.02, far too small at this width: patches never learn
        # what they show.
        "weight_init": "jax",
        "pre_norm": True,
    }
    stored = {"model_args": args, "preprocess_cfg": _PREPROCESS, "labels": _labels()}
    return Recipe("tiny-vit", stored, steps=5500, dense=1.0)


def judge() -> Recipe:
    """A residual network, trained on labels; it has to read what small generators draw, wobbly outlines and all."""
    args = {"n_labels": _n_labels(), "widths": [32, 64, 96, 128], "image_size": 64}
    stored = {"model_args": args, "preprocess_cfg": _PREPROCESS, "labels": _labels()}
    return Recipe("judge", stored, steps=1300, batch=128, lr=2e-3, curriculum=(0.0,) * 6, worn=0.5)
