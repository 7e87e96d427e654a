"""Numbers of a training step: what a line of `metrics.jsonl` says, and whether the loss is still a number."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visae.sae import Rows
from visae.sae.dictionary import Losses

if TYPE_CHECKING:
    from visae.train.trainer import Trainer


@torch.no_grad()
def step_metrics(trainer: "Trainer", losses: Losses, x: Tensor | Rows, lr: float) -> dict[str, Any]:
    """Loss and its terms, FVU and L0 of the batch, share of dead latents, over all processes."""
    x, group, latents = x.rows if isinstance(x, Rows) else x, trainer.processes.share.rows, trainer.shards.group
    recon = trainer.sae.restore(losses.recon, x)
    values = {
        "loss": losses.total,
        **losses.terms,
        "fvu": (x - recon).square().sum(1).mean() / group.variance(x).sum(),
        "l0": latents.sum(losses.codes.l0()),
        "dead": latents.mean((trainer.sae.samples_since_fired >= trainer.dead_window).double().mean()),
    }
    stacked = group.mean(torch.stack([v.detach().double() for v in values.values()]))
    numbers = dict(zip(values, stacked.tolist(), strict=True))
    return {"samples": trainer.samples, **numbers, "lr": lr, "kernels": trainer.kernels}


def check_loss(trainer: "Trainer", losses: Losses) -> None:
    """Refuses to go on from a loss that is no longer finite.

    Raises:
        FloatingPointError: naming the terms, and what to do.
    """
    values = {name: float(term.detach()) for name, term in losses.terms.items()}
    if wrong := [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"the loss is no longer finite at step {trainer.step} ({', '.join(wrong)}): training diverged at a peak "
            f"learning rate of {trainer.lr:.3g}. Lower TrainConfig.lr"
        )
