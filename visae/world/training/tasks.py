"""What the recipes learn: rows of the cache in, loss out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world import models
from visae.world.models.tokenizer import WorldTokenizer
from visae.world.recipes import Recipe
from visae.world.training.cache import Cache
from visae.world.training.facts import presence, truth
from visae.world.training.losses import DenseHeads, contrastive


def normalised(images: np.ndarray, preprocess: dict[str, Any], device: str = "cpu") -> Tensor:
    """Images `[B, S, S, 3]` uint8 to what a model eats, `[B, 3, S, S]` float32."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(preprocess[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


class Task:
    """A model in training.

    Args:
        recipe: how.
        cache: on what.
        device: where.
        tokenizer: for models with a text tower.

    Attributes:
        model: what ships.
        helper: what only training needs (the heads of the auxiliary loss), or an empty module.
    """

    def __init__(self, recipe: Recipe, cache: Cache, device: str, tokenizer: WorldTokenizer | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.cache, self.device, self.tokenizer = recipe, cache, device, tokenizer
        self.model = models.make(recipe.name, recipe.config).to(device).train()
        self.helper: nn.Module = nn.Identity()
        if recipe.dense > 0.0:
            self.helper = DenseHeads(self._block().ln_1.weight.numel() if self._is_clip else self.model.embed_dim)
            self.helper.to(device)

    @property
    def _is_clip(self) -> bool:
        return "model_cfg" in self.recipe.config

    def _block(self) -> nn.Module:
        """The block whose output the auxiliary loss reads."""
        blocks = self.model.visual.transformer.resblocks if self._is_clip else self.model.blocks
        return blocks[self.recipe.dense_block]

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """Collects the output of the watched block, where there is one."""
        seen: list[Tensor] = []
        if self.recipe.dense == 0.0:
            yield seen
            return
        handle = self._block().register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            yield seen
        finally:
            handle.remove()

    def loss(self, rows: np.ndarray, pick: np.ndarray) -> dict[str, Tensor]:
        """Losses of one batch; the entry `total` is the one to minimise.

        Args:
            rows: `[B]` rows of the cache.
            pick: `[B]` which caption of each row to use.
        """
        images = normalised(self.cache.images[rows], self.recipe.config["preprocess_cfg"], self.device)
        facts = torch.from_numpy(self.cache.facts[rows]).to(self.device)
        with self._watched() as seen:
            main = self._contrastive(images, facts, rows, pick) if self._is_clip else self._labels(images, facts)
        parts = {"main": main}
        if seen:
            objects = torch.from_numpy(self.cache.patches[rows]).to(self.device)
            parts["dense"] = self.helper(seen[0][:, -objects.shape[1] :], objects, facts)
        return parts | {"total": main + self.recipe.dense * parts.get("dense", 0.0)}

    def _contrastive(self, images: Tensor, facts: Tensor, rows: np.ndarray, pick: np.ndarray) -> Tensor:
        if self.tokenizer is None:
            raise ValueError("training a model with a text tower needs a tokenizer, got None; pass `tokenizer=`")
        said = torch.from_numpy(self.cache.captions[rows, pick]).to(self.device)
        texts = self.tokenizer([text.decode() for text in self.cache.texts[rows, pick]]).to(self.device)
        image_codes, text_codes, scale = self.model(images, texts)
        scores = image_codes.float() @ text_codes.float().T * scale.float().clamp(max=100.0)
        return contrastive(scores, truth(facts, said))

    def _labels(self, images: Tensor, facts: Tensor) -> Tensor:
        target, weight = presence(facts, self.recipe.config["labels"])
        logits = self.model(images).float()
        return (functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).mean() * 20.0
