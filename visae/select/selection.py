"""`Selection`: a concept as latents, with the evidence and the story of how they were chosen; saves to JSON."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visae.codes import CodeTable
from visae.select.files import read_described, write_described

COVERED = 0.9
"""Coverage below which a selection warns: what does not fire cannot be edited."""


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
        site: name of the site whose tokens it speaks of; empty where nobody said.
        sigmas: lowest and highest noise level at which it counts; None counts everywhere.
        coverage: share of the target prompts in which any of the latents fires where it counts; None if not measured.
        evidence: what edits need of the prompts it was chosen on, for m latents at S noise levels: `levels [S]` (NaN
            where there is none), `active [S, m]` bool (which latents count at which level), and means over tokens, of
            the side of the latent's sign, on target prompts `target [S, m]`, on the others `retain [S, m]`, and on both
            together `everywhere [S, m]`. Empty where a selection comes from a table of codes.
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
    site: str = ""
    sigmas: tuple[float, float] | None = None
    coverage: float | None = None
    evidence: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.latents[:8])) + (", ..." if len(self.latents) > 8 else "")
        text = f"{self.name}: {len(self.latents)} latents ({shown}) by {self.score}"
        text += f" at {self.site}" if self.site else ""
        text += f", sigma {self.sigmas[0]:.3g} to {self.sigmas[1]:.3g}" if self.sigmas else ""
        if self.coverage is None:
            return f"{text}; coverage not measured"
        text += f"; coverage {self.coverage:.1%} of the target prompts"
        return f"{text}\nwarning: {self.gap}" if self.gap else text

    @property
    def name(self) -> str:
        """`shape=circle`."""
        return f"{self.factor}={self.value}"

    @property
    def gap(self) -> str:
        """What to do about a coverage below 0.9; empty where nothing is to be done."""
        if self.coverage is None or self.coverage >= COVERED:
            return ""
        return (
            f"{self.name} is not caught in {1 - self.coverage:.1%} of the target prompts: none of its "
            f"{len(self.latents)} latents fires there, so no edit of them can erase it. Take more latents (top_m), "
            "another score or site, or a larger dictionary"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the evidence; a threshold that is never reached is null."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "evidence"}
        return told | {"thresholds": [t if math.isfinite(t) else None for t in self.thresholds]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Selection":
        """Reverse of `to_dict`; entries that older files do not have keep their defaults."""
        tuples = {key: tuple(data[key]) for key in ("latents", "weights", "signs", "scores")}
        thresholds = tuple(math.inf if t is None else float(t) for t in data["thresholds"])
        sigmas = data.get("sigmas")
        return cls(**{**data, **tuples, "thresholds": thresholds, "sigmas": None if sigmas is None else tuple(sigmas)})

    def save(self, path: str | Path) -> None:
        """Writes JSON at `path` and the evidence in a safetensors file beside it, both whole or not at all."""
        write_described(Path(path), self.to_dict(), self.evidence)

    @classmethod
    def load(cls, path: str | Path) -> "Selection":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if the evidence is damaged.
        """
        told, evidence = read_described(Path(path))
        return cls.from_dict(told | {"evidence": evidence})

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
