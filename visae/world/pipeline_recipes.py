"""How the shipped text-to-image pipelines are made: everything that decides their weights, as data."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from visae.world.models.clip_tokenizer import CONTEXT, END, START, vocabulary
from visae.world.models.t5_tokenizer import t5_vocabulary
from visae.world.recipes import Schedule

LATENT_CHANNELS, LATENT_SIDE = 4, 16
TEXT_WIDTH = 128


@dataclass(frozen=True)
class AutoencoderRecipe(Schedule):
    """The training of the autoencoder that both pipelines share.

    Attributes:
        guided: steps at the beginning in which the encoder learns the first principal components of 4 x 4 patches and
            the decoder reads the components themselves. From scratch, both find no more than grey for a long time.
        noise: noise upon latents in training, in standard deviations of each channel; it is also the spread of the
            posterior that the encoder reports.
        texture: weight of the error of local standard deviations, without which grain and speckles come out smooth.
        features: weight of the error in what `tiny-vit` sees, as a share of its variance (after Johnson et al.,
            "Perceptual losses", 2016): outlines of grainy objects matter more to it than grain, which nobody can keep.
        frozen: whether the encoder stays as it is.
    """

    guided: int = 300
    noise: float = 0.1
    texture: float = 0.5
    features: float = 0.0
    frozen: bool = False


@dataclass(frozen=True)
class PipelineRecipe(Schedule):
    """The training of a denoiser, with its text encoder or behind one that is there.

    Attributes:
        trained: what the pipeline calls the networks that learn, the denoiser first.
        classes: upstream classes of `pipeline`, `denoiser`, `scheduler`, `text_encoder` and `tokenizer`.
        absent: components that the pipeline is told it has not.
        call: arguments that every call of the pipeline needs at this size.
        thorough: share of captions that state shape, style, colour and background; the others come as captions come.
        dropout: share of captions replaced by the empty text, which classifier-free guidance needs.
        focus: share of noise levels that are drawn from where shapes are decided.
        ground: weight of the background in the loss.
        guidance: strength of guidance in the evaluation.
    """

    trained: tuple[str, ...] = ("unet",)
    classes: dict[str, str] = field(default_factory=dict)
    absent: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    thorough: float = 0.75
    dropout: float = 0.1
    focus: float = 0.7
    ground: float = 0.25
    guidance: float = 4.0


def autoencoder() -> AutoencoderRecipe:
    """An `AutoencoderKL` from 64 x 64 pixels to 16 x 16 latents of four channels of unit variance."""
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 32, 64],
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "mid_block_add_attention": False,
    }
    return AutoencoderRecipe(
        "autoencoder", config, steps=2500, batch=16, lr=2e-3, warmup=50, weight_decay=0.01, ema=0.99
    )


def decoder() -> AutoencoderRecipe:
    """What follows `autoencoder`: the decoder goes on alone, and learns to keep what shapes and styles are told by."""
    return replace(
        autoencoder(), name="decoder", steps=4200, lr=1e-3, warmup=100, ema=0.995, guided=0, features=2.0, frozen=True,
    )  # fmt: skip


def _clip_text() -> dict[str, Any]:
    tokens = vocabulary()
    return {
        "vocab_size": len(tokens),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": tokens.index(START),
        "eos_token_id": tokens.index(END),
        "pad_token_id": tokens.index(END),
    }


def tiny_sd() -> PipelineRecipe:
    """A U-Net with cross-attention at 8 x 8 and 4 x 4, trained to predict v, down to noise without any signal."""
    unet = {
        "sample_size": LATENT_SIDE,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [48, 112, 128],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,  # of the block's channels: diffusers reads it as the number of heads
        "norm_num_groups": 16,
    }
    # The cosine schedule ends at a signal of 5e-5: with Stable Diffusion's own, which ends at 0.07, the last step still
    # shows how bright an image is, generation starts from noise that says "grey", and dark backgrounds collapse.
    # UniPC (Zhao et al., 2023) is made for few steps.
    scheduler = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # says nothing here, but diffusers warns of any other
        "solver_order": 3,
    }
    return PipelineRecipe(
        "tiny-sd",
        {"denoiser": unet, "scheduler": scheduler, "text_encoder": _clip_text()},
        steps=24_000,
        batch=32,
        lr=1e-3,
        warmup=200,
        decay=0.25,
        weight_decay=0.01,
        ema=0.998,
        curriculum=(0.0, 0.0, 0.0, 0.0, 0.5, 0.6),
        classes={
            "pipeline": "StableDiffusionPipeline",
            "denoiser": "UNet2DConditionModel",
            "scheduler": "UniPCMultistepScheduler",
            "text_encoder": "CLIPTextModel",
            "tokenizer": "CLIPTokenizer",
        },
        absent={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    )


def tiny_dit() -> PipelineRecipe:
    """A transformer with text cross-attention behind a small T5, trained on straight paths from latents to noise."""
    width, heads = 160, 5
    transformer = {
        "sample_size": LATENT_SIDE,
        "patch_size": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": 8,
        "attention_head_dim": width // heads,
        "num_attention_heads": heads,
        "cross_attention_dim": width,
        "caption_channels": TEXT_WIDTH,
        "use_additional_conditions": False,
    }
    text_encoder = {
        "vocab_size": len(t5_vocabulary()),
        "d_model": TEXT_WIDTH,
        "d_kv": 32,
        "d_ff": 2 * TEXT_WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }
    scheduler = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
    return PipelineRecipe(
        "tiny-dit",
        {"denoiser": transformer, "scheduler": scheduler, "text_encoder": text_encoder},
        steps=31_500,
        batch=32,
        lr=1e-3,
        warmup=500,
        decay=0.25,
        weight_decay=0.01,
        ema=0.998,
        curriculum=(0.0, 0.0, 0.0, 0.0, 0.5, 0.6),
        trained=("transformer", "text_encoder"),
        classes={
            "pipeline": "PixArtAlphaPipeline",
            "denoiser": "PixArtTransformer2DModel",
            "scheduler": "DPMSolverMultistepScheduler",
            "text_encoder": "T5EncoderModel",
            "tokenizer": "T5Tokenizer",
        },
        call={"use_resolution_binning": False, "clean_caption": False},
    )


PIPELINE_RECIPES: dict[str, Callable[[], PipelineRecipe]] = {"tiny-sd": tiny_sd, "tiny-dit": tiny_dit}
"""Pipeline -> function that makes its recipe."""
