"""Transformers of diffusers: PixArt, DiT, Stable Diffusion 3 and 3.5, FLUX, Sana, and others with the same blocks."""

from visae.naming import Naming

COMPONENT = "transformer"
"""Under which name pipelines hold one."""

NAMING = Naming(
    blocks=(r"[^.]+\.(.+\.)?\w*(blocks|layers|refiner)\.\d+",),
    elsewhere="-",
    attention=("attn1", "attn", "self_attn", "attention"),
    cross=("attn2", "cross_attn"),
    projection=("to_out.0", "to_out"),
    mlp=("ff", "mlp", "feed_forward", "img_mlp", "ff_i"),
    text_mlp=("ff_context", "txt_mlp", "mlp_context", "ff_t"),
    numbered=False,
    raster=(
        "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel",
        "SanaTransformer2DModel",
    ),
)  # fmt: skip
"""Blocks that carry two streams give both: the image under the block's name, the text under `.text`.

Which element of what a block gives is the image is read from the trace: SD3 and FLUX give (text, image) and their
attention (image, text), other models the other way round. Lumina 2 puts texts as long as their own prompts before the
image's tokens, which then have no fixed place: of its blocks only those before that, the refiners, have sites.
"""
