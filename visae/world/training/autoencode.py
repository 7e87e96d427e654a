"""The autoencoder of the shipped pipelines in training, and the scale of its latents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world import models
from visae.world.hashing import Stream
from visae.world.pipeline_recipes import LATENT_CHANNELS, AutoencoderRecipe
from visae.world.training.cache import Cache
from visae.world.training.latents import to_pixels

PATCH = 4
"""Pixels per latent, each way."""
_SAMPLE = 800
"""Images behind the principal components and the scale of the latents."""


def principal_components(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """The convolution that turns images into the first four principal components of their patches, of unit variance.

    Args:
        images: `[n, S, S, 3]` uint8.

    Returns:
        Weight `[4, 3, 4, 4]` and bias `[4]`, for a stride of 4 on pixels in -1 .. 1.
    """
    pixels = to_pixels(images).double()
    patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    variance, directions = torch.linalg.eigh(torch.cov(patches.T))
    chosen = directions[:, -LATENT_CHANNELS:].flip(1)
    chosen = chosen * torch.where(chosen.sum(0) < 0, -1.0, 1.0) / variance[-LATENT_CHANNELS:].flip(0).sqrt()
    return chosen.T.reshape(LATENT_CHANNELS, 3, PATCH, PATCH).float(), -(mean @ chosen).float()


def texture(images: Tensor) -> Tensor:
    """Standard deviations in overlapping windows of 4 x 4 pixels, per channel, of images `[B, 3, S, S]`."""
    mean = functional.avg_pool2d(images, 4, 2)
    return (functional.avg_pool2d(images * images, 4, 2) - mean * mean).clamp(min=1e-4).sqrt()


class Autoencoding:
    """An autoencoder in training; see `visae.world.training.loop.Learning`.

    Args:
        recipe: how.
        cache: on what.
        autoencoder: diffusers' `AutoencoderKL`.
        device: where.
    """

    def __init__(self, recipe: AutoencoderRecipe, cache: Cache, autoencoder: Any, device: str) -> None:
        self.recipe, self.cache, self.device = recipe, cache, device
        self.model: Any = autoencoder.to(device, memory_format=torch.channels_last).train()
        self.helper: Any = nn.Identity()
        self.levels = np.zeros(len(cache), int)
        weight, bias = principal_components(_sample(cache))
        self._components = weight.to(device), bias.to(device)
        if recipe.frozen:
            for part in (self.model.encoder, self.model.quant_conv):
                part.requires_grad_(False)
        self._eye: Any = models.build("tiny-vit").to(device).requires_grad_(False) if recipe.features else None

    def loss(self, rows: np.ndarray, pick: np.ndarray, step: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Absolute and square error of pixels, error of texture, and what keeps the latents where they are.

        Args:
            rows: `[B]` rows of the cache.
            pick: not looked at.
            step: decides the noise; early ones are guided by principal components.
        """
        draw = torch.Generator().manual_seed(Stream(self.recipe.seed, 6, step).bits() >> 1)
        images = to_pixels(self.cache.images[rows]).to(self.device, memory_format=torch.channels_last)
        components = functional.conv2d(images, *self._components, stride=PATCH)
        latents = self.model.encode(images).latent_dist.mean.float()
        guided = step < self.recipe.guided
        read = components if guided else latents
        spread = read.detach().std((0, 2, 3), keepdim=True)
        noise = torch.randn(read.shape, generator=draw).to(self.device)
        shown = self.model.decode(read + self.recipe.noise * spread * noise).sample.float()
        pixels = (shown - images).abs().mean() + functional.mse_loss(shown, images)
        textures = (texture(shown) - texture(images)).abs().mean()
        held = functional.mse_loss(latents, components) if guided else 1e-4 * latents.square().mean()
        total = pixels + self.recipe.texture * textures + held
        told = {"pixels": pixels, "texture": textures, "held": held}
        if self._eye is not None:
            told["features"] = self._features(shown, images)
            total = total + self.recipe.features * told["features"]
        return told | {"total": total}

    def _features(self, shown: Tensor, images: Tensor) -> Tensor:
        """Square error of what two blocks of `tiny-vit` give, each as a share of its variance."""
        with torch.no_grad():
            wanted = self._seen(images)
        pairs = zip(self._seen(shown), wanted, strict=True)
        return torch.stack(
            [functional.mse_loss(one.float(), of.float()) / of.float().var() for one, of in pairs]
        ).mean()

    def _seen(self, images: Tensor) -> list[Tensor]:
        """Tokens of blocks 1 and 3, of images in -1 .. 1."""
        known = models.config("tiny-vit")["preprocess_cfg"]
        mean, std = (torch.tensor(known[key], device=self.device).view(1, 3, 1, 1) for key in ("mean", "std"))
        return self._eye.forward_intermediates(  # type: ignore[no-any-return]
            ((images + 1.0) / 2.0 - mean) / std, indices=[1, 3], output_fmt="NLC", intermediates_only=True,
            stop_early=True,
        )  # fmt: skip


def _sample(cache: Cache) -> np.ndarray:
    return np.asarray(cache.images[:: max(1, len(cache) // _SAMPLE)])


@torch.no_grad()
def standardise(autoencoder: Any, cache: Cache, noise: float) -> None:
    """Give every latent channel mean 0 and variance 1 on cached images, without changing a reconstruction.

    The scale goes into the 1 x 1 convolutions on both sides of the latents, so that `scaling_factor` is 1 for all. The
    posterior's spread, which training does not use, becomes `noise` everywhere.
    """
    autoencoder.eval()
    device = next(autoencoder.parameters()).device
    images = to_pixels(_sample(cache)).to(device)
    means = torch.cat([autoencoder.encode(batch).latent_dist.mean for batch in images.split(100)])
    centre, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ centre
    after.weight *= spread[None, :, None, None]
    before.weight[:LATENT_CHANNELS] /= spread[:, None, None, None]
    before.bias[:LATENT_CHANNELS] = (before.bias[:LATENT_CHANNELS] - centre) / spread
    before.weight[LATENT_CHANNELS:] = 0.0
    before.bias[LATENT_CHANNELS:] = 2.0 * float(np.log(noise))
