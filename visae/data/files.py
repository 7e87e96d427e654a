"""Image files with what is known about each: the data set behind folders, lists of files and `datasets_cfg/`."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visae.data.images import Check, problem, read_image
from visae.data.sample import FactorTable, Labels, Sample


@dataclass(frozen=True)
class Regions:
    """What lies where in one image.

    Attributes:
        map: `[H, W]` integers, 0 where nothing is labelled, j where region j (from 1) is visible.
        labels: entry j - 1 tells factor -> value of region j.
        boxes: `[n, 4]` float32 as x0, y0, x1, y1 in pixels, one row per region.
    """

    map: np.ndarray
    labels: tuple[dict[str, str], ...]
    boxes: np.ndarray


@dataclass(frozen=True)
class Record:
    """One image file and what is known about it before it is read.

    Attributes:
        path: the file.
        key: stable name inside the data set.
        labels: factor -> values; those of the regions are added when the image is read.
        captions: sentences that are true of the image.
        group: what must not be split over train and test.
        regions: from height and width to the regions; None where there are none.
        also: other files that the regions come from.
    """

    path: Path
    key: str
    labels: Labels = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    group: str | None = None
    regions: Callable[[tuple[int, int]], Regions] | None = None
    also: tuple[Path, ...] = ()


class FileData:
    """Samples from image files.

    Args:
        name: what the user typed.
        records: the files.
        factors: factor -> values; gathered from the records if None.
        check: leave out files that cannot be read: `header` looks at the first bytes, `full` decodes each, `none`
            leaves it to whoever reads them.
        sources: files that labels come from, for the fingerprint.

    Attributes:
        skipped: key and reason of the files left out.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[Record],
        factors: FactorTable | None = None,
        check: Check = "none",
        sources: Iterable[Path] = (),
    ):
        self.name = name
        found = [(record, problem(record.path, check)) for record in records]
        self.records = [record for record, wrong in found if wrong is None]
        self.skipped = [(record.key, wrong) for record, wrong in found if wrong is not None]
        self.factors = factors if factors is not None else gather_factors(record.labels for record in self.records)
        self.fingerprint = _fingerprint(self.records, self.factors, sources)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"FileData({self.name!r}: {len(self)} images, factors {', '.join(self.factors) or 'none'})"

    def group_of(self, index: int) -> str | None:
        """Group of a sample, without reading its image."""
        return self.records[index].group

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = read_image(record.path, record.key)
        if record.regions is None:
            return Sample(image, record.key, dict(record.labels), captions=record.captions, group=record.group)
        known = record.regions((image.height, image.width))
        return Sample(
            image, record.key, merge_labels(record.labels, known.labels), known.map, known.labels, known.boxes,
            record.captions, record.group,
        )  # fmt: skip


def merge_labels(labels: Labels, regions: Iterable[dict[str, str]]) -> Labels:
    """Labels of an image with those of its regions added; values sorted, each once."""
    merged = {factor: set(values) for factor, values in labels.items()}
    for region in regions:
        for factor, value in region.items():
            merged.setdefault(factor, set()).add(value)
    return {factor: tuple(sorted(values)) for factor, values in merged.items()}


def gather_factors(labels: Iterable[Labels]) -> FactorTable:
    """Factor -> sorted values of all these labels."""
    merged: dict[str, set[str]] = {}
    for one in labels:
        for factor, values in one.items():
            merged.setdefault(factor, set()).update(values)
    return {factor: sorted(merged[factor]) for factor in sorted(merged)}


def boxes_of(regions: np.ndarray, n: int) -> np.ndarray:
    """Tight boxes `[n, 4]` (x0, y0, x1, y1; exclusive) of regions 1 to n of a map `[H, W]`; zeros if hidden."""
    boxes = np.zeros((n, 4), dtype=np.float32)
    for j in range(n):
        rows, columns = np.nonzero(regions == j + 1)
        if rows.size:
            boxes[j] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes


def _stamp(path: Path) -> str:
    """Size and time of change of a file."""
    try:
        told = path.stat()
    except OSError:
        return "missing"
    return f"{told.st_size}:{told.st_mtime_ns}"


def _fingerprint(records: Sequence[Record], factors: FactorTable, sources: Iterable[Path]) -> str:
    """16 hex digits over names, sizes, times and labels."""
    digest = hashlib.sha256(json.dumps(factors).encode())
    for path in sources:
        digest.update(f"{path.name}:{_stamp(path)}\n".encode())
    for record in records:
        told = [
            record.key,
            _stamp(record.path),
            record.labels,
            record.captions,
            record.group,
            [_stamp(p) for p in record.also],
        ]
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:16]
