"""From what a user types to a data set."""

import glob
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import numpy as np

from visae.data import coco as _coco  # noqa: F401 - registers its layout
from visae.data.configs import config_names, load_config, read_config
from visae.data.files import FileData, Record
from visae.data.images import Check, image_extensions
from visae.data.layouts import LAYOUTS
from visae.data.sample import ImageData
from visae.data.splits import subset
from visae.registry import UnknownName

Source = Callable[[str], ImageData]

SOURCES = {"world": "visae.world:world_from_spec"}
"""Prefix of a spec -> `module:function` that makes the data set from the whole spec. The module is imported when it is
asked for; other packages add theirs through the entry-point group `visae.data`."""

_FOLDER_KEYS = ("check", "n", "factor")


def load_data(spec: str | Path | Sequence[str | Path], **query: object) -> ImageData:
    """The data set that a text describes.

    Args:
        spec: one of
            `world:train?n=4000&objects=1`, the built-in world;
            a folder (class folders become the factor `class`), a file, a glob such as `photos/*.jpg`, a list of these,
            with `?check=full` to leave out files that do not decode and `?n=100` to take so many, evenly spaced;
            an entry of `datasets_cfg/`, e.g. `imagenet?root=/data/imagenet&split=val`.
        query: more keys, as after the question mark.

    Raises:
        UnknownName: for a name or key that does not exist, with those nearest to it.
        FileNotFoundError: if files are not where they should be, saying where that is.
        ValueError: for a value out of range.
    """
    extra = {key: str(value) for key, value in query.items()}
    if isinstance(spec, Path):
        return _files(str(spec), spec.expanduser(), extra)
    if not isinstance(spec, str):
        return _listed(list(spec), extra)
    if Path(spec).expanduser().exists():
        return _files(spec, Path(spec).expanduser(), extra)
    prefix = spec.partition(":")[0].partition("?")[0]
    if prefix in _sources() and spec.startswith((prefix + ":", prefix + "?")):
        return _source(prefix)(_merged(spec, extra))
    body, typed = parse_query(spec)
    given = typed | extra
    if spec.startswith("folder:") or Path(body).expanduser().exists():
        return _files(spec, Path(body.removeprefix("folder:")).expanduser(), given)
    if glob.has_magic(body):
        return _listed([body], given, spec)
    return _named(spec, body, given)


def parse_query(spec: str) -> tuple[str, dict[str, str]]:
    """`name?key=value&key=value` as name and keys; a question mark without `=` after it belongs to the name.

    Raises:
        ValueError: for a part that is not `key=value`, or a key that appears twice.
    """
    body, mark, tail = spec.rpartition("?")
    if not mark or "=" not in tail:
        return spec, {}
    given: dict[str, str] = {}
    for part in tail.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"after the question mark come key=value pairs joined by &, got {part!r} in {spec!r}")
        if key in given:
            raise ValueError(f"{key!r} appears twice in {spec!r}")
        given[key] = value
    return body, given


def _merged(spec: str, extra: dict[str, str]) -> str:
    """A spec with more keys, which win over its own."""
    if not extra:
        return spec
    body, typed = parse_query(spec)
    return f"{body}?" + "&".join(f"{key}={value}" for key, value in (typed | extra).items())


def _sources() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="visae.data")} | SOURCES


def _source(prefix: str) -> Source:
    module, _, function = _sources()[prefix].partition(":")
    return getattr(import_module(module), function)


def _named(spec: str, name: str, query: dict[str, str]) -> ImageData:
    if name not in config_names():
        raise UnknownName(
            "data set",
            name,
            [*config_names(), *(f"{prefix}:..." for prefix in _sources())],
            hint=f"There is no file or folder {name!r} either.",
        )
    config = read_config(name)
    if "spec" in config:
        return load_data(config["spec"], **query)
    return _limited(load_config(name, spec, query), query)


def _files(name: str, path: Path, query: dict[str, str]) -> ImageData:
    """A folder or a single file."""
    _check_keys(query)
    if path.is_file():
        return _listed([path], query, name)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder of images at {path}")
    found = LAYOUTS["class_folders"](path, factor=query.get("factor", "class"))
    if not found.records:
        raise FileNotFoundError(
            f"no images below {path}: files of these kinds are looked for: "
            f"{', '.join(sorted(image_extensions())[:12])}, ..."
        )
    return _limited(FileData(name, found.records, check=_check(query)), query)


def _listed(paths: Sequence[str | Path], query: dict[str, str], name: str | None = None) -> ImageData:
    """Files as they are given, those of folders and globs among them; their path is their key."""
    _check_keys(query)
    files = [file for path in paths for file in _expanded(Path(path).expanduser())]
    if missing := [path for path in files if not path.is_file()]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"there is no file {missing[0]}{more}")
    if not files:
        raise ValueError("an empty list of files is no data set")
    told = name or f"{len(files)} files from {files[0]}"
    return _limited(FileData(told, [Record(path, path.as_posix()) for path in files], check=_check(query)), query)


def _expanded(path: Path) -> list[Path]:
    """A file as it is, the images below a folder, the images that a glob matches."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.rglob("*"))
    elif glob.has_magic(str(path)):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    else:
        return [path]
    images = [file for file in found if file.suffix.lower() in image_extensions() and file.is_file()]
    if not images:
        raise FileNotFoundError(
            f"no image matches {str(path)!r}" + (f" ({len(found)} other files do)" if found else "")
        )
    return images


def _check_keys(query: dict[str, str]) -> None:
    for key in query:
        if key not in _FOLDER_KEYS:
            raise UnknownName("key of a folder of images", key, _FOLDER_KEYS)


def _check(query: dict[str, str]) -> Check:
    value = query.get("check", "none")
    if value not in get_args(Check):
        raise UnknownName("check", value, get_args(Check))
    return value  # type: ignore[return-value]


def _limited(data: FileData, query: dict[str, str]) -> ImageData:
    """As many samples as `n` asks for, evenly spaced, so that all class folders are met."""
    if "n" not in query:
        return data
    if not query["n"].isdigit() or int(query["n"]) < 1:
        raise ValueError(f"n counts images and must be at least 1, got {query['n']!r}")
    wanted = min(int(query["n"]), len(data))
    return subset(data, np.arange(wanted) * len(data) // wanted, name=data.name)
