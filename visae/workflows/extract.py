"""Activations of a site to disk."""

from pathlib import Path
from typing import Literal

from visae import store
from visae.data import load_data
from visae.launch import rank
from visae.model import load_model, vision
from visae.tokens import TokenPolicy
from visae.workflows.run import pick_device


def extract(
    out: Path,
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str = "world:train?n=4000&objects=1",
    tokens: str = "patch",
    per_image: int | None = None,
    seed: int = 0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    image_batch: int = 64,
    workers: int = 2,
    pretrained: bool = True,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> store.Store:
    """Write the activations of one site to disk, so that many dictionaries can be trained on them.

    Says first how many rows, bytes and seconds it will take, and refuses where the disk cannot hold them. Stopped at
    any moment, the same command goes on and ends with the same bytes.

    Example:
        visae extract acts/b9 --model timm:vit_base_patch14_dinov2 --site blocks.9 --data ~/photos --per-image 64

    Args:
        out: folder for the shards.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`; `blocks.-2` is the last but one block.
        data: `world:train?n=4000`, a folder, a glob, or a data set of `datasets_cfg/` such as `imagenet?root=/data`.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image, drawn at random; all if not given.
        seed: of that draw.
        dtype: of the rows on disk.
        image_batch: images per forward pass.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    adapted = vision(load_model(model, pretrained=pretrained, image_size=image_size, device=pick_device(device)))
    images = load_data(data)
    policy = TokenPolicy.parse(tokens, per_image=per_image, seed=seed)
    announce(store.estimate(adapted, site, images, out, policy=policy, dtype=dtype, batch=image_batch))
    return store.extract(adapted, site, images, out, policy=policy, dtype=dtype, batch=image_batch, workers=workers)


def announce(message: object) -> None:
    """Tells the user something beside the progress bars, without breaking them; once, if several processes run."""
    import sys

    from tqdm.auto import tqdm

    if rank() == 0:
        tqdm.write(str(message), file=sys.stderr)
