"""The laws of taps on denoisers at real size with random weights; run with `VISAE_FULL_SIZE=1 pytest` on this file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import visae
from visae.taps import tap

pytestmark = [
    pytest.mark.skipif(not os.environ.get("VISAE_FULL_SIZE"), reason="VISAE_FULL_SIZE=1 asks for minutes and 8 GiB"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def full(kind, **config):
    """A denoiser of diffusers in bfloat16, filled from one short run of random numbers (which takes seconds)."""
    with torch.device("meta"):
        made = kind(**config)
    made = made.to(torch.bfloat16).to_empty(device="cpu").eval()
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    with torch.no_grad():
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            if "norm" in name and name.endswith("weight"):
                value.fill_(1)
            else:
                value.copy_(noise.repeat(-(-value.numel() // len(noise)))[: value.numel()].view(value.shape))
    return made


def sd15(tiny):
    import diffusers

    pipe = tiny.stable_diffusion()
    unet = full(diffusers.UNet2DConditionModel, sample_size=64, cross_attention_dim=768)
    parts = {**pipe.components, "unet": unet, "text_encoder": tiny.clip_text(768), "vae": tiny.vae(levels=4)}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def sdxl(tiny):
    import diffusers

    unet = full(
        diffusers.UNet2DConditionModel, sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    parts = {**tiny.stable_diffusion_xl().components, "unet": unet, "vae": tiny.vae(levels=4)}
    parts |= {"text_encoder": tiny.clip_text(768), "text_encoder_2": tiny.clip_text(1280, projected=1280)}
    return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)


def pixart(tiny):
    import diffusers

    transformer = full(
        diffusers.PixArtTransformer2DModel, sample_size=64, caption_channels=4096, use_additional_conditions=False
    )
    parts = {**tiny.pixart().components, "transformer": transformer, "text_encoder": tiny.t5_text(4096)}
    return diffusers.PixArtAlphaPipeline(**parts | {"vae": tiny.vae(levels=4)})


@dataclass(frozen=True)
class Full:
    """A pipeline whose denoiser has its published size, and three facts about that."""

    make: Callable[[Any], Any]
    parameters: int
    block: str
    d: int
    stride: float
    steps: int = 1


FULL = {
    "sd15": Full(sd15, 859_520_964, "unet.up_blocks.1.attentions.1", 1280, 32.0),
    "sdxl": Full(sdxl, 2_567_463_684, "unet.up_blocks.0.attentions.0", 1280, 32.0),
    "pixart": Full(pixart, 610_856_096, "transformer.transformer_blocks.27", 1152, 16.0, steps=2),
}


@pytest.mark.parametrize("name", FULL)
def test_taps_and_identity_edits_change_no_bit_at_real_size(tiny_pipelines, name):
    row = FULL[name]
    model = visae.wrap(row.make(tiny_pipelines).to(torch.bfloat16), image_size=(128, 192))
    model.pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(model.pipe, model.denoiser.name)
    assert sum(p.numel() for p in denoiser.parameters()) == row.parameters
    site = model.site(row.block)
    assert (site.d, site.stride) == (row.d, (row.stride, row.stride))
    assert site.grid == (128 / row.stride, 192 / row.stride)

    def latents():
        return model.generate(["a red square"], [0], steps=row.steps, guidance=1.0, output_type="latent")

    plain = latents()
    assert plain.isfinite().all()
    names = [n for n, s in model.sites().items() if s.kind != "head" and n.startswith(model.denoiser.name)]
    with tap(model, *names, rewrite=torch.clone) as taken:
        assert torch.equal(latents(), plain)
    for block in (n.removesuffix(".delta") for n in names if n.endswith(".delta")):
        if f"{block}.input" in taken:
            assert torch.equal(taken[f"{block}.delta"], taken[block] - taken[f"{block}.input"])
