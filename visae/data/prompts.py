"""From what a user types to prompts, each with the seed of its image."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from visae.data.configs import config_names, find_root, read_config
from visae.data.files import gather_factors
from visae.data.load import parse_query
from visae.data.prompt_layouts import PROMPT_LAYOUTS, TABLES, PromptRecord
from visae.data.sample import FactorTable, Prompt, PromptData
from visae.registry import UnknownName

PROMPT_SOURCES = {"world": "visae.world.prompt_specs:prompts_from_spec"}
"""Prefix of a spec -> `module:function` that makes the prompts from the whole spec."""

PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Parts of a set of prompts and their shares."""

_GENERAL = ("n", "split", "seed", "seeds")
_TOLD = {"title", "licence", "source", "prompts", "spec", "folder", "measured_with"}


def part_of_text(text: str) -> str:
    """The part of a set that a prompt belongs to, by a hash of its text alone: a text is in one part everywhere."""
    at = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64
    for part, share in PARTS.items():
        if at < share:
            return part
        at -= share
    return part


class Prompts:
    """Prompts with their seeds; every prompt comes as often as there are seeds for it.

    Args:
        name: what the user typed.
        records: the prompts.
        seed: of the first prompt that names none, whose followers count up.
        seeds: images of every prompt that names no seed.
    """

    def __init__(self, name: str, records: Sequence[tuple[int, PromptRecord]], seed: int = 0, seeds: int = 1):
        self.name = name
        self.items: list[Prompt] = []
        for place, record in records:
            own = record.seeds or tuple(seed + place * seeds + j for j in range(seeds))
            for j, value in enumerate(own):
                key = record.key if len(own) == 1 else f"{record.key}/{j}"
                self.items.append(Prompt(record.text, value, key, dict(record.labels), record.group or record.text))
        self.factors: FactorTable = gather_factors(one.labels for one in self.items)
        told = json.dumps([[one.text, one.seed, one.key, one.labels, one.group] for one in self.items])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Prompt:
        return self.items[index]

    def __repr__(self) -> str:
        return f"Prompts({self.name!r}: {len(self)} prompts with seeds, factors {', '.join(self.factors) or 'none'})"

    def group_of(self, index: int) -> str | None:
        """Group of a prompt."""
        return self.items[index].group


def load_prompts(spec: str | Path | Sequence[str], **query: object) -> PromptData:
    """The prompts that a text describes.

    Args:
        spec: one of
            `world:prompts?n=1000&split=train`, captions of the built-in world; `world:cells?split=test`, its shapes in
            all styles;
            a text file with a prompt a line, or a table (`.csv`, `.tsv`, `.jsonl`, `.json`) with a column `prompt` and,
            where there are any, `seed`, `group` and `labels` (see `visae.data.prompt_layouts.table` for other names);
            an entry of `datasets_cfg/` with prompts, e.g. `parti?root=/data/parti`;
            a list of texts.
            `?n=100` takes so many prompts, evenly spaced, `?split=train` (or `validation`, `test`: 80, 10 and 10 %)
            those whose text belongs to a part, `?seeds=4` makes so many images of each, `?seed=7` counts from there.
        query: more keys, as after the question mark.

    Raises:
        UnknownName: for a name or key that does not exist, with those nearest to it.
        FileNotFoundError: if a file is not where it should be.
        ValueError: for a value out of range, or where no prompt is left.
    """
    extra = {key: str(value) for key, value in query.items()}
    if not isinstance(spec, str | Path):
        texts = [PromptRecord(text, str(place)) for place, text in enumerate(spec)]
        return _chosen(f"{len(texts)} prompts", texts, extra)
    body, typed = parse_query(str(spec))
    given = typed | extra
    prefix = body.partition(":")[0]
    if prefix in PROMPT_SOURCES and body.startswith(prefix + ":"):
        return _source(prefix)(body + _question(given))
    path = Path(body).expanduser()
    if path.is_file():
        layout = "table" if path.suffix.lower() in TABLES else "lines"
        return _chosen(str(spec) + _question(extra), *_read(layout, path.parent, {"file": path.name}, given, str(spec)))
    if body not in config_names():
        known = [*(name for name in config_names() if _has_prompts(name)), *(f"{p}:..." for p in PROMPT_SOURCES)]
        raise UnknownName("set of prompts", body, known, hint=f"There is no file {body!r} either.")
    return _from_config(body, str(spec), given)


