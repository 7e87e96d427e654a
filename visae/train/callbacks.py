"""`Callback`: what may happen around the steps of a run without touching them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from visae.sae.dictionary import Losses
from visae.sae.side import Rows

if TYPE_CHECKING:
    from visae.train.trainer import Trainer


class Callback:
    """Base of the callbacks; every hook does nothing unless overridden.

    Order: `attach` when the trainer is made; `begin` before the first step of a new run, or `load_state_dict` where one
    is resumed; after each step `after_step`, then `logged` and `validated` where they are due, then the checkpoint with
    `state_dict` in it; `finish` at the end. A run must end with the same bits whether it was interrupted or not: what
    a callback remembers belongs into its state, and what it draws comes from torch's own generators.

    Attributes:
        name: of its state in the checkpoint; unique in a trainer.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """JSON values that decide what it does; a run is resumed with the same ones only."""
        return {}

    def attach(self, trainer: "Trainer") -> None:
        """Looks at the trainer it belongs to.

        Raises:
            ValueError: if it cannot work with this dictionary or these settings.
        """

    def begin(self, trainer: "Trainer", rows: Tensor | Rows) -> None:
        """The weights have their start; `rows` `[n, d]` are the raw tokens that it was made from."""

    def after_step(self, trainer: "Trainer", losses: Losses) -> None:
        """The weights were updated from `losses` on the batch `trainer.last`; `trainer.step` steps are done."""

    def logged(self, trainer: "Trainer", losses: Losses, metrics: dict[str, Any]) -> None:
        """These numbers are about to be written; entries may be added."""

    def validated(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """Held-out metrics were taken, and are about to be written; runs inside `trainer.evaluating()`."""

    def evaluating(self, _trainer: "Trainer") -> AbstractContextManager[None]:
        """Context in which the dictionary is as it would be measured or exported."""
        return nullcontext()

    def saved(self, trainer: "Trainer") -> None:
        """A checkpoint was written (on the main process); what only dropped ones needed may go."""

    def finish(self, trainer: "Trainer") -> None:
        """All steps are done; thresholds are calibrated and the dictionary measured afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values to go on from."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reverse of `state_dict`."""


def gather(trainer: "Trainer", more: Iterable[Callback]) -> list[Callback]:
    """The callbacks that the settings of a run ask for, and more.

    Raises:
        ValueError: if two share a name, or one cannot work with the trainer.
    """
    from visae.train.average import Average
    from visae.train.best import Best
    from visae.train.resample import Resample
    from visae.train.trouble import Watch

    config = trainer.config
    found: list[Callback] = []
    if config.resample_every is not None:
        found.append(Resample(config.resample_every))
    if config.ema is not None:
        found.append(Average(config.ema))
    if config.best or config.patience is not None:
        found.append(Best(config.patience, use=config.best))
    found += [Watch(), *more]
    names = [callback.name for callback in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"callbacks need different names, got {', '.join(twice)} twice")
    for callback in found:
        callback.attach(trainer)
    return found


def pack(callbacks: Iterable[Callback]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of callbacks for a checkpoint: tensors by `NAME.KEY`, and JSON values by name."""
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for callback in callbacks:
        state = callback.state_dict()
        tensors |= {f"{callback.name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        notes[callback.name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return tensors, notes


def unpack(callbacks: Iterable[Callback], tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Reverse of `pack`."""
    for callback in callbacks:
        prefix = f"{callback.name}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        callback.load_state_dict({**own, **notes[callback.name]})
