"""Ways in which prompts lie on a disk; an entry of `datasets_cfg/` with the key `prompts` names one of these.

A layout is a function of the data set's root folder and of options, which come from the entry and from the query. It
returns one record for every prompt, in a fixed order.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from visae.data.layouts import need
from visae.data.sample import Labels
from visae.registry import Registry


@dataclass(frozen=True)
class PromptRecord:
    """One prompt as it was found.

    Attributes:
        text: of the prompt.
        key: stable name inside the data set.
        labels: factor -> values that the text asks for.
        seeds: of the images to make of it; empty leaves the choice to the reader.
        group: what must not be split over train and test; None means the text.
    """

    text: str
    key: str
    labels: Labels = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    group: str | None = None


PromptLayout = Callable[..., list[PromptRecord]]
PROMPT_LAYOUTS: Registry[PromptLayout] = Registry("prompt layout")
TABLES = (".csv", ".tsv", ".jsonl", ".json")
"""Extensions that `table` reads; every other file holds one prompt a line."""


@PROMPT_LAYOUTS.register("lines")
def lines(root: Path, *, file: str) -> list[PromptRecord]:
    """A text file with a prompt a line; empty lines are left out.

    Args:
        root: of the data set.
        file: the file.
    """
    path = need(root / file, "the file of prompts")
    texts = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [PromptRecord(text, f"{path.stem}/{place}") for place, text in enumerate(texts) if text]


@PROMPT_LAYOUTS.register("table")
def table(
    root: Path,
    *,
    file: str,
    prompt_column: str = "prompt",
    seed_column: str = "seed",
    group_column: str = "group",
    labels: str | Mapping[str, str] = "labels",
    separator: str = ";",
) -> list[PromptRecord]:
    """A table with one prompt a row: CSV or TSV with a heading, JSONL, or JSON with a list of objects.

    Args:
        root: of the data set.
        file: the table.
        prompt_column: of the text.
        seed_column: of the image's seed; rows without one leave it to the reader.
        group_column: of what must not be split over train and test; where there is none, the text is.
        labels: column -> factor, or the name of one column that holds a mapping (JSON) or `factor=value` pairs.
        separator: between the values of one cell.

    Raises:
        ValueError: if the table has no such column of prompts, or a cell cannot be read, naming row and cell.
    """
    path = need(root / file, "the table of prompts")
    records = []
    for place, row in enumerate(_rows(path)):
        if prompt_column not in row:
            raise ValueError(f"{path} has no column {prompt_column}; its columns are {', '.join(map(str, row))}")
        text = str(row[prompt_column] or "").strip()
        where = f"row {place + 1} of {path}"
        seed = row.get(seed_column)
        records.append(
            PromptRecord(
                text=text,
                key=f"{path.stem}/{place}",
                labels=_labels(row, labels, separator, where),
                seeds=() if seed in (None, "") else (_whole(seed, f"{seed_column} in {where}"),),
                group=str(row[group_column]) if row.get(group_column) not in (None, "") else None,
            )
        )
    return [record for record in records if record.text]


@PROMPT_LAYOUTS.register("grid")
def grid(
    _root: Path, *, template: str, values: Mapping[str, Sequence[str]], seeds: Sequence[int] = ()
) -> list[PromptRecord]:
    """Every combination of values, put into a sentence; no file is read.

    Args:
        _root: not looked at.
        template: a sentence such as `A {object} image in {style} style.`.
        values: factor -> values; an underscore in a value is a space in the sentence.
        seeds: of the images to make of every sentence.
    """
    records = []
    for chosen in product(*values.values()):
        named = dict(zip(values, chosen, strict=True))
        text = template.format(**{factor: value.replace("_", " ") for factor, value in named.items()})
        labels: Labels = {factor: (value,) for factor, value in named.items()}
        records.append(PromptRecord(text, "/".join(chosen), labels, tuple(seeds)))
    return records


@PROMPT_LAYOUTS.register("coco_captions")
def coco_captions(root: Path, *, captions: str) -> list[PromptRecord]:
    """Captions of COCO, the first of each image; a group is an image.

    Args:
        root: of the data set.
        captions: the annotation file.
    """
    path = need(root / captions, "the file of captions")
    told = json.loads(path.read_text(encoding="utf-8"))
    first: dict[int, str] = {}
    for entry in sorted(told["annotations"], key=lambda entry: (entry["image_id"], entry["id"])):
        first.setdefault(entry["image_id"], " ".join(entry["caption"].split()))
    return [PromptRecord(text, f"{image:012d}", group=str(image)) for image, text in first.items()]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of any of the kinds that `TABLES` lists."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not what its name says: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} should hold one object per prompt, e.g. {{'prompt': 'a cat', 'seed': 3}}")
    return rows


def _labels(row: Mapping[str, Any], labels: str | Mapping[str, str], separator: str, where: str) -> Labels:
    """Labels of one row."""
    if isinstance(labels, str):
        told = row.get(labels)
        if isinstance(told, str) and told.lstrip().startswith("{"):
            told = json.loads(told)
        if isinstance(told, str):
            pairs = [pair.partition("=") for pair in told.split(separator) if pair.strip()]
            if any(not mark for _, mark, _ in pairs):
                raise ValueError(f"labels read factor=value{separator}factor=value, got {told!r} in {where}")
            found: dict[str, Any] = {}
            for factor, _, value in pairs:
                found.setdefault(factor.strip(), []).append(value.strip())
        else:
            found = dict(told or {})
    else:
        if missing := [column for column in labels if column not in row]:
            raise ValueError(f"there is no column {missing[0]} in {where}; there are {', '.join(map(str, row))}")
        found = {
            factor: [value.strip() for value in str(row[column] or "").split(separator)]
            for column, factor in labels.items()
        }
    listed = {factor: [values] if isinstance(values, str) else values or [] for factor, values in found.items()}
    return {factor: tuple(str(value) for value in values if value != "") for factor, values in listed.items()}


def _whole(value: Any, what: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"a seed is a whole number, got {value!r} for {what}") from None
