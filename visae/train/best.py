"""The best dictionary of a run by held-out FVU: kept, told, used; and the end of a run that stops getting better."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from visae.train import checkpoint
from visae.train.callbacks import Callback

if TYPE_CHECKING:
    from visae.train.trainer import Trainer


class Best(Callback):
    """Keeps the dictionary with the lowest `val_fvu`, in `checkpoints/best-STEP` where the run has a folder.

    Args:
        patience: validations without a new best after which the run ends; None never ends it. The learning rate then
            has not fallen, so a run that ends early is not as good as a run that was planned that long.
        use: whether the run ends with the best dictionary instead of the last.
    """

    name = "best"

    def __init__(self, patience: int | None, use: bool):
        self.patience, self.use = patience, use
        self.fvu: float | None = None
        self.step = self.waited = self.every = 0
        self._held: dict[str, Tensor] | None = None

    def settings(self) -> dict[str, Any]:
        """See `Callback.settings`."""
        return {"patience": self.patience, "use": self.use, "validate_every": self.every}

    def attach(self, trainer: "Trainer") -> None:
        """See `Callback.attach`."""
        if trainer.config.validate_every is None:
            raise ValueError("patience and best look at held-out batches: set validate_every, and give validation")
        self.every = trainer.config.validate_every

    def validated(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """See `Callback.validated`."""
        fvu = metrics["val_fvu"]
        if math.isfinite(fvu) and (self.fvu is None or fvu < self.fvu):
            self.fvu, self.step, self.waited = fvu, trainer.step, 0
            metrics["best"] = True
            self._keep(trainer)
        else:
            self.waited += 1
            trainer.stopped |= self.patience is not None and self.waited >= self.patience

    def _keep(self, trainer: "Trainer") -> None:
        state = {name: t.detach() for name, t in trainer.sae.state_dict().items()}
        if trainer.folder is None:
            self._held = {name: t.cpu().clone() for name, t in state.items()}
        elif trainer.processes.main:
            best = checkpoint.Checkpoint(self.step, state, {"val_fvu": self.fvu})
            checkpoint.write(trainer.folder, _name(self.step), best)

    def saved(self, trainer: "Trainer") -> None:
        """Drops the dictionaries that no checkpoint speaks of any more."""
        assert trainer.folder is not None
        wanted = {_name(step) for step in _spoken_of(trainer.folder)}
        for old in trainer.folder.glob("best-*"):
            if old.name not in wanted:
                shutil.rmtree(old)

    def finish(self, trainer: "Trainer") -> None:
        """See `Callback.finish`.

        Raises:
            ValueError: if the best dictionary is to be used and its checkpoint was removed.
        """
        if not self.use or self.fvu is None:
            return
        if trainer.folder is None:
            assert self._held is not None
            trainer.sae.load_state_dict(self._held)
        elif trainer.processes.main:
            path = trainer.folder / _name(self.step)
            if not path.is_dir():
                raise ValueError(f"{path}, the best dictionary of this run, is gone: put it back, or train anew")
            trainer.sae.load_state_dict(checkpoint.load(path).tensors)

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        return {"fvu": self.fvu, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.fvu, self.step, self.waited = state["fvu"], state["step"], state["waited"]


def _name(step: int) -> str:
    return f"best-{step:09d}"


def _spoken_of(folder: Path) -> Iterator[int]:
    """Steps of the best dictionaries that checkpoints would go on with."""
    for path in checkpoint.listing(folder):
        try:
            notes = json.loads((path / checkpoint.NOTES).read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue  # damaged; nobody can go on from it
        yield notes["callbacks"][Best.name]["step"]
