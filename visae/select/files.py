"""A description and its tensors: JSON that names the safetensors file beside it, so that the two are never mixed up."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visae.json_files import write_json
from visae.sae.files import digest

TENSORS = "tensors"
"""Key of the description under which the file of tensors stands."""


def write_described(path: Path, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes a description and its tensors; until all is there, what stood there before stays as it was.

    The tensors' file is named by its content and comes first, the description comes after it, each under another name
    until it is whole. Without tensors there is no such file.

    Args:
        path: of the JSON; its folder is made if needed.
        told: the description.
        tensors: by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _named(path)
    if tensors:
        partial = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
            sha256 = digest(partial)
            file = path.with_name(f"{path.stem}.{sha256[:12]}.safetensors")
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        told = told | {TENSORS: {"file": file.name, "sha256": sha256}}
    write_json(path, told)
    if before is not None and before != told.get(TENSORS, {}).get("file"):
        path.with_name(before).unlink(missing_ok=True)


def read_described(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A description and its tensors, as `write_described` wrote them; the tensors' entry is taken out.

    Raises:
        FileNotFoundError: if one of the two is missing.
        ValueError: if the tensors are not those that the description names.
    """
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    entry = told.pop(TENSORS, None)
    if entry is None:
        return told, {}
    file = path.with_name(entry["file"])
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, but {path.name} names it: copy both files, or make them again")
    if (found := digest(file)) != entry["sha256"]:
        raise ValueError(
            f"{file} is damaged: sha256 {found[:16]}..., {path.name} says {entry['sha256'][:16]}...; "
            "copy it or make it again"
        )
    try:
        return told, load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error


def _named(path: Path) -> str | None:
    """The file of tensors that a description names which stands there already."""
    try:
        return json.loads(path.read_text(encoding="utf8"))[TENSORS]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
