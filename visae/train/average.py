"""Moving average of the weights, which is measured and exported instead of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visae.ops import unit_rows
from visae.sae.dictionary import Losses
from visae.train.callbacks import Callback

if TYPE_CHECKING:
    from visae.train.trainer import Trainer


class Average(Callback):
    """`m <- decay m + (1 - decay) w` after every step, from m = 0; the weights are `m / (1 - decay^t)` (as in Adam).

    Rows that have length 1 while training are scaled back to it: the mean of unit rows is shorter. Costs one more copy
    of the weights and one pass over them per step.

    Args:
        decay: 0.999 averages over about the last thousand steps.

    Raises:
        ValueError: for a decay outside of (0, 1).
    """

    name = "ema"

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the weights' average lies between 0 and 1, got {decay}; 0.999 is usual")
        self.decay, self.count = decay, 0
        self.means: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """See `Callback.settings`."""
        return {"decay": self.decay}

    def attach(self, trainer: "Trainer") -> None:
        """See `Callback.attach`."""
        self.means = {name: torch.zeros_like(p) for name, p in trainer.optimiser.items()}

    @torch.no_grad()
    def after_step(self, trainer: "Trainer", _losses: Losses) -> None:
        """See `Callback.after_step`."""
        self.count += 1
        torch._foreach_lerp_(list(self.means.values()), list(trainer.optimiser.parameters.values()), 1 - self.decay)

    @contextmanager
    def evaluating(self, trainer: "Trainer") -> Iterator[None]:
        """See `Callback.evaluating`."""
        kept = {name: p.detach().clone() for name, p in trainer.optimiser.items()}
        self.finish(trainer)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in trainer.optimiser.items():
                    p.copy_(kept[name])

    @torch.no_grad()
    def finish(self, trainer: "Trainer") -> None:
        """See `Callback.finish`: the weights become the averages."""
        if not self.count:
            return
        for name, p in trainer.optimiser.items():
            p.copy_(self.means[name] / (1 - self.decay**self.count))
        for name in trainer.optimiser.unit:
            unit_rows(trainer.optimiser.parameters[name])
        trainer.sae.decoder.project()

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {**self.means, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.count = state["count"]
        for name, mean in self.means.items():
            mean.copy_(state[name])
