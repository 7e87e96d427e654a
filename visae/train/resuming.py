"""What a run puts into its checkpoints, and how it goes on from one, on as many processes as there are then."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visae.train import checkpoint
from visae.train.callbacks import pack, unpack
from visae.train.config import FREE
from visae.train.feed import Batches
from visae.train.record import METRICS

if TYPE_CHECKING:
    from visae.train.trainer import Trainer

LOG = logging.getLogger("visae.train")


def newest(trainer: "Trainer", resume: bool) -> Path | None:
    """The checkpoint to go on from, as the main process finds it; None where the run starts anew.

    Raises:
        ValueError: if the folder holds a run that shall not be resumed, or there is no folder to resume from.
    """
    if trainer.folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run: give Trainer an out")
        return None
    name = ""
    if trainer.processes.main:
        found = checkpoint.listing(trainer.folder)
        if not resume and (found or (trainer.folder.parent / METRICS).exists()) and trainer.step == 0:
            raise ValueError(
                f"{trainer.out} holds a run already: pass resume=True to go on with it, or choose another folder"
            )
        name = found[-1].name if resume and found else ""
    name = trainer.processes.notes(name)[0]
    return trainer.folder / name if name else None


def identity(trainer: "Trainer") -> dict[str, Any]:
    """What decides the weights, and so must not change when a run is resumed."""
    fixed = {k: v for k, v in trainer.config.to_dict().items() if k not in FREE | {"batch"}}
    return {
        **fixed,
        "precision": trainer.precision,
        "kind": trainer.sae.kind,
        "d": trainer.sae.d,
        "n_latents": trainer.sae.n_latents,
        "options": trainer.sae.options,
        "normaliser": trainer.sae.normaliser.name,
        "rows_per_step": trainer.rows_per_step,
        "callbacks": {callback.name: callback.settings() for callback in trainer.callbacks},
    }


def save(trainer: "Trainer", feed: Batches) -> None:
    """Writes a checkpoint, on the main process only; all take part."""
    if trainer.folder is None:
        return
    feed.check()
    feeds = trainer.processes.notes(feed.state())[:: trainer.shards.group.size]  # those of one dictionary read alike
    tensors = {f"sae.{name}": t for name, t in trainer.sae.state_dict().items()}
    tensors |= {f"adam.{name}": t for name, t in trainer.optimiser.state_dict().items()}
    tensors = trainer.shards.collect(tensors)
    if not trainer.processes.main:
        return
    states, notes_of = pack(trainer.callbacks)
    tensors |= {f"callback.{name}": t for name, t in states.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.device)
    notes = {
        "samples": trainer.samples,
        "stopped": trainer.stopped,
        "callbacks": notes_of,
        "run": identity(trainer),
        "feeds": feeds,
    }
    checkpoint.save(trainer.folder, checkpoint.Checkpoint(trainer.step, tensors, notes), trainer.config.keep)
    for callback in trainer.callbacks:
        callback.saved(trainer)


def restore(trainer: "Trainer", saved: checkpoint.Checkpoint, feed: Batches) -> None:
    """Puts a checkpoint into the trainer and its loader.

    Raises:
        ValueError: naming every setting that differs.
    """
    feeds, rows = saved.notes["feeds"], trainer.processes.share.rows
    if len(feeds) != rows.size and saved.notes["run"]["rows_per_step"] == trainer.config.batch * len(feeds):
        _keep_rows_per_step(trainer, saved.notes["run"]["rows_per_step"], len(feeds))
    now, then = identity(trainer), saved.notes["run"]
    if differing := [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in now if now[k] != then.get(k)]:
        raise ValueError(
            f"cannot resume {trainer.out} with other settings ({'; '.join(differing)}): use the old ones "
            "or start in another folder"
        )
    trainer.sae.load_state_dict(_part(saved, "sae."))
    trainer.optimiser.load_state_dict(_part(saved, "adam."))
    unpack(trainer.callbacks, _part(saved, "callback."), saved.notes["callbacks"])
    torch.set_rng_state(saved.tensors["rng.cpu"])
    if trainer.device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors["rng.cuda"], trainer.device)
    trainer.step, trainer.samples, trainer.stopped = saved.step, saved.notes["samples"], saved.notes["stopped"]
    if len(feeds) == rows.size:
        feed.restore(feeds[rows.rank])
    elif (told := feed.convert(feeds, trainer.rows_per_step // rows.size)) and trainer.processes.main:
        LOG.warning("from %d processes to %d: %s", len(feeds), rows.size, told)


def _keep_rows_per_step(trainer: "Trainer", rows_per_step: int, before: int) -> None:
    """Changes the batch of each process, so that a step is on as many rows as on another number of processes."""
    now = trainer.processes.share.rows.size
    if rows_per_step % now:
        raise ValueError(
            f"{trainer.out} takes steps on {rows_per_step} rows ({before} processes with batches of "
            f"{trainer.config.batch}), which {now} processes cannot share evenly: start another number of them"
        )
    trainer.set_rows_per_step(rows_per_step)
    if trainer.processes.main:
        LOG.warning(
            "from %d processes to %d: each takes batches of %d rows instead of %d, so that steps stay on %d rows",
            *(before, now, rows_per_step // now, trainer.config.batch, rows_per_step),
        )


def rows_per_step(out: Path) -> int | None:
    """Rows per step, over all processes, of the run in a folder; None where none has left a checkpoint."""
    told = _last_notes(out)
    return int(told["run"]["rows_per_step"]) if told else None


def rows_done(out: Path) -> int:
    """Rows that the run in a folder was trained on by its last checkpoint, over all processes."""
    told = _last_notes(out)
    return int(told["samples"]) if told else 0


def _last_notes(out: Path) -> dict[str, Any]:
    """What the last checkpoint of a run says beside its tensors; empty where there is none."""
    found = checkpoint.listing(out / "checkpoints")
    return checkpoint.notes(found[-1]) if found else {}


def _part(saved: checkpoint.Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in saved.tensors.items() if name.startswith(prefix)}
