"""Checkpoints: one folder each, safetensors and JSON, renamed into place when whole."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from visae.sae.files import digest
from visae.train import pieces

STATE, NOTES = "state.safetensors", "state.json"
SCHEMA = 2


@dataclass
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        step: optimiser steps done.
        tensors: weights, buffers, moments, random states: `Tensor`, or, to be written, `visae.train.pieces.Pieces`.
        notes: JSON values: configuration, samples, state of the loader.
    """

    step: int
    tensors: Mapping[str, Any]
    notes: dict[str, Any]


def listing(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / NOTES).is_file())


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `step-N`, then drops all such checkpoints but the newest `keep`; other names stay.

    Raises:
        TypeError: if the notes (in practice: a loader's state) hold something JSON cannot.
    """
    final = write(folder, f"step-{checkpoint.step:09d}", checkpoint)
    for old in listing(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def write(folder: Path, name: str, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint under a name; whenever it is cut short, what lay there before is whole or replaced.

    Raises:
        TypeError: if the notes hold something JSON cannot.
    """
    final, temporary = folder / name, folder / f".{name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale)
    temporary.mkdir()
    pieces.write(temporary / STATE, checkpoint.tensors)
    told = {"schema": SCHEMA, "step": checkpoint.step, "sha256": digest(temporary / STATE), **checkpoint.notes}
    text = json.dumps(told, indent=1)
    (temporary / NOTES).write_text(text, encoding="utf-8")
    if final.exists():  # the same step, done again after an interruption
        if _holds(final, text, told["sha256"]):
            shutil.rmtree(temporary)
            return final
        shutil.rmtree(final)
    os.replace(temporary, final)
    return final


def _holds(path: Path, text: str, sha256: str) -> bool:
    files = (path / NOTES).is_file() and (path / STATE).is_file()
    return files and (path / NOTES).read_text(encoding="utf-8") == text and digest(path / STATE) == sha256


def load(path: Path, part: Callable[[str], slice | None] = lambda _: None) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: its folder.
        part: which rows of a tensor are wanted; None takes all.

    Raises:
        ValueError: if it is damaged, naming the file.
    """
    told = notes(path)
    if not (path / STATE).is_file() or digest(path / STATE) != told.pop("sha256"):
        raise ValueError(f"{path / STATE} is missing or damaged; remove {path} to go on from the checkpoint before")
    with safe_open(path / STATE, "pt") as file:
        tensors = {
            name: file.get_tensor(name) if (rows := part(name)) is None else file.get_slice(name)[rows]
            for name in file.keys()  # noqa: SIM118 (it is no dict)
        }
    return Checkpoint(step=told.pop("step"), tensors=tensors, notes=told)


def notes(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, and the step and checksum.

    Raises:
        ValueError: if it is damaged, or of another version.
    """
    try:
        told: dict[str, Any] = json.loads((path / NOTES).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / NOTES} is damaged ({error}); remove {path} to go on from the one before") from error
    if told.pop("schema") != SCHEMA:
        raise ValueError(f"{path} was written by another version of visae; this one reads checkpoint schema {SCHEMA}")
    return told
