"""Text encoders of pipelines: CLIP (one or two), T5, and the language models that newer pipelines use."""

from visae.naming import Naming

COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "bert")
"""Under which names pipelines hold them."""

NAMING = Naming(
    blocks=(r"[^.]+\.(.+\.)?(layers|block|blocks|h)\.\d+",),
    elsewhere="-",
    attention=("self_attn", "layer.0.SelfAttention", "attention", "attn"),
    projection=("out_proj", "o_proj", "o"),
    mlp=("mlp", "layer.1.DenseReluDense"),
    numbered=False,
)
"""Blocks keep their module path, which differs between classes (`encoder.layers.0`, `text_model.encoder.layers.0`)."""
