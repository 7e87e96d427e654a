"""The real UnlearnCanvas: its prompts, its classifiers, the names of its files and its FID (Zhang et al. 2024).

The prompts are `load_prompts("unlearncanvas-prompts")`, with labels `object` and `style`. The judge below, its domains
and its neutral style go into `visae.evaluate.erasure.Plain`, which gives UA, IRA and CRA:

    >>> plain = Plain.of(prompts, make, {"authors": authors_judge(folder)}, domains=DOMAINS, neutral=neutral())

Photographs (`Seed_Images`) are a class of the style classifier and no style that is erased: their 100 pictures count
for objects, not for styles, and are the prompts that leave the style open.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visae.data import read_config
from visae.data.sample import Concept, Prompt
from visae.evaluate.blocks import Judge
from visae.evaluate.harm import frechet_distance
from visae.evaluate.preserved import Embed
from visae.evaluate.real_sets import need_file, opened, settings

NAME = "unlearncanvas-prompts"
DOMAINS = ("object", "style")
SOURCE = "https://github.com/OPTML-Group/UnlearnCanvas"
_SIDE = 224
_INCEPTION_SIDE = 299
_REFERENCES = range(1, 6)
"""Pictures of every cell of the data set that its FID compares with."""


def neutral() -> tuple[Concept, ...]:
    """Values that are no particular ones of their domain."""
    return tuple(settings(NAME)["neutral"].items())


def authors_judge(folder: Path, device: str = "cpu", batch: int = 32, model: str | None = None) -> Judge:
    """The classifiers of the benchmark's authors: one names the style, one the object.

    Args:
        folder: holds the files that the entry `unlearncanvas-prompts` names, each with `model_state_dict`.
        device: where they compute.
        batch: pictures at a time.
        model: of timm; that of the entry if not given.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if it does not hold such a classifier.
    """
    told, values = settings(NAME), read_config(NAME)["values"]
    heads = {
        factor: _classifier(Path(folder) / file, model or told["model"], len(values[factor])).to(device)
        for factor, file in told["weights"].items()
    }

    @torch.inference_mode()
    def judge(pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {factor: [] for factor in heads}
        for start in range(0, len(pictures), batch):
            pixels = _pixels(pictures[start : start + batch]).to(device)
            for factor, network in heads.items():
                found[factor] += [values[factor][place] for place in network(pixels).argmax(1).tolist()]
        return found

    return judge


def _classifier(path: Path, model: str, classes: int) -> nn.Module:
    import timm

    need_file(path, "a classifier of UnlearnCanvas", SOURCE)
    network = timm.create_model(model, pretrained=False, num_classes=classes)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict) or "model_state_dict" not in stored:
        raise ValueError(f"{path} should hold model_state_dict, the weights of a {model} with {classes} classes")
    try:
        network.load_state_dict(stored["model_state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of a {model} with {classes} classes: {error}") from error
    return network.eval()


def _pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the classifiers eat them: squeezed to 224 x 224, -1 to 1."""
    fitted = [p.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(p) for p in fitted])).permute(0, 3, 1, 2).float() / 127.5 - 1


def file_name(prompt: Prompt) -> str:
    """What the benchmark's scripts call the picture of a prompt, e.g. `Van_Gogh_Cats_seed188.jpg`."""
    return f"{prompt.labels['style'][0]}_{prompt.labels['object'][0]}_seed{prompt.seed}.jpg"


def read_pictures(folder: Path, prompts: Sequence[Prompt]) -> list[Image.Image]:
    """Pictures that were drawn elsewhere, by the names of the benchmark's scripts, one for each prompt.

    Raises:
        FileNotFoundError: for the first that is missing.
    """
    paths = [need_file(Path(folder) / file_name(one), f"the picture of {one.text!r}", SOURCE) for one in prompts]
    return [picture for part in opened(paths, 64) for picture in part]


def fid(
    pictures: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    data: Path,
    concept: Concept,
    vectors: Embed | None = None,
    batch: int = 32,
) -> float:
    """The benchmark's own FID: of all pictures but those of what is erased, against the data set's, likewise.

    Not to be compared with clean-fid: other weights, other resizing.

    Args:
        pictures: drawn under the erasure, of the data set's 512 x 512 pixels.
        prompts: of the pictures.
        data: folder of the data set, with `<style>/<object>/<1 to 5>.jpg`.
        concept: what is erased, e.g. `("style", "Van_Gogh")`.
        vectors: of pictures; torchvision's Inception v3 as the benchmark uses it, if not given.
        batch: pictures at a time.

    Raises:
        FileNotFoundError: for the first picture of the data set that is missing.
    """
    embed = inception_vectors() if vectors is None else vectors
    kept = [i for i, one in enumerate(prompts) if not one.asks_for([concept])]
    cells = dict.fromkeys((prompts[i].labels["style"][0], prompts[i].labels["object"][0]) for i in kept)
    paths = [Path(data) / style / thing / f"{number}.jpg" for style, thing in cells for number in _REFERENCES]
    for path in paths:
        need_file(path, "a picture of UnlearnCanvas", SOURCE)
    parts = [kept[start : start + batch] for start in range(0, len(kept), batch)]
    drawn = torch.cat([embed([pictures[i] for i in part]) for part in parts])
    real = torch.cat([embed(part) for part in opened(paths, batch)])
    return frechet_distance(*(found.double().cpu().numpy() for found in (drawn, real)))


def inception_vectors(network: Any = None, device: str = "cpu") -> Embed:
    """Vectors of torchvision's Inception v3, ImageNet weights: means over `Mixed_7c`, as the benchmark takes them.

    Args:
        network: with a module `Mixed_7c`; torchvision's, whose weights are fetched, if not given.
        device: where it computes.
    """
    if network is None:
        from torchvision.models import Inception_V3_Weights, inception_v3

        network = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1)
    network = network.eval().to(device)

    @torch.inference_mode()
    def embed(pictures: Sequence[Image.Image]) -> Tensor:
        taken: list[Tensor] = []
        handle = network.Mixed_7c.register_forward_hook(lambda _module, _inputs, out: taken.append(out))
        try:
            sides = [torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1)[None] / 255 for p in pictures]
            fitted = [nn.functional.interpolate(x, (_INCEPTION_SIDE, _INCEPTION_SIDE), mode="bilinear") for x in sides]
            network(torch.cat(fitted).to(device) * 2 - 1)
        finally:
            handle.remove()
        return taken[0].mean((2, 3)).cpu()

    return embed
