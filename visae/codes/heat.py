"""Codes of images that are not in any table: one forward pass through the model, then the dictionary on the patches."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from visae.codes.answers import one_side, rank_latents
from visae.codes.build import Encoder
from visae.geometry import Geometry
from visae.model import AdaptedModel
from visae.sites import Site
from visae.taps import tap


@dataclass(frozen=True)
class ImageCodes:
    """Codes of the patches of one image.

    Attributes:
        latent: `[m]` int64, latents of the non-zero codes.
        value: `[m]` float32, their values.
        patch: `[m]` int64, the patch of each, row by row on the grid.
        norm: `[F]` float32, length of each latent's direction.
        geometry: from the grid to the pixels.
        image_hw: height and width of the image.
        signed: whether values may be negative.
    """

    latent: np.ndarray
    value: np.ndarray
    patch: np.ndarray
    norm: np.ndarray
    geometry: Geometry
    image_hw: tuple[int, int]
    signed: bool = False

    def grids(self, latents: Sequence[int], signs: Sequence[int] | None = None) -> np.ndarray:
        """Values `[L, h, w]` of some latents on the token grid.

        Args:
            latents: their numbers.
            signs: 1 or -1 for each: only the values of that side, as positive ones; None takes values as they are.

        Raises:
            IndexError: if the dictionary has no such latent.
            ValueError: see `one_side`.
        """
        if wrong := [j for j in latents if not 0 <= j < len(self.norm)]:
            raise IndexError(f"latent {wrong[0]} of a dictionary of {len(self.norm)}, counted from 0")
        out = np.zeros((len(latents), *self.geometry.grid), np.float32)
        for plane, j in zip(out.reshape(len(latents), math.prod(self.geometry.grid)), latents, strict=True):
            hit = self.latent == j
            plane[self.patch[hit]] = self.value[hit]
        return one_side(out, signs, self.signed)

    def heat(
        self,
        latents: Sequence[int],
        mode: Literal["nearest", "bilinear"] = "bilinear",
        signs: Sequence[int] | None = None,
    ) -> np.ndarray:
        """`grids` on the pixels of the image, `[L, H, W]`, 0 where the model saw nothing."""
        return self.geometry.to_image(self.grids(latents, signs), self.image_hw, mode)

    def strongest(self, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The latents that add most to some patch, and their values: ranked by |value| times direction norm."""
        return rank_latents(self.latent, self.value, self.norm, n)


def encode_images(
    model: AdaptedModel,
    sae: Encoder,
    images: Iterable[Image.Image],
    *,
    site: Site | str | None = None,
    batch: int = 16,
) -> Iterator[ImageCodes]:
    """Codes of the patches of each image, in order.

    Args:
        model: the network that the dictionary was trained on.
        sae: a dictionary; its card names the site unless `site` does.
        images: RGB pictures of any size.
        site: where to read, if not where the card says.
        batch: images per forward pass.

    Raises:
        ValueError: if no site is known, or the site has no grid.
    """
    place = model.site(site if site is not None else card_site(sae))
    geometry = model.geometry(place)
    device = sae.mean.device
    norm = sae.directions().detach().float().norm(dim=1).cpu().numpy()
    signed = bool(getattr(sae, "signed", False))
    remaining = iter(images)
    while group := list(islice(remaining, batch)):
        with torch.inference_mode(), tap(model, place) as taps:
            model.forward(model.preprocess(group))
            patches = taps[place.name][:, len(place.prefix) :].to(device)
            codes = sae.encode(patches.flatten(0, 1))
        shape = (len(group), patches.shape[1], -1)
        indices, values = codes.indices.cpu().view(shape).numpy(), codes.values.float().cpu().view(shape).numpy()
        for image, index, value in zip(group, indices, values, strict=True):
            patch, slot = np.nonzero((index >= 0) & (value != 0))
            entries = index[patch, slot], value[patch, slot], patch
            yield ImageCodes(*entries, norm, geometry, (image.height, image.width), signed)


def heat_maps(
    model: AdaptedModel,
    sae: Encoder,
    images: Iterable[Image.Image],
    latents: Sequence[int],
    *,
    site: Site | str | None = None,
    mode: Literal["nearest", "bilinear"] = "bilinear",
    signs: Sequence[int] | None = None,
    batch: int = 16,
) -> Iterator[np.ndarray]:
    """Maps `[L, H, W]` of some latents on the pixels of each image; see `encode_images` and `ImageCodes.grids`."""
    for codes in encode_images(model, sae, images, site=site, batch=batch):
        yield codes.heat(latents, mode, signs)


def card_site(sae: Any) -> str:
    """Name of the site that a dictionary's card tells.

    Raises:
        ValueError: if it has no card.
    """
    card = getattr(sae, "card", None)
    site = card.site if card is not None else None
    if not site:
        raise ValueError("this dictionary has no card that names a site: pass site=..., e.g. site='blocks.9'")
    return site["name"] if isinstance(site, dict) else getattr(site, "name", site)
