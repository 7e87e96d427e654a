"""How a run begins (statistics of the inputs, first weights) and how it ends (thresholds, last metrics)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from visae.ops import Share, sharing
from visae.sae import Rows, initialise
from visae.sae.checks import check_moments
from visae.train.feed import Batches, LoaderEnded
from visae.train.record import Recorder
from visae.train.validate import own_rows, validate

if TYPE_CHECKING:
    from visae.train.trainer import Trainer


def begin(trainer: "Trainer", feed: Batches) -> None:
    """Statistics from the first rows of the loader, then weights."""
    moments, rows = feed.first(trainer.config.stat_rows, trainer.sae.normaliser.covariance)
    check_moments(moments)
    config = trainer.config
    if config.start == "given":
        if not bool(trainer.sae.W_dec.any()):
            raise ValueError("start='given' goes on from trained weights, but this dictionary has none yet: load one")
        trainer.sae.samples_since_fired.zero_()
    else:
        latents = trainer.shards.group
        with sharing(Share(latents=latents, all=latents)):  # every process has the rows of all and does the same
            initialise(
                trainer.sae,
                rows,
                moments,
                config.seed,
                start=config.start,
                centre=config.centre,
                first=trainer.shards.start,
                ops=trainer.ops if latents.size > 1 else None,
            )
    agree(trainer)
    for callback in trainer.callbacks:
        callback.begin(trainer, rows)


def agree(trainer: "Trainer") -> None:
    """Gives processes that hold the same latents the weights and buffers of the first of them."""
    for tensor in trainer.sae.state_dict().values():
        trainer.processes.share.rows.spread(tensor)


def finish(
    trainer: "Trainer", feed: Batches, recorder: Recorder, validation: Iterable[Tensor | Rows] | None
) -> dict[str, Any]:
    """Calibrates thresholds and measures on validation batches; returns the last metrics."""
    for callback in trainer.callbacks:
        callback.finish(trainer)
    agree(trainer)  # the main process may have read the best dictionary
    sae = trainer.sae
    if sae.activation.calibrates:
        given = None if validation is None else (Rows(x, side) for x, side in own_rows(sae, validation))
        if held_out := _held_out(trainer, feed) if given is None else given:
            sae.calibrate(held_out)
    sae.eval()
    last = recorder.history[-1] if recorder.history else {"step": trainer.step}
    metrics = {name: value for name, value in last.items() if name != "warnings"}
    if validation is not None:
        values = validate(sae, validation, trainer.ops)
        recorder.log(trainer.step, {**values, "final": True})
        metrics |= values
    trainer.shards.finish(sae)
    return metrics


def _held_out(trainer: "Trainer", feed: Batches) -> list[Tensor | Rows]:
    """The next batches of the loader; the last one trained on where the loader has no more."""
    batches: list[Tensor | Rows] = []
    # a short run is not worth a long calibration
    wanted = -(-min(trainer.config.calibration_rows, trainer.samples) // trainer.processes.share.rows.size)
    while sum(b.shape[0] for b in batches) < wanted:
        try:
            batches.append(next(feed))
        except LoaderEnded:
            break
    return batches or ([] if trainer.last is None else [trainer.last])
