"""What the pipelines learn: latents and captions in, the error of a predicted velocity out."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world.hashing import Stream
from visae.world.pipeline_recipes import PipelineRecipe
from visae.world.training.cache import Cache
from visae.world.training.facts import difficulty
from visae.world.training.latents import Latents, withheld_rows

NEVER = 99
"""The difficulty of rows that no curriculum reaches."""


FOCUS = (1.4, 0.8)
"""Mean and deviation, in logits, of the noise levels at which shapes are decided: places are known by then, contours
are not (the logit-normal of Esser et al., 2024, moved towards noise)."""


def noise_levels(n: int, focus: float, draw: torch.Generator) -> Tensor:
    """Noise levels `[n]` in 0 .. 1 in random order.

    Args:
        n: how many.
        focus: the share of them that comes from where shapes are decided; the others cover the range evenly. Both parts
            have one level in each of as many equally likely intervals.
        draw: randomness.
    """
    m = round(focus * n)
    jitter = torch.rand(n, generator=draw)
    near = (torch.arange(m) + jitter[:m]) / max(m, 1)
    near = torch.sigmoid(FOCUS[0] + FOCUS[1] * torch.special.ndtri(near.clamp(1e-6, 1.0 - 1e-6)))
    even = (torch.arange(n - m) + jitter[m:]) / max(n - m, 1)
    return torch.cat([near, even])[torch.randperm(n, generator=draw)]


def object_weights(masks: np.ndarray, ground: float) -> Tensor:
    """Weights `[B, 1, 16, 16]` of latents in the loss: 1 on and right beside objects, `ground` elsewhere.

    Args:
        masks: `[B, 64, 8]` uint8, from `Cache.masks`.
        ground: weight of the background. Grain there is noise that nobody can predict, and it would drown what there is
            to learn about shapes.
    """
    tiles = np.unpackbits(masks, axis=2).reshape(-1, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 1, 64, 64)
    near = functional.max_pool2d(torch.from_numpy(tiles).float(), 4)
    near = functional.max_pool2d(near, 3, stride=1, padding=1)
    return ground + (1.0 - ground) * near


class Denoising(ABC):
    """A denoiser in training, behind a text encoder; see `visae.world.training.loop.Learning`.

    Args:
        recipe: how.
        cache: the images, for what is on them.
        latents: the same rows as latents and texts.
        parts: of a pipeline, from `visae.world.training.assemble.components`.
        device: where.
    """

    def __init__(
        self, recipe: PipelineRecipe, cache: Cache, latents: Latents, parts: dict[str, Any], device: str
    ) -> None:
        self.recipe, self.cache, self.latents, self.device = recipe, cache, latents, device
        self.tokenizer, self.text_encoder = parts["tokenizer"], parts["text_encoder"].to(device)
        self.model: Any = nn.ModuleDict({name: parts[name] for name in recipe.trained})
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.helper: Any = nn.Identity()
        facts = np.asarray(cache.facts)
        self.levels = np.where(withheld_rows(facts), NEVER, difficulty(facts))

    def loss(self, rows: np.ndarray, pick: np.ndarray, step: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Mean square error of the velocity from latents, of variance 1, to noise; objects count more than background.

        Args:
            rows: `[B]` rows of the cache.
            pick: not looked at: the recipe says how often texts are thorough.
            step: decides the noise, its levels, which text of a row is used and which is left out.
        """
        draw = torch.Generator().manual_seed(Stream(self.recipe.seed, 5, step).bits() >> 1)
        clean = torch.from_numpy(self.latents.values[rows]).float().to(self.device)
        noise = torch.randn(clean.shape, generator=draw).to(self.device)
        levels = noise_levels(len(rows), self.recipe.focus, draw).to(self.device)
        kept = torch.rand(len(rows), generator=draw) >= self.recipe.dropout
        thorough = torch.rand(len(rows), generator=draw) < self.recipe.thorough
        chosen = self.latents.texts[rows, thorough.long().numpy()]
        texts = [text.decode() if keep else "" for text, keep in zip(chosen, kept.tolist(), strict=True)]
        noised, velocity, times = self.path(clean, noise, levels)
        predicted = self.predict(noised.contiguous(memory_format=torch.channels_last), times, texts)
        weights = object_weights(self.cache.masks[rows], self.recipe.ground).to(self.device)
        errors = (predicted.float() - velocity).square()
        return {"all": errors.mean(), "total": (weights * errors).mean() / weights.mean()}

    @abstractmethod
    def path(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where latents are at noise levels in 0 .. 1, how they move there, and the times `[B]` the denoiser is told.

        Args:
            clean: `[B, C, H, W]` latents.
            noise: the same shape.
            levels: `[B]`.
        """

    @abstractmethod
    def predict(self, noised: Tensor, times: Tensor, texts: list[str]) -> Tensor:
        """The denoiser's velocity `[B, C, H, W]` for noised latents, times `[B]` and texts."""


class VDenoising(Denoising):
    """On variance-preserving paths: v = signal x noise - noise level x latent (Salimans and Ho, 2022)."""

    def __init__(
        self, recipe: PipelineRecipe, cache: Cache, latents: Latents, parts: dict[str, Any], device: str
    ) -> None:
        super().__init__(recipe, cache, latents, parts, device)
        kept = parts["scheduler"].alphas_cumprod.to(device)
        self._signal, self._noise = kept.sqrt(), (1.0 - kept).sqrt()

    def path(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scheduler's own levels; times are its steps."""
        times = (levels * len(self._signal)).long().clamp(max=len(self._signal) - 1)
        signal, amount = (table[times].view(-1, 1, 1, 1) for table in (self._signal, self._noise))
        return signal * clean + amount * noise, signal * noise - amount * clean, times

    def predict(self, noised: Tensor, times: Tensor, texts: list[str]) -> Tensor:
        """As `StableDiffusionPipeline` calls its U-Net, with texts padded to the full context."""
        length = self.tokenizer.model_max_length
        read = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self.text_encoder(read.input_ids.to(self.device))[0]
        return self.model["unet"](noised, times, hidden, return_dict=False)[0]


class FlowDenoising(Denoising):
    """On straight paths: noise - latent (Lipman et al., 2023; Esser et al., 2024)."""

    def path(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times are thousandths of the way to noise."""
        level = levels.view(-1, 1, 1, 1)
        return (1.0 - level) * clean + level * noise, noise - clean, 1000.0 * levels

    def predict(self, noised: Tensor, times: Tensor, texts: list[str]) -> Tensor:
        """As `PixArtAlphaPipeline` calls its transformer; padding, which is masked, ends with the longest text."""
        read = self.tokenizer(texts, padding="longest", return_tensors="pt").to(self.device)
        hidden = self.model["text_encoder"](read.input_ids, attention_mask=read.attention_mask)[0]
        return self.model["transformer"](
            noised,
            encoder_hidden_states=hidden,
            encoder_attention_mask=read.attention_mask,
            timestep=times,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


def denoising(recipe: PipelineRecipe, cache: Cache, latents: Latents, parts: dict[str, Any], device: str) -> Denoising:
    """The task of a recipe, by the kind of its scheduler; arguments as for `Denoising`."""
    kind = VDenoising if recipe.config["scheduler"]["prediction_type"] == "v_prediction" else FlowDenoising
    return kind(recipe, cache, latents, parts, device)
