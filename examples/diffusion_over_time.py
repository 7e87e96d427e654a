"""Train a dictionary on a text-to-image model while it draws, and see which latents work at which step. Needs a GPU.

    python examples/diffusion_over_time.py sd15 prompts.txt
    python examples/diffusion_over_time.py sdxl-turbo prompts.txt
    python examples/diffusion_over_time.py flux prompts.txt --layer 9

`prompts.txt` holds a prompt a line; a few thousand make a usable dictionary. Activations are never written to disk.
The weights come from the hub on first use; a folder of weights can be named with `--model diffusers:FOLDER`.

| model | weights | GPU memory | site | steps | guidance |
|---|---|---|---|---|---|
| Stable Diffusion 1.5 | float16 | 8 GB | U-Net, first decoder block with attention at 16 x 16 | 50 | 7.5 |
| SDXL-Turbo | float16 | 16 GB | U-Net, the blocks of "Unpacking SDXL Turbo" | 4 | none |
| FLUX.1-schnell | bfloat16 | 40 GB | transformer, image stream of a block | 4 | none |
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from visae.workflows import blocks, timeline, train


@dataclass(frozen=True)
class Setting:
    """What a run on one model needs to know.

    Attributes:
        model: name that visae understands.
        site: where tokens are read; `delta` is what a block adds.
        steps: denoising steps.
        guidance: guidance scale.
        weights: type of the weights.
        per_image: tokens kept of each image, over all its steps; neighbours and neighbouring steps say the same.
        images: images made at a time.
    """

    model: str
    site: str
    steps: int
    guidance: float
    weights: Literal["float16", "bfloat16"]
    per_image: int
    images: int


SETTINGS = {
    "sd15": Setting(
        "diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5", "unet.up_blocks.1.attentions.1.delta",
        50, 7.5, "float16", 1024, 16,
    ),
    "sdxl-turbo": Setting(
        "diffusers:stabilityai/sdxl-turbo", "unet.down_blocks.2.attentions.1.delta", 4, 0.0, "float16", 512, 16
    ),
    "flux": Setting(
        "diffusers:black-forest-labs/FLUX.1-schnell", "transformer.transformer_blocks.{layer}.delta",
        4, 0.0, "bfloat16", 1024, 4,
    ),
}  # fmt: skip


def main(
    which: Literal["sd15", "sdxl-turbo", "flux"],
    prompts: str,
    /,
    out: Path = Path("runs/over-time"),
    model: str | None = None,
    layer: int = 9,
    expansion: float = 16,
    k: int = 32,
    passes: float = 1,
    steps: int | None = None,
    guidance: float | None = None,
    weights: Literal["float32", "float16", "bfloat16"] | None = None,
) -> None:
    """Train over the steps of a text-to-image model, draw strips of the strongest latents, ask what blocks do.

    Args:
        which: of the three models.
        prompts: a file with a prompt a line, or `world:prompts?n=64`.
        out: folder of the run.
        model: a folder or another model of the same family, e.g. `diffusers:~/models/sd15`.
        layer: block of FLUX's transformer.
        expansion: latents for each value of a token.
        k: latents active per token.
        passes: passes over the prompts; every pass draws them again.
        steps: denoising steps, where others are wanted.
        guidance: guidance scale, likewise.
        weights: type of the weights, likewise; `float32` on a CPU.
    """
    setting = SETTINGS[which]
    name, count, precise = model or setting.model, steps or setting.steps, weights or setting.weights
    scale = setting.guidance if guidance is None else guidance
    print(
        train(
            out, model=name, site=setting.site.format(layer=layer), data=prompts, stream=True, kind="batch_topk",
            expansion=expansion, k=k, passes=passes, per_image=setting.per_image, image_batch=setting.images,
            weights=precise, steps=count, guidance=scale,
        )
    )  # fmt: skip
    print(timeline(out, prompts))
    print(
        blocks(
            name, prompts=prompts, out=out / "blocks", steps=count, guidance=scale, batch=setting.images,
            weights=precise,
        )
    )  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
