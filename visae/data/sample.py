"""What every data set yields: one image and all that is known about it."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

Labels = dict[str, tuple[str, ...]]
"""Factor -> the values present, e.g. `{"shape": ("circle", "star")}`. Always tuples: an image may show several."""

FactorTable = dict[str, list[str]]
"""Factor -> every value it can take, in a fixed order."""


@dataclass(frozen=True)
class Sample:
    """One image with its labels, its regions and its words.

    Attributes:
        image: RGB picture of any size.
        key: stable name inside the data set (file name, or `world/0/17`).
        labels: factor -> values present anywhere in the image.
        regions: `[H, W]` integer map, 0 where nothing is labelled, j where region j (from 1) is visible; None
            where the data set has no masks.
        region_labels: entry j - 1 tells factor -> value of region j.
        boxes: `[n, 4]` float32 as x0, y0, x1, y1 in pixels (x1, y1 exclusive), one row per region, or None.
        captions: sentences that are true of the image.
        group: what must not be split over train and test (a patient, a scene), or None.
    """

    image: Image.Image
    key: str
    labels: Labels = field(default_factory=dict)
    regions: np.ndarray | None = None
    region_labels: tuple[dict[str, str], ...] = ()
    boxes: np.ndarray | None = None
    captions: tuple[str, ...] = ()
    group: str | None = None

    def mask(self, factor: str, value: str) -> np.ndarray:
        """Pixels `[H, W]` (bool) of the regions whose `factor` is `value`.

        Raises:
            ValueError: if the sample has no regions.
        """
        if self.regions is None:
            raise ValueError(
                f"{self.key} has no regions: this data set has no masks, so nothing can be localised in it"
            )
        hits = [j + 1 for j, known in enumerate(self.region_labels) if known.get(factor) == value]
        return np.isin(self.regions, hits)


@runtime_checkable
class ImageData(Protocol):
    """An indexable set of samples.

    Attributes:
        name: what the user typed to get it.
        fingerprint: changes when any image or label may have changed (goes into the content hash of a store).
        factors: factor -> values, in a fixed order; empty where the set has no labels.
    """

    name: str
    fingerprint: str
    factors: FactorTable

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
