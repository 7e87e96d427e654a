"""What the measures on real sets of prompts share: settings of an entry, packages of others, pictures from files."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from visae.data import read_config, read_image


def settings(name: str) -> dict[str, Any]:
    """What an entry of `datasets_cfg/` says under `measured_with`.

    Raises:
        UnknownName: if there is no such entry.
        ValueError: if it says nothing.
    """
    config = read_config(name)
    if "measured_with" not in config:
        raise ValueError(f"the entry {name} has no key measured_with, which says what its pictures are measured with")
    return config["measured_with"]


def need_package(module: str, package: str, what: str) -> Any:
    """A module of a package that visae does without otherwise.

    Args:
        module: to import.
        package: as pip calls it.
        what: needs it, in the plural.

    Raises:
        ValueError: if it is not installed, saying how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} need the package {package}: pip install 'visae[measure]'") from error


def need_file(path: Path, what: str, source: str) -> Path:
    """A path that is there.

    Raises:
        FileNotFoundError: naming what should lie there and where it comes from.
    """
    if not path.exists():
        raise FileNotFoundError(f"{what} should be at {path}; see {source}")
    return path


def opened(paths: Sequence[Path], batch: int) -> Iterator[list[Image.Image]]:
    """Pictures of files, so many at a time."""
    for start in range(0, len(paths), batch):
        yield [read_image(path) for path in paths[start : start + batch]]
