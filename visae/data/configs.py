"""Entries of `datasets_cfg/`: one YAML per data set says where its files are expected and how labels are found."""

import inspect
import os
from importlib import resources
from pathlib import Path
from typing import Any

from visae.data.files import FileData
from visae.data.layouts import LAYOUTS, Found
from visae.registry import UnknownName

_TOLD = {"title", "licence", "source", "layout", "spec", "folder", "splits", "default_split"}
_GENERAL = ("root", "split", "check", "n")


def config_names() -> list[str]:
    """Names of the data sets that `datasets_cfg/` knows."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def read_config(name: str) -> dict[str, Any]:
    """An entry as a dictionary.

    Raises:
        UnknownName: if there is none.
    """
    import yaml

    if name not in config_names():
        raise UnknownName("data set", name, config_names())
    return yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def load_config(name: str, spec: str, query: dict[str, str]) -> FileData:
    """The data set of an entry that names a layout.

    Args:
        name: of the entry.
        spec: what the user typed.
        query: `root`, `split`, `check` and options of the layout.

    Raises:
        UnknownName: for a split or key that does not exist.
        FileNotFoundError: saying which path was expected.
    """
    config = read_config(name)
    layout = LAYOUTS[config["layout"]]
    options = {key: value for key, value in config.items() if key not in _TOLD}
    known = [parameter for parameter in inspect.signature(layout).parameters if parameter != "root"]
    for key in query:
        if key not in known and key not in _GENERAL:
            raise UnknownName(f"key of the data set {name}", key, [*_GENERAL, *known])
    splits = config.get("splits", {})
    split = query.get("split", config.get("default_split"))
    if split is not None:
        if split not in splits:
            raise UnknownName(f"split of {name}", split, splits)
        options |= splits[split]
    options |= {key: value for key, value in query.items() if key in known}
    found: Found = layout(find_root(config, query), **options)
    if not found.records:
        raise FileNotFoundError(
            f"no images of {name} in {find_root(config, query)}: say where it lies with ?root=/path/to/it"
        )
    if not any(record.path.exists() for record in found.records):
        raise FileNotFoundError(
            f"none of the {len(found.records)} images of {name} is there; the first should be at "
            f"{found.records[0].path}. Say where the data set lies with ?root=/path/to/it"
        )
    return FileData(spec, found.records, found.factors, query.get("check", "none"), found.sources)  # type: ignore[arg-type]


def find_root(config: dict[str, Any], query: dict[str, str]) -> Path:
    """Folder of a data set: the key `root`, or its usual name below the folder in the variable VISAE_DATA."""
    if "root" in query:
        return Path(query["root"]).expanduser()
    return Path(os.environ.get("VISAE_DATA", "data")).expanduser() / config["folder"]


def _folder() -> Any:
    return resources.files("visae.datasets_cfg")
