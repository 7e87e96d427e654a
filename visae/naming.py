"""How families of models call their parts: data that turns a trace into names such as `blocks.9.attn_out`."""

import re
from dataclasses import dataclass

from visae.sites import SiteKind

SUFFIXES: dict[str, SiteKind] = {
    "input": "input", "delta": "delta", "attn_out": "attn_out", "cross_out": "cross_out", "heads": "heads",
    "mlp_out": "mlp_out",
}  # fmt: skip
"""What may follow a module path, and the kind of site that it means; `head.j` is the sixth."""


HEADS = re.compile(r"(^|\.)(head|[a-z_]*pool[a-z_]*)(\.|$)")
"""Paths inside heads and poolings: what they make of the tokens are no longer the model's tokens."""


@dataclass(frozen=True)
class Naming:
    """How a family of models calls its parts.

    Attributes:
        blocks: patterns of module paths, the first that matches any is used; matches are numbered as they run.
        elsewhere: pattern of how paths begin that are never blocks.
        attention: path of the attention module inside a block, the first that exists is used.
        projection: path, inside the attention module, of the layer that mixes the heads' outputs.
        heads: names of the attribute that holds the number of heads.
        mlp: path, inside a block, of the module that gives the MLP's output.
        cross: path, inside a block, of the attention to a text; where it sees no text it is a second self-attention.
        text_mlp: path, inside a block that carries a text beside the image, of the MLP that the text goes through.
        pooled: path and index of the vector per image; None finds it (the last one before the classifier).
        classifier: paths of the layers that make scores of the vector per image; empty takes the last linear layer.
        numbered: whether blocks are called `blocks.0`, ...; otherwise they keep their module path as name, and there is
            neither `final` nor `pooled`.
        raster: model classes whose tokens are known to stay in raster order; others are judged by the painted square.
    """

    blocks: tuple[str, ...] = (
        r".*resblocks\.\d+", r".*denseblock\d+", r"(.*\.)?stages\.\d+\.(blocks|layers)\.\d+",
        r"(.*\.)?layers\.\d+\.blocks\.\d+", r"(.*\.)?(layer|stage)\d+\.\d+", r"(.*\.)?blocks\.\d+\.\d+",
        r"(.*\.)?(network|block|(dense_)?stages?)\.\d+\.\d+", r"(.*\.)?s\d+\.b\d+",
        r"(.*\.)?transformers\.\d+\.blocks\.\d+", r".*(blocks|blocks_token_only|cls_attn_blocks)\.\d+",
        r".*encoder\.layers?\.(encoder_layer_)?\d+", r"(.*\.)?layers?\.\d+", r"(.*\.)?levels?\.?\d+",
        r"(.*\.)?[Mm]ixed_\w+", r"(.*\.)?block\d+", r"(.*\.)?features\.(\d+|conv\d+_\d+)",
    )  # fmt: skip
    elsewhere: str = r"(.*\.)?(patch_embed|decoder)\."
    attention: tuple[str, ...] = ("attn", "attention", "self_attn", "self_attention", "token_mixer")
    projection: tuple[str, ...] = ("proj", "out_proj", "o_proj", "output.dense", "projection", "attn.proj")
    heads: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads", "heads")
    mlp: tuple[str, ...] = ("mlp", "ffn", "feed_forward", "mlp_out_proj", "output")
    cross: tuple[str, ...] = ()
    text_mlp: tuple[str, ...] = ()
    pooled: tuple[str, int | str | None] | None = None
    classifier: tuple[str, ...] = ()
    numbered: bool = True
    raster: tuple[str, ...] = ()
