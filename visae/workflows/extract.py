"""Activations of a site to disk."""

from pathlib import Path
from typing import Literal

from visae import store
from visae.launch import rank
from visae.tokens import TokenPolicy
from visae.workflows.collecting import Branch, Collect, Weights, ground


def extract(
    out: Path,
    *,
    model: str = "visae:tiny-clip",
    site: str = "blocks.-2",
    data: str | None = None,
    tokens: str = "patch",
    per_image: int | None = None,
    seed: int = 0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    collect: Collect = "generate",
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: tuple[int, ...] = (),
    branch: Branch = "cond",
    image_batch: int | None = None,
    workers: int = 2,
    pretrained: bool = True,
    weights: Weights = "float32",
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> store.Store:
    """Write the activations of one site to disk, so that many dictionaries can be trained on them.

    Says first how many rows, bytes and seconds it will take, and refuses where the disk cannot hold them. Stopped at
    any moment, the same command goes on and ends with the same bytes.

    Example:
        visae extract acts/b9 --model timm:vit_base_patch14_dinov2 --site blocks.9 --data ~/photos --per-image 64
        visae extract acts/mid --model diffusers:stabilityai/sdxl-turbo --site unet.mid_block.attentions.0 --data p.txt

    Args:
        out: folder for the shards.
        model: model name, see `visae models`.
        site: where to read, see `visae sites MODEL`; `blocks.-2` is the last but one block.
        data: `world:train?n=4000`, a folder, a glob, or a data set of `datasets_cfg/` such as `imagenet?root=/data`;
            prompts for a pipeline: `world:prompts?n=400`, a text file with a prompt a line, a table with a column
            `prompt` and maybe `seed`, or a set of `datasets_cfg/` such as `parti?root=/data`.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, `text`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image (at each step), drawn at random; all if not given.
        seed: of that draw.
        dtype: of the rows on disk.
        collect: of a pipeline: `generate` collects while it makes images of prompts, `noise` from given images with
            noise added (one call per step), `text` from its text encoders alone.
        steps: of a pipeline: denoising steps; its own number if not given.
        guidance: of a pipeline: guidance scale; its own if not given.
        collect_steps: of a pipeline: collect at these of its timesteps, counted from 0, or from -1 backwards; all if
            not given.
        branch: of a pipeline's guidance: tokens of the prompt (`cond`), of the negative one (`uncond`), or `both`.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    on = ground(
        model, site, data, collect=collect, steps=steps, guidance=guidance, collect_steps=collect_steps, branch=branch,
        image_batch=image_batch, pretrained=pretrained, weights=weights, image_size=image_size, device=device,
    )  # fmt: skip
    policy = TokenPolicy.parse(tokens, per_image=per_image, seed=seed)
    ahead = store.estimate(
        on.model, site, on.data, out, policy=policy, dtype=dtype, batch=on.batch, sampling=on.collected
    )
    announce(ahead)
    return store.extract(
        on.model, site, on.data, out, policy=policy, dtype=dtype, batch=on.batch, workers=workers, sampling=on.collected
    )


def announce(message: object) -> None:
    """Tells the user something beside the progress bars, without breaking them; once, if several processes run."""
    import sys

    from tqdm.auto import tqdm

    if rank() == 0:
        tqdm.write(str(message), file=sys.stderr)
