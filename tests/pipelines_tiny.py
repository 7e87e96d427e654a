"""Pipelines of every class that visae names, at toy size with random weights: one row of `PIPELINES` each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

WORDS = ("a", "red", "blue", "green", "square", "circle", "star", "on", "grey")


def clip_tokenizer(length=12):
    """A CLIP tokenizer that knows a few words whole."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{c}</w>" for c in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            pieces.append(parts[0])
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    merges = [tuple(m.split()) for m in dict.fromkeys(merges)]
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def clip_text(width=16, projected=None, layers=3):
    """A CLIP text model; with `projected`, one that also gives a vector of that length."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=200, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=12, projection_dim=projected or width,
        bos_token_id=clip_tokenizer().bos_token_id, eos_token_id=clip_tokenizer().eos_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def vae(channels=4, levels=2):
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels, in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip


def unet(context=16, size=8, **more):
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=size, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=context, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    )  # fmt: skip


def stable_diffusion(scheduler=None):
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=vae(), unet=unet(), text_encoder=clip_text(), tokenizer=clip_tokenizer(),
        scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_start=0.00085,
                                                       beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A pipeline class, and what is known of it without visae.

    Attributes:
        make: builds it.
        block: name of a block in the middle of the denoiser that carries image tokens.
        grid: rows and columns of that block's tokens, for an image of `size`.
        size: height and width of its images in pixels.
        guided: branches of a batch of one image under the row's options.
        options: arguments of the call.
        prompts: two.
    """

    make: Callable[[], Any]
    block: str
    grid: tuple[int, int]
    size: tuple[int, int] = (16, 16)
    guided: tuple[str, ...] = ("uncond", "cond")
    options: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[Any, Any] = ("a red square", "blue star on grey")


PIPELINES = {
    "sd": Row(stable_diffusion, "unet.mid_block.attentions.0", (4, 4)),
}


def build(name):
    """A pipeline of the table; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PIPELINES[name].make()
    made.set_progress_bar_config(disable=True)
    return made
