"""Parts of a data set: chosen samples, and splits that keep groups together."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visae.data.images import UnreadableImage
from visae.data.sample import Data, FactorTable


class Subset:
    """Some samples of a data set; made by `subset` and `split`.

    Attributes:
        data: the whole set.
        indices: `[n]` places in it.
        factors: those of the whole set, so that parts agree.
    """

    def __init__(self, data: Data, indices: np.ndarray, name: str):
        self.data, self.indices, self.name = data, indices, name
        told = hashlib.sha256(data.fingerprint.encode() + indices.astype("<i8").tobytes())
        self.fingerprint = told.hexdigest()[:16]
        self.factors: FactorTable = data.factors

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.indices[index])]

    def __repr__(self) -> str:
        return f"Subset({self.name!r}: {len(self)} of {len(self.data)} samples)"

    def group_of(self, index: int) -> str | None:
        """Group of a sample, without reading its image where the whole set can tell it so."""
        return group_of(self.data, int(self.indices[index]))


def subset(data: Data, indices: Sequence[int] | np.ndarray, name: str | None = None) -> Subset:
    """The samples at `indices`, in that order.

    Raises:
        IndexError: if a place does not exist.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(data)):
        raise IndexError(f"{data.name} has samples 0 to {len(data) - 1}, asked for {chosen.min()} to {chosen.max()}")
    return Subset(data, chosen, name or f"{data.name} [{len(chosen)} samples]")


def split(data: Data, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Subset]:
    """Disjoint parts of a data set; samples of one group (a patient, a scene) never end in different parts.

    Args:
        data: the whole set.
        fractions: name of each part -> its share; together at most 1.
        seed: of the draw.

    Raises:
        ValueError: if shares are not positive or add up to more than 1, or a part would be empty.
    """
    if not fractions or min(fractions.values()) <= 0 or sum(fractions.values()) > 1 + 1e-9:
        raise ValueError(f"shares must be positive and add up to at most 1, got {dict(fractions)}")
    named: dict[str, list[int]] = {}
    for index in range(len(data)):
        named.setdefault(group_of(data, index) or f"\0{index}", []).append(index)  # alone where it has no group
    groups = list(named.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.cumsum([len(groups[i]) for i in order])
    middle = (ends - 0.5 * np.array([len(groups[i]) for i in order])) / len(data)
    parts: dict[str, Subset] = {}
    low = 0.0
    for name, share in fractions.items():
        mine = [index for i, at in zip(order, middle, strict=True) if low <= at < low + share for index in groups[i]]
        if not mine:
            raise ValueError(
                f"the part {name!r} ({share:g} of {len(data)} samples in {len(groups)} groups) would be empty: "
                "take a larger share or more data"
            )
        parts[name] = subset(data, sorted(mine), f"{data.name} [{name}, seed {seed}]")
        low += share
    return parts


def group_of(data: Data, index: int) -> str | None:
    """Group of a sample; None if it has none or cannot be read."""
    if (quick := getattr(data, "group_of", None)) is not None:
        return quick(index)
    try:
        return data[index].group
    except UnreadableImage:
        return None
