"""The text encoder of `tiny-sd`: the text tower of `tiny-clip` as a `CLIPTextModel` of transformers."""

from typing import Any

from visae.world import models
from visae.world.models.clip_tokenizer import END, START

_SAME = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""transformers' name of a part of a layer -> open_clip's."""


def like_tiny_clip(encoder: Any, ids: dict[str, int]) -> None:
    """Give an encoder the weights of `tiny-clip`'s text tower, so that both give the same for every caption.

    Args:
        encoder: `CLIPTextModel` of the same width and depth as that tower.
        ids: token -> id of the encoder's tokenizer. Parts of words, which `tiny-clip` lacks, become its unknown token.
    """
    tower = models.build("tiny-clip").state_dict()
    known = models.tokenizer("tiny-clip").inner.get_vocab()
    rows = [known["[UNK]"]] * len(ids)
    for token, number in ids.items():
        if token.endswith("</w>"):
            rows[number] = known.get(token.removesuffix("</w>"), known["[UNK]"])
    rows[ids[START]], rows[ids[END]] = known["[BOS]"], known["[EOS]"]
    state = {
        "embeddings.token_embedding.weight": tower["token_embedding.weight"][rows],
        "embeddings.position_embedding.weight": tower["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        state[f"final_layer_norm.{kind}"] = tower[f"ln_final.{kind}"]
        for layer in range(len(encoder.encoder.layers)):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for mine, other in _SAME.items():
                state[f"{ours}.{mine}.{kind}"] = tower[f"{theirs}.{other}.{kind}"]
            for name, block in zip("qkv", tower[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                state[f"{ours}.self_attn.{name}_proj.{kind}"] = block
    encoder.load_state_dict(state)
