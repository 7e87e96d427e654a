"""Pipelines of every class that visae names, at toy size with random weights: one row of `PIPELINES` each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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


def vae(channels=4, levels=2, shift=None):
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels, in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        shift_factor=shift, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip


def t5_tokenizer(length=12):
    import transformers

    letters = [(c, -8.0) for c in "abcdefghijklmnopqrstuvwxyz▁"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    return transformers.T5Tokenizer(vocab=special + words + letters, extra_ids=0, model_max_length=length)


def t5_text(width=16):
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    )


def gemma_text(width=16):
    import transformers

    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=64, hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, eos_token_id=1, pad_token_id=0, bos_token_id=2,
        )
    )  # fmt: skip


def unet(context=16, size=8, **more):
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=size, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=context,
        **{"attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
           "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **more},
    )  # fmt: skip


def stable_diffusion(scheduler=None, **more):
    import diffusers

    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return diffusers.StableDiffusionPipeline(
        vae=vae(), unet=unet(**more), text_encoder=clip_text(), tokenizer=clip_tokenizer(),
        scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, **beta),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_2():
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    return stable_diffusion(scheduler, use_linear_projection=True, attention_head_dim=(1, 2))


def stable_diffusion_xl(scheduler=None):
    import diffusers

    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
              "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_text(16), tokenizer=clip_tokenizer(), text_encoder_2=clip_text(8, projected=8),
        tokenizer_2=clip_tokenizer(), scheduler=scheduler or diffusers.EulerDiscreteScheduler(),
        unet=unet(24, transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
                  projection_class_embeddings_input_dim=8 + 6 * 8, use_linear_projection=True, **blocks),
        add_watermarker=False,
    )  # fmt: skip


def turbo():
    import diffusers

    return stable_diffusion_xl(diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"))


def pixart(sigma=False):
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=16, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    return kind(transformer=transformer, vae=vae(), text_encoder=t5_text(), tokenizer=t5_tokenizer(),
                scheduler=diffusers.DPMSolverMultistepScheduler())  # fmt: skip


def dit():
    import diffusers

    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=diffusers.DDIMScheduler())


def stable_diffusion_3(dual=()):
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=24,
        pos_embed_max_size=32, dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(shift=0.1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(16, projected=16), tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(),
        text_encoder_2=clip_text(8, projected=8), text_encoder_3=t5_text(32), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux(guidance=True):
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4), guidance_embeds=guidance,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=vae(shift=0.1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(16), tokenizer=clip_tokenizer(), text_encoder_2=t5_text(32), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def sana():
    import diffusers

    blocks = {"block_types": "ResBlock", "block_out_channels": (8, 8), "layers_per_block": (1, 1),
              "qkv_multiscales": ((), ())}  # fmt: skip
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2,
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in blocks.items()},
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, caption_channels=16,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, sample_size=8, patch_size=1,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                                      flow_shift=3.0)  # fmt: skip
    return diffusers.SanaPipeline(transformer=transformer, vae=autoencoder, scheduler=scheduler,
                                  text_encoder=gemma_text(), tokenizer=t5_tokenizer())  # fmt: skip


def aura_flow():
    import diffusers
    import transformers

    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    )
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=1024,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(tokenizer=t5_tokenizer(), text_encoder=text, vae=vae(), transformer=transformer,
                                      scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))  # fmt: skip


def cogview_4():
    import diffusers
    import transformers

    text = transformers.GlmModel(
        transformers.GlmConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(tokenizer=t5_tokenizer(), text_encoder=text, vae=vae(), transformer=transformer,
                                      scheduler=scheduler)  # fmt: skip


def lumina_2():
    import diffusers

    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        vae=vae(levels=4, shift=0.1),
        text_encoder=gemma_text(),
        tokenizer=t5_tokenizer(20),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def deepfloyd():
    import diffusers

    denoiser = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(32, 64), in_channels=3, out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), cross_attention_norm="group_norm",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=32, encoder_hid_dim=16,
        attention_head_dim=8, addition_embed_type="text", addition_embed_type_num_heads=2, act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return diffusers.IFPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5_text(), unet=denoiser, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"), watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip


def perturbed():
    import diffusers

    return diffusers.StableDiffusionPAGPipeline(
        **stable_diffusion().components, requires_safety_checker=False, pag_applied_layers="mid"
    )


@dataclass(frozen=True)
class Row:
    """A pipeline class, and what is known of it without visae.

    Attributes:
        make: builds it.
        block: name of a block in the middle of the denoiser that carries image tokens.
        grid: rows and columns of that block's tokens, for an image of `size`.
        size: height and width of its images in pixels.
        prefix: text tokens in front of the image's.
        branches: of the calls of one step, of one image under the row's options.
        options: arguments of every call.
        prompts: two.
    """

    make: Callable[[], Any]
    block: str
    grid: tuple[int, int]
    size: tuple[int, int] = (16, 24)
    branches: tuple[tuple[str, ...], ...] = (("uncond", "cond"),)
    options: dict[str, Any] = field(default_factory=dict)
    prefix: int = 0
    prompts: tuple[Any, Any] = ("a red square", "blue star on grey")


SHORT = {"max_sequence_length": 10}
PIPELINES = {
    "sd": Row(stable_diffusion, "unet.mid_block.attentions.0", (4, 6)),
    "sd2": Row(stable_diffusion_2, "unet.up_blocks.1.attentions.1", (8, 12)),
    "sdxl": Row(stable_diffusion_xl, "unet.down_blocks.1.attentions.0.transformer_blocks.1", (4, 6)),
    "turbo": Row(turbo, "unet.up_blocks.0.attentions.1", (4, 6), branches=(("none",),),
                 options={"guidance_scale": 0.0}),
    "pixart-alpha": Row(pixart, "transformer.transformer_blocks.0", (4, 6), options=SHORT),
    "pixart-sigma": Row(partial(pixart, sigma=True), "transformer.transformer_blocks.1", (4, 6), options=SHORT),
    "dit": Row(dit, "transformer.transformer_blocks.1", (4, 4), (16, 16), (("cond", "uncond"),), prompts=(3, 7)),
    "sd3": Row(stable_diffusion_3, "transformer.transformer_blocks.0", (4, 6), options=SHORT),
    "sd35": Row(partial(stable_diffusion_3, dual=(0,)), "transformer.transformer_blocks.0", (4, 6), options=SHORT),
    "flux": Row(flux, "transformer.transformer_blocks.1", (4, 6), branches=(("none",),), options=SHORT),
    "flux-guided": Row(partial(flux, guidance=False), "transformer.single_transformer_blocks.0", (4, 6),
                       branches=(("cond",), ("uncond",)),
                       options={**SHORT, "true_cfg_scale": 2.0, "negative_prompt": "grey"}),
    "sana": Row(sana, "transformer.transformer_blocks.1", (16, 32), (32, 64),
                options={**SHORT, "complex_human_instruction": None}),
    "aura": Row(aura_flow, "transformer.single_transformer_blocks.0", (4, 6), prefix=18, options=SHORT),
    "cogview4": Row(cogview_4, "transformer.transformer_blocks.0", (4, 8), (16, 32), branches=(("cond",), ("uncond",)),
                    options={"max_sequence_length": 16}),
    "lumina2": Row(lumina_2, "transformer.noise_refiner.0", (4, 6), (64, 96), branches=(("cond",), ("uncond",)),
                   options={"max_sequence_length": 20, "system_prompt": "a"}),
    "if": Row(deepfloyd, "unet.mid_block", (8, 12)),
    "pag": Row(perturbed, "unet.mid_block.attentions.0", (4, 6), branches=(("uncond", "cond", "none"),),
               options={"pag_scale": 3.0}),
}  # fmt: skip
"""Pipelines by name; `build` makes one."""


def build(name):
    """A pipeline of the table; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PIPELINES[name].make()
    made.set_progress_bar_config(disable=True)
    return made
