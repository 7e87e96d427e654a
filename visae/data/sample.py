"""What every data set yields: one image, or one prompt, and all that is known about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

Labels = dict[str, tuple[str, ...]]
"""Factor -> the values present, e.g. `{"shape": ("circle", "star")}`. Always tuples: an image may show several."""

Concept = tuple[str, str]
"""A factor and one of its values, e.g. `("shape", "star")`: what can be erased."""

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


class Data(Protocol):
    """An indexable set of samples or prompts.

    Attributes:
        name: what the user typed to get it.
        fingerprint: changes when anything in it may have changed (goes into the content hash of a store).
        factors: factor -> values, in a fixed order; empty where the set has no labels.
    """

    name: str
    fingerprint: str
    factors: FactorTable

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class ImageData(Data, Protocol):
    """A set of images with what is known of each."""

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Prompt:
    """What one image is made from.

    Attributes:
        text: of the prompt; the number of a class for models of classes.
        seed: of the noise that the image starts from.
        key: stable name inside the data set.
        labels: factor -> values that the text asks for.
        group: what must not be split over train and test; the text itself where nothing else is given.
    """

    text: str
    seed: int
    key: str
    labels: Labels = field(default_factory=dict)
    group: str | None = None

    def asks_for(self, concepts: Iterable[Concept]) -> bool:
        """Whether the text asks for any of some concepts."""
        return any(value in self.labels.get(factor, ()) for factor, value in concepts)


@runtime_checkable
class PromptData(Data, Protocol):
    """A set of prompts, each with the seed of its image."""

    def __getitem__(self, index: int) -> Prompt: ...

    def group_of(self, index: int) -> str | None:
        """What must not be split over train and test, of a prompt."""
        ...
