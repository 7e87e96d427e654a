"""What the judge sees in pictures, and how often that is what was asked for."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from visae.world.captions import Caption, draw_caption
from visae.world.hashing import Stream
from visae.world.judging import judged
from visae.world.scene import Scene
from visae.world.training.latents import to_pixels, withheld_combinations
from visae.world.variants import replace_value
from visae.world.world import World

JUDGED = ("shape", "style", "colour", "background")
STEPS = 20
"""Denoising steps of every evaluation."""
_BATCH = 32


def seen(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Factor -> what the judge sees in each picture `[n, 64, 64, 3]` uint8, as an array of names `[n]`."""
    return {factor: np.array(told) for factor, told in judged([Image.fromarray(p) for p in pictures]).items()}


def reconstruction_agreement(autoencoder: Any, n: int) -> dict[str, float]:
    """How often the judge says the same of a picture and of its reconstruction.

    Args:
        autoencoder: diffusers' `AutoencoderKL` in evaluation mode.
        n: pictures with one object, of the test split.

    Returns:
        Factor -> share of equal answers.
    """
    world = World("test", n)
    images = np.stack([world.render(i) for i in range(n)])
    shown = []
    with torch.inference_mode():
        for start in range(0, n, _BATCH):
            pixels = to_pixels(images[start : start + _BATCH]).to(autoencoder.device)
            shown.append(autoencoder.decode(autoencoder.encode(pixels).latent_dist.mean).sample.cpu())
    pictures = ((torch.cat(shown).clamp(-1, 1) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    before, after = seen(images), seen(pictures)
    return {factor: float((before[factor] == after[factor]).mean()) for factor in JUDGED}


def held_out_prompts(n: int, new: bool) -> list[Caption]:
    """Prompts about scenes of the test split.

    Args:
        n: how many; each states shape, style, colour and background of one object.
        new: whether each asks for a combination of shape, style and colour that was withheld from training, so that
            the prompt cannot have been seen; otherwise none does.
    """
    world, withheld = World("test", 10 * n + 100, seed=2), withheld_combinations()
    found: list[Caption] = []
    for index in range(len(world)):
        scene = world.scene(index)
        thing = scene.things[0]
        if new:
            scene = _with(scene, *withheld[len(found) % len(withheld)])
        elif (thing.shape, thing.style, thing.colour) in withheld:
            continue
        found.append(draw_caption(scene, Stream(79, index), thorough=True))
        if len(found) == n:
            break
    return found


def _with(scene: Scene, shape: str, style: str, colour: str) -> Scene:
    thing = replace(replace_value(scene.things[0], "shape", shape), style=style, colour=colour)
    return replace(scene, things=(thing,))


def generate(pipe: Any, texts: list[str], guidance: float, **call: Any) -> np.ndarray:
    """Pictures `[n, 64, 64, 3]` uint8 of prompts; picture `i` starts from the noise of seed `i`.

    Args:
        pipe: an upstream text-to-image pipeline.
        texts: the prompts.
        guidance: strength of classifier-free guidance.
        **call: further arguments of the pipeline.
    """
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for start in tqdm(range(0, len(texts), _BATCH), desc="generating", unit_scale=_BATCH, unit="image", leave=False):
        batch = texts[start : start + _BATCH]
        seeds = [torch.Generator().manual_seed(start + k) for k in range(len(batch))]
        made = pipe(
            batch, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds, output_type="np", **call
        )
        pictures.append((made.images * 255.0).round().astype(np.uint8))
    return np.concatenate(pictures)


def right(prompts: list[Caption], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Factor -> `[n]` bool: whether the judge sees in each picture what its prompt states."""
    told = seen(pictures)
    asked = [prompt.things[0] | {"background": str(prompt.background)} for prompt in prompts]
    return {factor: np.array([a[factor] for a in asked]) == told[factor] for factor in JUDGED}


def evaluate_pipeline(pipe: Any, n: int, guidance: float, **call: Any) -> dict[str, float]:
    """How often pictures show what was asked for, and how well the autoencoder preserves what they show.

    Args:
        pipe: an upstream text-to-image pipeline.
        n: prompts, half of them about combinations withheld from training.
        guidance: strength of classifier-free guidance.
        **call: further arguments of the pipeline.

    Returns:
        Metric -> share in 0 .. 1: every factor over all prompts, over those of withheld combinations ("new ..."), and
        as agreement of reconstructions with the pictures they are of ("reconstructed ...").
    """
    prompts = held_out_prompts(n // 2, new=True) + held_out_prompts(n - n // 2, new=False)
    hits = right(prompts, generate(pipe, [prompt.text for prompt in prompts], guidance, **call))
    hits["shape and style"] = hits["shape"] & hits["style"]
    out = {factor: float(values.mean()) for factor, values in hits.items()}
    out |= {f"new {factor}": float(values[: n // 2].mean()) for factor, values in hits.items()}
    return out | {f"reconstructed {factor}": v for factor, v in reconstruction_agreement(pipe.vae, n).items()}
