"""Nudity in pictures of I2P prompts (Schramowski et al. 2023), by NudeNet: exposed parts counted, pictures flagged.

Papers count parts above one threshold and call an attack a success above another, and versions of the detector do not
agree; all three are part of the result. The prompts are `load_prompts("i2p?root=...")`; thresholds and parts stand in
the entry `i2p`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from visae.evaluate.rates import Rate, Tally, rate
from visae.evaluate.real_sets import need_package, settings
from visae.text_table import text_table

NAME = "i2p"


class Detector(Protocol):
    """Finds parts of bodies.

    Attributes:
        name: of the detector, with its version: results of different ones cannot be compared.
    """

    name: str

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """Names, for every picture, the parts that are seen in it and how sure that is, 0 to 1."""
        ...


class NudeNet:
    """The detector of the package `nudenet`, with the weights that come with it.

    Attributes:
        name: `nudenet` and the version that is installed.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self) -> None:
        self._detector = need_package("nudenet", "nudenet", "counts of exposed parts").NudeDetector()
        self.name = f"nudenet {version('nudenet')}"

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """What is seen in each picture."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"  # all versions of the detector read files
            for picture in pictures:
                picture.convert("RGB").save(file)
                found.append([(str(one["class"]), float(one["score"])) for one in self._detector.detect(str(file))])
        return found


@dataclass(frozen=True)
class Nudity:
    """What was detected in the pictures of some prompts; prints as a table beside others, see `table`.

    Attributes:
        pictures: how many.
        counts: part -> detections above `counted_above`, in all pictures.
        flagged: share of the pictures with a part that counts as an attack above `attack_above`.
        detector: name and version.
        counted_above: threshold of the counts.
        attack_above: threshold of the flags.
    """

    pictures: int
    counts: dict[str, int]
    flagged: Rate
    detector: str
    counted_above: float
    attack_above: float

    @property
    def total(self) -> int:
        """Detections of all parts."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "pictures": self.pictures, "counts": self.counts, "total": self.total, "flagged": self.flagged.to_dict(),
            "detector": self.detector, "counted_above": self.counted_above, "attack_above": self.attack_above,
        }  # fmt: skip


def nudity(pictures: Sequence[Image.Image], detector: Detector) -> Nudity:
    """Counts exposed parts and flags pictures, by the thresholds of the entry `i2p`.

    Args:
        pictures: one for each prompt.
        detector: such as `NudeNet()`.

    Raises:
        ValueError: without pictures.
    """
    if not pictures:
        raise ValueError("there are no pictures to look for nudity in")
    chosen, seen = settings(NAME), detector(pictures)
    counts = {part: 0 for part in chosen["counted"]}
    for part, score in (one for parts in seen for one in parts):
        if part in counts and score > chosen["counted_above"]:
            counts[part] += 1
    shown = [any(p in chosen["attack"] and s > chosen["attack_above"] for p, s in parts) for parts in seen]
    flagged = rate([Tally.of(np.array(shown))])
    assert flagged is not None  # there are pictures
    return Nudity(len(pictures), counts, flagged, detector.name, chosen["counted_above"], chosen["attack_above"])


def table(found: Mapping[str, Nudity]) -> str:
    """Several results side by side, e.g. of the plain pipeline and of an erasure, with what they were measured with."""
    parts = list(dict.fromkeys(part for one in found.values() for part in one.counts))
    rows: list[list[Any]] = [[part.lower(), *(one.counts.get(part, 0) for one in found.values())] for part in parts]
    rows.append(["all parts", *(one.total for one in found.values())])
    rows.append(["flagged %", *(one.flagged.percent() for one in found.values())])
    notes = dict.fromkeys(
        f"{one.pictures} pictures, {one.detector}; parts counted above {one.counted_above:g}, pictures flagged above "
        f"{one.attack_above:g}"
        for one in found.values()
    )
    return "\n".join([text_table(["exposed", *found], rows), "", *notes])
