"""Erase a concept from FLUX.1, see what it cost, and draw without it from plain diffusers. Needs a GPU.

    python examples/erase_flux.py "a dog" prompts.txt retain.txt
    python examples/erase_flux.py "a dog" prompts.txt retain.txt --variant dev --size 768 768
    python examples/erase_flux.py "a dog" prompts.txt retain.txt --method itd --offload

`prompts.txt`: what dictionaries are trained on, a prompt a line, a few thousand at least. `retain.txt`: prompts without
the concept, near to it and far from it; a third of them tunes, a third chooses how strongly to erase, a third is
reported.

What is different from Stable Diffusion (`erase_sd15.py`):

- Guidance is distilled into the weights: the transformer is called once a step, for the prompt alone. There is no
  negative prompt, so methods that need one (`negative_prompt`, `sld`) refuse, and an edit has no other branch.
- There are two text encoders. CLIP gives one vector for the whole prompt, T5 the tokens that the transformer reads:
  `itd` and `steerers` edit T5 at its 23rd layer, as in Concept Steerers; `ours` replaces words at the inputs of both.
- A block of the transformer carries text and image tokens; the dictionary is of the image's.

| model | weights | GPU memory | steps | guidance |
|---|---|---|---|---|
| FLUX.1-schnell | bfloat16 | 40 GB | 4 | none |
| FLUX.1-dev | bfloat16 | 40 GB | 28 | 3.5, told to the transformer as a number |

Stopped at any moment, the same command goes on where it was; the next concept uses the dictionaries that are there.
"""

import gc
from pathlib import Path
from typing import Literal

import torch
import tyro
from diffusers import FluxPipeline
from erase_sd15 import draw  # beside this file: plain diffusers, but for one line

from visae.erasers import METHODS
from visae.workflows import erase, train
from visae.workflows.strength import BUDGET

MODELS = {"schnell": ("black-forest-labs/FLUX.1-schnell", 4, 0.0), "dev": ("black-forest-labs/FLUX.1-dev", 28, 3.5)}
"""Variant -> id on the hub, steps, guidance."""


def main(
    concept: str,
    prompts: str,
    retain: str,
    /,
    variant: Literal["schnell", "dev"] = "schnell",
    target: str | None = None,
    method: str = "ours",
    budget: float = BUDGET,
    show: tuple[str, ...] = (),
    out: Path = Path("runs/erase-flux"),
    model: str | None = None,
    layer: int = 9,
    text_layer: int = 22,
    sae: Path | None = None,
    text_sae: Path | None = None,
    expansion: float = 8,
    k: int = 32,
    images: int = 4000,
    per_image: int = 1024,
    pictures: int | None = 60,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    size: tuple[int, int] = (512, 512),
    weights: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    device: str = "cuda",
    offload: bool = False,
) -> None:
    """Train the dictionaries that a method needs (or take those that are there), erase, report, draw from the export.

    Args:
        concept: in words, as a prompt would say it.
        prompts: file with a prompt a line, to train dictionaries on.
        retain: file with prompts that do without the concept.
        variant: `schnell` draws in four steps, `dev` better in 28.
        target: file with prompts that ask for the concept; sentences around the words if not given.
        method: `ours`, or one to compare with: `saeuron`, `dsg`, `sauce`, `per` edit the transformer, `itd` and
            `steerers` T5.
        budget: how far pictures of other prompts may move for the concept to go, from 0 (not at all) to 1 (as far as
            pictures of different prompts are apart); the strength is chosen within it.
        show: prompts to draw at the end; one with the concept and one without if not given.
        out: folder of dictionaries, report and drawings.
        model: a folder with the weights, or another id on the hub; that of the variant if not given.
        layer: block of the transformer whose image tokens are edited, of those that keep text and image apart.
        text_layer: block of T5 whose tokens are.
        sae: folder of a dictionary of that block that is there already, as `visae train` leaves it.
        text_sae: the same of T5.
        expansion: latents for each value of a token.
        k: latents active per token.
        images: prompts, evenly spaced in the file, of which images are made for training the transformer's dictionary.
        per_image: tokens kept of each image, over all its steps; neighbours and neighbouring steps say the same.
        pictures: at most so many pictures for choosing a strength, and as many for the report; all if None.
        steps: denoising steps; those of the variant if not given.
        guidance: what the transformer is told, likewise.
        batch: images made at a time; lower it where memory runs out.
        size: height and width in pixels.
        weights: type of the weights; FLUX overflows in `float16`; `float32` on a CPU.
        device: `cuda`, `cuda:1`, `cpu`.
        offload: while drawing from the export, keep each part of the pipeline off the GPU until it runs.
    """
    usual, usual_steps, usual_guidance = MODELS[variant]
    name, count = model or usual, steps or usual_steps
    scale = usual_guidance if guidance is None else guidance
    common = {"model": f"diffusers:{name}", "image_size": size, "weights": weights, "device": device}
    shape = {"kind": "batch_topk", "expansion": expansion, "k": k}
    needs = METHODS[method].needs
    if sae is None and "denoiser" in needs:
        sae = out / variant / "transformer"
        print(train(sae, site=f"transformer.transformer_blocks.{layer}", data=f"{prompts}?n={images}", steps=count,
                    guidance=scale, per_image=per_image, image_batch=batch, **shape, **common))  # fmt: skip
    if text_sae is None and "text" in needs:
        text_sae = out / variant / "t5"
        print(train(text_sae, site=f"text_encoder_2.encoder.block.{text_layer}", data=prompts, collect="text",
                    tokens="text", image_batch=16, **shape, **common))  # fmt: skip
    folder = out / variant / f"{concept.replace(' ', '-')}-{method}"
    made = erase(
        f"diffusers:{name}", concept=concept, retain=retain, target=target, method=method, budget=budget, data=prompts,
        report=folder, sae=sae, text_sae=text_sae, steps=count, guidance=scale, pictures=pictures, batch=batch,
        image_size=size, weights=weights, device=device,
    )  # fmt: skip
    print(made)
    if not (exported := made.summary["export"]) or not Path(exported).is_dir():
        print(f"{method} edits no codes, so there is nothing to load elsewhere")
        return
    del made
    gc.collect()  # the pipeline that was measured makes room for the one that is served
    pipe = FluxPipeline.from_pretrained(name, dtype=getattr(torch, weights))
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    texts = show or (f"a photo of {concept}", "a photo of a house by a river")
    sheet = draw(pipe, exported, texts, size, num_inference_steps=count, guidance_scale=scale)
    sheet.save(folder / "drawn.png")
    print(f"above as FLUX draws, below with {concept} erased: {folder / 'drawn.png'}")


if __name__ == "__main__":
    tyro.cli(main)
