"""The training loop of the recipes: resumable, with a running average of the weights."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from visae.world.recipes import Schedule
from visae.world.training.cache import N_CAPTIONS

_CLIP_NORM = 1.0


class Learning(Protocol):
    """What the loop trains.

    Attributes:
        model: what ships.
        helper: what only training needs, or an empty module.
        device: where both are.
        levels: `[n]` difficulty of each row of the cache; a row above every level of the curriculum is never shown.
    """

    model: Any
    helper: Any
    device: str
    levels: np.ndarray

    def loss(self, rows: np.ndarray, pick: np.ndarray, step: int) -> dict[str, Tensor]:
        """Losses of one batch, a function of its arguments and the weights; the entry `total` is to be minimised."""
        ...


def learning_rate(recipe: Schedule, step: int) -> float:
    """Linear warm-up, the peak, then a cosine to 2 % of the peak over the last `decay` of the steps."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    start = max(recipe.warmup, round((1.0 - recipe.decay) * recipe.steps))
    along = max(0, step - start) / max(1, recipe.steps - start)
    return recipe.lr * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * along)))


def batch_rows(recipe: Schedule, levels: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cache and caption numbers of one step: a function of the step, so that resuming changes nothing.

    Args:
        recipe: batch size, seed and curriculum.
        levels: `[n]` difficulty of each row, from `difficulty`.
        step: which.

    Returns:
        (`[B]` rows, `[B]` 0 or 1).
    """
    starts = [round(share * recipe.steps) for share in recipe.curriculum]
    level = max(number for number, start in enumerate(starts) if step >= start)
    pool = np.flatnonzero(levels <= level)
    epoch, within = divmod(step - starts[level], max(1, len(pool) // recipe.batch))
    order = np.random.default_rng((recipe.seed, level, epoch)).permutation(pool)
    rows = np.sort(order[within * recipe.batch : (within + 1) * recipe.batch])
    return rows, np.random.default_rng((recipe.seed, 99, step)).integers(0, N_CAPTIONS, len(rows))


class Average:
    """Running average of everything floating in a module's state.

    Args:
        module: what to follow.
        decay: share of the old average that stays at every step (less in the first steps).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's present state."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value.detach(), 1.0 - decay)
            else:
                self.state[key].copy_(value)


def _optimizer(task: Learning, recipe: Schedule) -> torch.optim.AdamW:
    weights = [p for part in (task.model, task.helper) for p in part.parameters()]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, betas=(0.9, 0.98), fused=True)


def _save(path: Path, step: int, task: Learning, optimizer: torch.optim.Optimizer, average: Average) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old or the new one."""
    whole = {
        "step": step,
        "model": task.model.state_dict(),
        "helper": task.helper.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
    }
    part = path.with_suffix(".part")
    torch.save(whole, part)
    part.replace(path)


def _resume(path: Path, task: Learning, optimizer: torch.optim.Optimizer, average: Average) -> int:
    if not path.exists():
        return 0
    whole = torch.load(path, map_location=task.device, weights_only=True)
    task.model.load_state_dict(whole["model"])
    task.helper.load_state_dict(whole["helper"])
    optimizer.load_state_dict(whole["optimizer"])
    average.state = whole["average"]
    return whole["step"]


def fit(
    task: Learning,
    recipe: Schedule,
    checkpoint: Path,
    on_save: Callable[[int, dict[str, Tensor]], None],
    every: int = 250,
) -> dict[str, Tensor]:
    """Train to the last step.

    Args:
        task: what to train.
        recipe: how.
        checkpoint: file to resume from and to save to.
        on_save: called with (step, averaged weights) whenever a checkpoint was written.
        every: steps between checkpoints.

    Returns:
        The averaged weights.
    """
    optimizer = _optimizer(task, recipe)
    average = Average(task.model, recipe.ema)
    start = _resume(checkpoint, task, optimizer, average)
    kind = torch.device(task.device).type
    began = time.monotonic()
    # Many tiny attentions: plain matrix products beat the fused kernel on a CPU.
    with tqdm(total=recipe.last, initial=start, desc=recipe.name) as bar, sdpa_kernel(SDPBackend.MATH):
        for step in range(start, recipe.last):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            with torch.autocast(kind, torch.bfloat16):
                losses = task.loss(*batch_rows(recipe, task.levels, step), step)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], _CLIP_NORM)
            optimizer.step()
            average.update(task.model, step)
            bar.update()
            bar.set_postfix({key: f"{value.item():.3f}" for key, value in losses.items()}, refresh=False)
            if (step + 1) % every == 0 or step + 1 == recipe.last:
                _save(checkpoint, step + 1, task, optimizer, average)
                on_save(step + 1, average.state)
    bar.write(f"{recipe.name}: {recipe.last - start} steps in {time.monotonic() - began:.0f} s")
    return average.state
