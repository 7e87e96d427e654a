"""Ways in which image files and their labels lie on a disk; an entry of `datasets_cfg/` names one of these.

A layout is a function of the data set's root folder and of options, which come from the entry and from the query
(`imagenet?root=/data&split=val`). It returns records and the files that labels were read from.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visae.data.files import Record, Regions, boxes_of
from visae.data.images import UnreadableImage, image_extensions
from visae.data.sample import FactorTable, Labels
from visae.registry import Registry


class Found(NamedTuple):
    """What a layout found.

    Attributes:
        records: image files in a fixed order.
        sources: files that labels came from.
        factors: factor -> values; None gathers them from the records.
    """

    records: list[Record]
    sources: Sequence[Path] = ()
    factors: FactorTable | None = None


Layout = Callable[..., Found]
LAYOUTS: Registry[Layout] = Registry("data layout")


def need(path: Path, what: str) -> Path:
    """The path, if it is there.

    Raises:
        FileNotFoundError: saying what was expected there and how to say where it is.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{what} should be at {path}, but there is no such file or folder. "
            "Say where the data set lies with ?root=/path/to/it (or the variable VISAE_DATA)"
        )
    return path


def walk(root: Path) -> Iterator[Path]:
    """Image files below a folder, through links, hidden ones left out."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [] if real in seen else sorted(name for name in names if not name.startswith("."))
        if real not in seen:
            yield from (
                Path(folder, file)
                for file in sorted(files)
                if not file.startswith(".") and Path(file).suffix.lower() in image_extensions()
            )
        seen.add(real)


@LAYOUTS.register("class_folders")
def class_folders(root: Path, *, images: str = ".", factor: str = "class", names: str = "") -> Found:
    """Images in folders; the first folder below `images` is the class, images outside of any have none.

    Args:
        root: of the data set.
        images: folder that holds the class folders.
        factor: what the classes are called.
        names: file of lines `folder name`, optional; the name goes up to the first comma.
    """
    top = need(root / images, "the folder of images")
    words: dict[str, str] = {}
    if names and (root / names).is_file():
        lines = (root / names).read_text(encoding="utf-8").splitlines()
        words = {
            line.split()[0]: line.split(maxsplit=1)[1].split(",")[0].strip() for line in lines if " " in line.strip()
        }
    records = []
    for path in walk(top):
        inside = path.relative_to(top)
        labels: Labels = {factor: (words.get(inside.parts[0], inside.parts[0]),)} if len(inside.parts) > 1 else {}
        records.append(Record(path, inside.as_posix(), labels))
    records.sort(key=lambda record: record.key)
    return Found(records, [root / names] if words else [])


@LAYOUTS.register("segmentation_pairs")
def segmentation_pairs(
    root: Path,
    *,
    images: str,
    masks: str,
    classes: str | list[str],
    factor: str = "object",
    ignore: tuple[int, ...] | list[int] = (0, 255),
    first: int = 1,
    suffix: str = ".png",
) -> Found:
    """Images in one folder and, in another, integer images of the same names whose values are classes.

    Args:
        root: of the data set.
        images: folder of the images.
        masks: folder of the masks.
        classes: names of the classes, or a file with one per line (the last tab-separated column, to the first comma).
        factor: what the classes are called.
        ignore: values that mean nothing.
        first: value of the first class.
        suffix: of the masks' file names.
    """
    top, other = need(root / images, "the folder of images"), need(root / masks, "the folder of masks")
    listed = [need(root / classes, "the list of classes")] if isinstance(classes, str) else []
    known = class_names(root / classes) if isinstance(classes, str) else list(classes)
    records = []
    for path in walk(top):
        mask = (other / path.relative_to(top)).with_suffix(suffix)
        regions = partial(read_mask, mask, known, factor, tuple(ignore), first) if mask.is_file() else None
        records.append(Record(path, path.relative_to(top).as_posix(), regions=regions, also=(mask,)))
    return Found(sorted(records, key=lambda record: record.key), listed, {factor: sorted(set(known))})


def class_names(path: Path) -> list[str]:
    """One name per line: the last tab-separated column up to its first comma; a heading `Name` is left out."""
    lines = [line.rstrip("\n") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines]
    return names[1:] if names and names[0] == "Name" else names


def read_mask(
    path: Path, classes: list[str], factor: str, ignore: tuple[int, ...], first: int, hw: tuple[int, int]
) -> Regions:
    """Regions of one mask file: one per class that is present.

    Raises:
        UnreadableImage: if the mask has another size than its image, or a value that is no class.
    """
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.shape != hw:
        raise UnreadableImage(path.name, f"the mask has height, width, ... = {values.shape} but its image has {hw}")
    present = [int(value) for value in np.unique(values) if value not in ignore]
    if wrong := [value for value in present if not 0 <= value - first < len(classes)]:
        raise UnreadableImage(
            path.name, f"the mask has values {wrong} but there are only {len(classes)} classes from {first}"
        )
    regions = np.zeros(hw, dtype=np.int64)
    for j, value in enumerate(present):
        regions[values == value] = j + 1
    return Regions(
        regions, tuple({factor: classes[value - first]} for value in present), boxes_of(regions, len(present))
    )


@LAYOUTS.register("attributes_table")
def attributes_table(
    root: Path,
    *,
    images: str,
    table: str,
    factor: str = "attribute",
    groups: str = "",
    partition: str = "",
    part: str = "",
) -> Found:
    """Images and a table of yes/no attributes: comma or blank separated, a heading, `1` for yes (CelebA).

    Args:
        root: of the data set.
        images: folder of the images.
        table: file of the attributes; a first line with nothing but a count is skipped.
        factor: what the attributes are called; an image has all those that are 1.
        groups: file of lines `image group`, optional.
        partition: file of lines `image part`, optional.
        part: keep only the images of this part.
    """
    top, source = need(root / images, "the folder of images"), need(root / table, "the table of attributes")
    rows = _split_lines(source)
    if len(rows[0]) == 1:
        rows = rows[1:]
    heading, rows = rows[0], rows[1:]
    names = heading if rows and len(heading) < len(rows[0]) else heading[1:]
    group_of = dict(row[:2] for row in _split_lines(need(root / groups, "the file of groups"))) if groups else {}
    part_of = dict(row[:2] for row in _split_lines(need(root / partition, "the partition"))) if partition else {}
    records = []
    for file, *values in rows:
        if part and part_of.get(file) != part:
            continue
        present = tuple(sorted(name for name, value in zip(names, values, strict=True) if value == "1"))
        records.append(Record(top / file, file, {factor: present}, group=group_of.get(file)))
    sources = [source] + [root / file for file in (groups, partition) if file]
    return Found(sorted(records, key=lambda record: record.key), sources, {factor: sorted(names)})


def _split_lines(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8")
    comma = "," in text.split("\n", 2)[1 if text.count("\n") > 1 else 0]
    return [line.split(",") if comma else line.split() for line in text.splitlines() if line.strip()]


@LAYOUTS.register("csv_boxes")
def csv_boxes(
    root: Path,
    *,
    table: str,
    image: str,
    box: list[str],
    region: Mapping[str, str],
    labels: Mapping[str, str] = {},
    group: str = "",
    size: list[str] | None = None,
    partition: str = "",
    part: str = "",
) -> Found:
    """A table with one line per box (or one without numbers for an image that has none) (VinDr-Mammo).

    Boxes become regions, the smaller before the larger.

    Args:
        root: of the data set.
        table: CSV file with a heading.
        image: path of the image, with columns in braces: `{study_id}/{image_id}.png`.
        box: columns of x0, y0, x1, y1.
        region: column -> factor, of the box; a cell such as `['Mass', 'Asymmetry']` makes several.
        labels: column -> factor, of the image.
        group: column of what must not be split over train and test.
        size: columns of the height and width that the boxes refer to; boxes are scaled where the file differs.
        partition: column that tells the part.
        part: keep only the images of this part.
    """
    source = need(root / table, "the table of boxes")
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    used = [*box, *region, *labels, *(size or []), *([group] if group else []), *([partition] if partition else [])]
    if rows and (missing := [column for column in used if column not in rows[0]]):
        raise ValueError(f"{source} has no column {', '.join(missing)}; its columns are {', '.join(rows[0])}")
    by_image: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if not part or row[partition] == part:
            by_image.setdefault(image.format(**row), []).append(row)
    records = []
    for key, mine in sorted(by_image.items()):
        told = {
            factor: tuple(sorted({row[column] for row in mine if row[column]})) for column, factor in labels.items()
        }
        records.append(
            Record(
                root / key,
                key,
                told,
                group=mine[0][group] if group else None,
                regions=partial(box_regions, mine, list(box), dict(region), size),
            )
        )
    everything: dict[str, set[str]] = {}
    for row in rows:
        for column, factor in [*labels.items(), *region.items()]:
            everything.setdefault(factor, set()).update(_cell(row[column]))
    return Found(records, [source], {factor: sorted(values) for factor, values in everything.items()})


def box_regions(
    rows: list[dict[str, str]], box: list[str], region: dict[str, str], size: list[str] | None, hw: tuple[int, int]
) -> Regions:
    """Regions from the lines of one image."""
    found: list[tuple[np.ndarray, dict[str, Any]]] = []
    for row in rows:
        if any(not row[column] for column in box):
            continue
        corners = np.array([float(row[column]) for column in box])
        if size:
            corners *= np.array([hw[1] / float(row[size[1]]), hw[0] / float(row[size[0]])] * 2)
        for labels in _combinations(row, region):
            found.append((corners.clip(0, [hw[1], hw[0]] * 2), labels))
    found.sort(key=lambda one: -float(np.prod(one[0][2:] - one[0][:2])))
    regions = np.zeros(hw, dtype=np.int64)
    for j, ((x0, y0, x1, y1), _) in enumerate(found):
        regions[round(y0) : round(y1), round(x0) : round(x1)] = j + 1
    boxes = np.array([corners for corners, _ in found], dtype=np.float32).reshape(-1, 4)
    return Regions(regions, tuple(labels for _, labels in found), boxes)


def _combinations(row: dict[str, str], region: dict[str, str]) -> list[dict[str, str]]:
    """Labels of the regions of one line: one, or one per value where a cell lists several."""
    labels: list[dict[str, str]] = [{}]
    for column, factor in region.items():
        labels = [one | {factor: value} for one in labels for value in (_cell(row[column]) or [""])]
    return [{factor: value for factor, value in one.items() if value} for one in labels]


def _cell(text: str) -> list[str]:
    """Values in a cell: `Mass`, or a list such as `['Mass', 'Asymmetry']`."""
    if text.startswith("[") and text.endswith("]"):
        return [part.strip().strip("'\"") for part in text[1:-1].split(",") if part.strip()]
    return [text] if text else []
