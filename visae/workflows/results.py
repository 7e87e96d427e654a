"""Results that are kept in a folder as soon as they are there, so that a stopped job goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from visae.json_files import write_json


class Results:
    """JSON results, each under all that decided it.

    Args:
        folder: where they lie; made when the first is written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def get(self, about: dict[str, Any]) -> Any:
        """The result of what is described by `about`, or None."""
        file = self._file(about)
        return json.loads(file.read_text(encoding="utf8"))["result"] if file.is_file() else None

    def put(self, about: dict[str, Any], result: Any) -> None:
        """Keeps a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(about), {"about": about, "result": result})

    def _file(self, about: dict[str, Any]) -> Path:
        return self.folder / f"{digest(about)}.json"


def digest(*told: Any) -> str:
    """16 hex digits that change whenever anything that is told does; it is told as JSON."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plainly(told: Any) -> Any:
    """The same as JSON gives it back; what JSON cannot hold becomes text."""
    return json.loads(json.dumps(told, default=str))


def kept_pictures(folder: Path, n: int, make: Callable[[], list[Image.Image]]) -> list[Image.Image]:
    """Pictures that lie in a folder as PNG; made and written if not all of them do.

    Args:
        folder: `00000.png` and so on.
        n: how many there should be.
        make: makes them all.
    """
    files = [folder / f"{i:05d}.png" for i in range(n)]
    if all(file.is_file() for file in files):
        found = []
        for file in files:
            with Image.open(file) as kept:
                found.append(kept.convert("RGB"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    made = [picture.convert("RGB") for picture in make()]
    for picture, file in zip(made, files, strict=True):
        keep_picture(picture, file)
    return made


def keep_picture(picture: Image.Image, file: Path) -> None:
    """Writes a PNG, under another name until it is whole."""
    partial = file.with_suffix(".tmp")
    picture.save(partial, "PNG")
    os.replace(partial, file)
