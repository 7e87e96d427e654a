"""U-Nets of diffusers: Stable Diffusion 1 and 2, SDXL and Turbo, and others with the same blocks."""

from visae.naming import Naming

COMPONENT = "unet"
"""Under which name pipelines hold one."""

NAMING = Naming(
    blocks=(r"[^.]+\.(.+\.)?(mid_block|(\w*blocks|attentions|resnets|layers)\.\d+)",),
    elsewhere="-",
    attention=("attn1", "attn"),
    cross=("attn2",),
    projection=("to_out.0",),
    mlp=("ff",),
    numbered=False,
    raster=("UNet2DConditionModel", "UNet2DModel"),
)
"""Every block within blocks is offered: maps [n, d, h, w] outside, tokens [n, h w, d] inside `transformer_blocks`.

What a down block gives is not what its skip connections carry: an edit of `unet.down_blocks.0` leaves the copies for
the way up as they were; edit the `attentions` and `resnets` inside it to reach both.
"""