def part_of(name: str, part: str, n: int | None = None) -> str | None:
    """The spec of another part of the same prompts, of at most `n` of them.

    Returns:
        None where `name` is not the spec of the part `train`.
    """
    body, given = parse_query(name)
    default = "train" if body.partition(":")[0] in PROMPT_SOURCES else "all"
    if given.get("split", default) != "train":
        return None
    if n is not None:
        given["n"] = str(min(n, int(given.get("n", n))))
    return body + _question(given | {"split": part})


def _question(given: Mapping[str, str]) -> str:
    return "?" + "&".join(f"{key}={value}" for key, value in given.items()) if given else ""


def _source(prefix: str) -> Callable[[str], PromptData]:
    module, _, function = PROMPT_SOURCES[prefix].partition(":")
    return getattr(import_module(module), function)


def _has_prompts(name: str) -> bool:
    config = read_config(name)
    return "prompts" in config or str(config.get("spec", "")).startswith(tuple(f"{p}:prompts" for p in PROMPT_SOURCES))


def _from_config(name: str, spec: str, given: dict[str, str]) -> PromptData:
    """Prompts of an entry of `datasets_cfg/`."""
    config = read_config(name)
    if not _has_prompts(name):
        raise ValueError(f"the data set {name} holds images, not prompts; `visae train` on a vision model reads it")
    if "spec" in config:
        return load_prompts(config["spec"], **given)
    options = {key: value for key, value in config.items() if key not in _TOLD}
    root = find_root(config, given) if "folder" in config else Path()
    told = {key: value for key, value in given.items() if key != "root"}
    return _chosen(spec, *_read(config["prompts"], root, options, told, name))


def _read(
    layout: str, root: Path, options: dict[str, Any], given: dict[str, str], name: str
) -> tuple[list[PromptRecord], dict[str, str]]:
    """Records of a layout, and the keys of the query that are not the layout's own."""
    read = PROMPT_LAYOUTS[layout]
    known = list(inspect.signature(read).parameters)[1:]
    for key in given:
        if key not in (*known, *_GENERAL):
            raise UnknownName(f"key of the prompts {name}", key, [*_GENERAL, *known])
    own = {key: value for key, value in given.items() if key in known}
    return read(root, **(options | own)), {key: value for key, value in given.items() if key not in known}


def _chosen(name: str, records: list[PromptRecord], given: dict[str, str]) -> Prompts:
    """The part, number and seeds that are asked for."""
    for key in given:
        if key not in _GENERAL:
            raise UnknownName("key of a list of prompts", key, _GENERAL)
    placed = list(enumerate(records))
    part = given.get("split", "all")
    if part != "all":
        if part not in PARTS:
            raise UnknownName("part of a set of prompts", part, [*PARTS, "all"])
        placed = [(place, record) for place, record in placed if part_of_text(record.text) == part]
    if "n" in given:
        wanted = min(whole("n", given["n"], 1), len(placed))
        placed = [placed[i] for i in np.arange(wanted) * len(placed) // max(1, wanted)]
    if not placed:
        raise ValueError(f"{name} has no prompts" + (f" in the part {part!r}" if records else ""))
    return Prompts(name, placed, whole("seed", given.get("seed", "0")), whole("seeds", given.get("seeds", "1"), 1))


def whole(key: str, value: str, least: int = 0) -> int:
    """A whole number of a query.

    Raises:
        ValueError: for anything else, or one that is too small.
    """
    if not value.isdigit() or int(value) < least:
        raise ValueError(f"{key} is a whole number of at least {least}, got {value!r}")
    return int(value)
