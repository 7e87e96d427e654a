"""Erase a concept from Stable Diffusion 1.5, see what it cost, and draw without it from plain diffusers. Needs a GPU.

    python examples/erase_sd15.py "a dog" prompts.txt retain.txt
    python examples/erase_sd15.py "Van Gogh" prompts.txt retain.txt --site unet.up_blocks.1.attentions.2
    python examples/erase_sd15.py "a dog" prompts.txt retain.txt --method itd --out runs/sd15

`prompts.txt`: what dictionaries are trained on, a prompt a line, the more varied the better, a few thousand at least.
`retain.txt`: prompts without the concept, near to it and far from it; a third of them tunes, a third chooses how
strongly to erase, a third is reported. Hundreds make an honest report.

| what | where | made of |
|---|---|---|
| dictionary of the U-Net | first decoder block with attention at 16 x 16, as in SAeUron | images, at all their steps |
| dictionary of the text encoder, for `itd`, `steerers` | ninth layer, as in Interpret-then-Deactivate | texts |
| dictionary of words, for `ours` | input of the text encoder | every word of the vocabulary |
| report | `index.html` in the folder of the concept | the same seeds with and without |
| export | `erasure` in the folder of the concept | what `draw` loads with one line |

8 GB of GPU memory will do in float16. Stopped at any moment, the same command goes on where it was; the next concept
uses the dictionaries that are there.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from diffusers import DiffusionPipeline
from PIL import Image

import visae
from visae.erasers import METHODS
from visae.workflows import erase, train
from visae.workflows.strength import BUDGET

Weights = Literal["float16", "bfloat16", "float32"]


def main(
    concept: str,
    prompts: str,
    retain: str,
    /,
    target: str | None = None,
    method: str = "ours",
    budget: float = BUDGET,
    show: tuple[str, ...] = (),
    out: Path = Path("runs/erase-sd15"),
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    site: str = "unet.up_blocks.1.attentions.1",
    text_site: str = "text_encoder.encoder.layers.8",
    sae: Path | None = None,
    text_sae: Path | None = None,
    expansion: float = 16,
    k: int = 32,
    images: int = 4000,
    per_image: int = 1024,
    pictures: int | None = 100,
    steps: int = 50,
    guidance: float = 7.5,
    batch: int = 8,
    size: tuple[int, int] = (512, 512),
    weights: Weights = "float16",
    device: str = "cuda",
    offload: bool = False,
) -> None:
    """Train the dictionaries that a method needs (or take those that are there), erase, report, draw from the export.

    Args:
        concept: in words, as a prompt would say it.
        prompts: file with a prompt a line, to train dictionaries on.
        retain: file with prompts that do without the concept.
        target: file with prompts that ask for it; sentences around the words if not given.
        method: `ours`, or one to compare with: `saeuron`, `dsg`, `sauce`, `per` edit the U-Net, `itd` and `steerers`
            the text encoder; `negative_prompt`, `sld`, `esd_x`, `uce` need no dictionary and export nothing.
        budget: how far pictures of other prompts may move for the concept to go, from 0 (not at all) to 1 (as far as
            pictures of different prompts are apart); the strength is chosen within it.
        show: prompts to draw at the end; one with the concept and one without if not given.
        out: folder of dictionaries, report and drawings.
        model: id on the hub, or a folder with the weights of Stable Diffusion 1.4, 1.5 or a model made from them.
        site: where codes of the U-Net are edited; for styles `unet.up_blocks.1.attentions.2` may be better.
        text_site: where those of the text encoder are.
        sae: folder of a dictionary of `site` that is there already, as `visae train` leaves it.
        text_sae: the same of `text_site`.
        expansion: latents for each value of a token.
        k: latents active per token.
        images: prompts, evenly spaced in the file, of which images are made for training the U-Net's dictionary.
        per_image: tokens kept of each image, over all its steps; neighbours and neighbouring steps say the same.
        pictures: at most so many pictures for choosing a strength, and as many for the report; all if None.
        steps: denoising steps, in training as afterwards.
        guidance: guidance scale, likewise.
        batch: images made at a time; lower it where memory runs out.
        size: height and width in pixels.
        weights: type of the weights; `float32` on a CPU.
        device: `cuda`, `cuda:1`, `cpu`.
        offload: while drawing from the export, keep each part of the pipeline off the GPU until it runs.
    """
    common = {"model": f"diffusers:{model}", "image_size": size, "weights": weights, "device": device}
    shape = {"kind": "batch_topk", "expansion": expansion, "k": k}
    needs = METHODS[method].needs
    if sae is None and "denoiser" in needs:
        sae = out / "unet"
        print(train(sae, site=site, data=f"{prompts}?n={images}", per_image=per_image, steps=steps, guidance=guidance,
                    image_batch=batch, **shape, **common))  # fmt: skip
    if text_sae is None and "text" in needs:
        text_sae = out / "text"
        print(train(text_sae, site=text_site, data=prompts, collect="text", tokens="text", image_batch=64, **shape,
                    **common))  # fmt: skip
    folder = out / f"{concept.replace(' ', '-')}-{method}"
    made = erase(
        f"diffusers:{model}", concept=concept, retain=retain, target=target, method=method, budget=budget, data=prompts,
        report=folder, sae=sae, text_sae=text_sae, steps=steps, guidance=guidance, pictures=pictures, batch=batch,
        image_size=size, weights=weights, device=device,
    )  # fmt: skip
    print(made)
    if not (exported := made.summary["export"]) or not Path(exported).is_dir():
        print(f"{method} edits no codes, so there is nothing to load elsewhere")
        return
    del made
    gc.collect()  # the pipeline that was measured makes room for the one that is served
    pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, weights))
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    texts = show or (f"a photo of {concept}", "a photo of a house by a river")
    sheet = draw(pipe, exported, texts, size, num_inference_steps=steps, guidance_scale=guidance)
    sheet.save(folder / "drawn.png")
    print(f"above as the pipeline draws, below with {concept} erased: {folder / 'drawn.png'}")


def draw(
    pipe: DiffusionPipeline, erasure: str, prompts: Sequence[str], size: tuple[int, int], **options: float
) -> Image.Image:
    """Plain diffusers, but for one line: prompts from the same seeds without the erasure (above) and with it."""
    erasing = visae.load_erasure(erasure, pipe).install()
    height, width = size
    sheet = Image.new("RGB", (width * len(prompts), 2 * height))
    for row, erasing.on in enumerate((False, True)):
        for column, prompt in enumerate(prompts):
            seed = torch.Generator("cpu").manual_seed(column)
            made = pipe(prompt, height=height, width=width, generator=seed, **options)
            sheet.paste(made.images[0], (column * width, row * height))
    erasing.remove()
    return sheet


if __name__ == "__main__":
    tyro.cli(main)
