"""What the recipes learn: rows of the cache in, loss out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world import models
from visae.world.captions import Caption, prompts
from visae.world.factors import FACTORS
from visae.world.models.word_tokenizer import WorldTokenizer
from visae.world.recipes import Recipe
from visae.world.training.cache import PATCH, Cache
from visae.world.training.facts import caption_facts, difficulty, presence, truth
from visae.world.training.losses import DenseHeads, contrastive
from visae.world.training.wear import worn

_SPOKEN = ("shape", "family", "style", "colour", "background", "size", "position")


def _single(factor: str, value: str) -> Caption:
    if factor == "background":
        return Caption("", background=value)
    return Caption("", ({factor: value},))


def normalised(images: np.ndarray, preprocess: dict[str, Any], device: str = "cpu") -> Tensor:
    """Images `[B, S, S, 3]` uint8 to what a model eats, `[B, 3, S, S]` float32."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(preprocess[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def centred(masks: Tensor) -> Tensor:
    """Whether all four central pixels of each patch show an object: `[B, P, 64]` masks to `[B, P]` bool."""
    side = PATCH // 2
    pixels = masks.unflatten(-1, (PATCH, PATCH))[..., side - 1 : side + 1, side - 1 : side + 1]
    return pixels.flatten(-2).bool().all(-1)


def start_positions(model: nn.Module, scale: float = 0.3) -> None:
    """Start the learnt position embedding of a ViT from sines and cosines of row and column.

    From random positions, small transformers see colour and texture at once and shape, which is an arrangement of
    patches, hardly ever. A model without a position embedding stays as it is.
    """
    tower = getattr(model, "visual", model)
    table = getattr(tower, "positional_embedding", getattr(tower, "pos_embed", None))
    if table is None:
        return
    flat = table.data.view(-1, table.shape[-1])
    width, side = flat.shape[1], 8
    rates = torch.pi / 2 * 10.0 ** -torch.linspace(0, 1.5, width // 4)
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [wave(place.reshape(-1, 1) * rates) for place in (cols, rows) for wave in (torch.sin, torch.cos)]
    flat[-side * side :] = scale * torch.cat(waves, 1).to(flat)


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
        levels: `[n]` difficulty of each row of the cache.
    """

    def __init__(self, recipe: Recipe, cache: Cache, device: str, tokenizer: WorldTokenizer | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.cache, self.device, self.tokenizer = recipe, cache, device, tokenizer
        self.levels = difficulty(np.asarray(cache.facts))
        # Any: the towers are reached by the names that open_clip and timm give them.
        self.model: Any = models.make(recipe.name, recipe.config).to(device).train()
        start_positions(self.model)
        # Sentences that state one value each join every batch: captions that state many teach single words slowly.
        singles = [(factor, value) for factor in _SPOKEN for value in FACTORS[factor]]
        self._singles = [prompts(factor, value) for factor, value in singles]
        self._single_facts = np.stack([caption_facts(_single(factor, value)) for factor, value in singles])
        self.helper: Any = nn.Identity()
        if recipe.dense > 0.0:
            block: Any = self._blocks()[0]
            width = block.ln_1.weight.numel() if self._is_clip else self.model.embed_dim
            self.helper = DenseHeads(width).to(device)  # type: ignore[arg-type]

    @property
    def _is_clip(self) -> bool:
        return "model_cfg" in self.recipe.config

    def _blocks(self) -> list[Any]:
        """The early and the late block whose outputs the auxiliary losses read."""
        blocks = self.model.visual.transformer.resblocks if self._is_clip else self.model.blocks
        return [blocks[self.recipe.mask_block], blocks[self.recipe.dense_block]]

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """Collects the outputs of the watched blocks, where there are any."""
        seen: list[Tensor] = []
        if self.recipe.dense == 0.0:
            yield seen
            return
        handles = [
            block.register_forward_hook(lambda _module, _args, output: seen.append(output)) for block in self._blocks()
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, rows: np.ndarray, pick: np.ndarray, step: int) -> dict[str, Tensor]:
        """Losses of one batch; the entry `total` is the one to minimise.

        Args:
            rows: `[B]` rows of the cache.
            pick: `[B]` which caption of each row to use.
            step: which; late ones ask patches at the rim of objects to name nothing.
        """
        refine = step >= self.recipe.refine * self.recipe.steps
        images = normalised(self.cache.images[rows], self.recipe.config["preprocess_cfg"], self.device)
        if self.recipe.worn:
            images = worn(images, self.recipe.worn, self.recipe.seed + step)
        facts = torch.from_numpy(self.cache.facts[rows]).to(self.device)
        with self._watched() as seen:
            main = self._contrastive(images, facts, rows, pick) if self._is_clip else self._labels(images, facts)
        parts = {"main": main}
        if seen:
            objects = torch.from_numpy(self.cache.patches[rows]).to(self.device)
            masks = torch.from_numpy(np.unpackbits(self.cache.masks[rows], axis=2)).to(self.device).float()
            early, late = (tokens[:, -objects.shape[1] :] for tokens in seen)
            parts["mask"] = self.helper.outline_loss(early, masks)
            parts["dense"] = self.helper(late, objects, facts, centred(masks) if refine else None)
            extra = self.recipe.dense * parts["dense"] + self.recipe.mask * parts["mask"]
            return parts | {"total": main + extra}
        return parts | {"total": main}

    def _contrastive(self, images: Tensor, facts: Tensor, rows: np.ndarray, pick: np.ndarray) -> Tensor:
        if self.tokenizer is None:
            raise ValueError("training a model with a text tower needs a tokenizer, got None; pass `tokenizer=`")
        said = torch.from_numpy(np.concatenate([self.cache.captions[rows, pick], self._single_facts]))
        texts = [text.decode() for text in self.cache.texts[rows, pick]]
        texts += [options[rows[k % len(rows)] % len(options)] for k, options in enumerate(self._singles)]
        image_codes, text_codes, scale = self.model(images, self.tokenizer(texts).to(self.device))
        scores = image_codes.float() @ text_codes.float().T * scale.float().clamp(max=100.0)
        return contrastive(scores, truth(facts, said.to(self.device)))

    def _labels(self, images: Tensor, facts: Tensor) -> Tensor:
        target, weight = presence(facts, self.recipe.config["labels"])
        logits = self.model(images).float()
        return (functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).mean() * 20.0
