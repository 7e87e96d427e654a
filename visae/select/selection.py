"""`Selection`: a concept as latents, with the thresholds and the story of how they were chosen; saves to JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visae.codes import CodeTable


@dataclass(frozen=True)
class Selection:
    """Latents that stand for a concept.

    An item shows the concept if any of the latents, times its sign, exceeds its threshold there.

    Attributes:
        factor: what kind of concept, e.g. `shape`.
        value: which, e.g. `circle`.
        latents: numbers of the latents, best first.
        weights: of each latent in the concept's strength, the weighted sum of their values.
        thresholds: of each latent, in the codes' unit.
        signs: 1, or -1 where negative values mean the concept (signed dictionaries only).
        score: name of the score that chose them.
        scores: that score of each latent, on the data where it was chosen.
        chosen_on: name and fingerprint of the data, `n` items and `n_positive` among them.
        sae: fingerprint of the dictionary's weights: numbers of latents mean nothing in another one.
    """

    factor: str
    value: str
    latents: tuple[int, ...]
    weights: tuple[float, ...]
    thresholds: tuple[float, ...]
    signs: tuple[int, ...]
    score: str
    scores: tuple[float, ...]
    chosen_on: dict[str, Any] = field(default_factory=dict)
    sae: str = ""

    @property
    def name(self) -> str:
        """`shape=circle`."""
        return f"{self.factor}={self.value}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; a threshold that is never reached is null."""
        thresholds = [t if math.isfinite(t) else None for t in self.thresholds]
        return asdict(self) | {"thresholds": thresholds}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Selection":
        """Reverse of `to_dict`."""
        tuples = {key: tuple(data[key]) for key in ("latents", "weights", "signs", "scores")}
        thresholds = tuple(math.inf if t is None else float(t) for t in data["thresholds"])
        return cls(**{**data, **tuples, "thresholds": thresholds})

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Selection":
        """Reads what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def fires(self, table: CodeTable) -> np.ndarray:
        """Items `[n_items]` (bool) that show the concept by this selection."""
        out = np.zeros(table.n_items, bool)
        for latent, threshold, sign in zip(self.latents, self.thresholds, self.signs, strict=True):
            items, values = table.item_max(latent, sign)
            out[items[sign * values > threshold]] = True
        return out

    def strength(self, table: CodeTable) -> np.ndarray:
        """Weighted sum `[n_items]` of the latents' largest values, each times its sign."""
        out = np.zeros(table.n_items)
        for latent, weight, sign in zip(self.latents, self.weights, self.signs, strict=True):
            items, values = table.item_max(latent, sign)
            out[items] += weight * sign * values
        return out
