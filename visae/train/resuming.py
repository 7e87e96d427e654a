"""What a run puts into its checkpoints, and how it goes on from one."""

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


def newest(trainer: "Trainer", resume: bool) -> Path | None:
    """The checkpoint to go on from; None where the run starts anew.

    Raises:
        ValueError: if the folder holds a run that shall not be resumed, or there is no folder to resume from.
    """
    if trainer.folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run: give Trainer an out")
        return None
    found = checkpoint.listing(trainer.folder)
    if resume:
        return found[-1] if found else None
    if (found or (trainer.folder.parent / METRICS).exists()) and trainer.step == 0:
        raise ValueError(
            f"{trainer.out} holds a run already: pass resume=True to go on with it, or choose another folder"
        )
    return None


def identity(trainer: "Trainer") -> dict[str, Any]:
    """What decides the weights, and so must not change when a run is resumed."""
    fixed = {k: v for k, v in trainer.config.to_dict().items() if k not in FREE}
    return {
        **fixed,
        "precision": trainer.precision,
        "kind": trainer.sae.kind,
        "d": trainer.sae.d,
        "n_latents": trainer.sae.n_latents,
        "options": trainer.sae.options,
        "normaliser": trainer.sae.normaliser.name,
        "processes": trainer.accelerator.num_processes,
        "callbacks": {callback.name: callback.settings() for callback in trainer.callbacks},
    }


def save(trainer: "Trainer", feed: Batches) -> None:
    """Writes a checkpoint, on the main process only."""
    if trainer.folder is None or not trainer.accelerator.is_main_process:
        return
    feed.check()
    tensors = {f"sae.{name}": t for name, t in trainer.sae.state_dict().items()}
    tensors |= {f"adam.{name}": t for name, t in trainer.optimiser.state_dict().items()}
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
        "feed": feed.state(),
    }
    checkpoint.save(trainer.folder, checkpoint.Checkpoint(trainer.step, tensors, notes), trainer.config.keep)
    for callback in trainer.callbacks:
        callback.saved(trainer)


def restore(trainer: "Trainer", saved: checkpoint.Checkpoint, feed: Batches) -> None:
    """Puts a checkpoint into the trainer and its loader.

    Raises:
        ValueError: naming every setting that differs.
    """
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
    feed.restore(saved.notes["feed"])


def _part(saved: checkpoint.Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in saved.tensors.items() if name.startswith(prefix)}
