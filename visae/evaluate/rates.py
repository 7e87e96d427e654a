"""Rates with intervals: the percentile bootstrap over images (Efron 1979), seeded, in float64.

Several rates over the same images, such as those of all targets of a domain, are averaged in every resample, so that an
image that is hard under every target widens the interval as it should. An image holds several trials where it is asked
several things; they stay together. Where all trials agree, the interval has no width: the bootstrap knows only what was
seen, which is why `n` stands beside every rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

DRAWS = 2000
"""Resamples behind every interval."""
LEVEL = 0.95
"""Share of the resamples inside an interval."""
SEED = 0
"""Of the resamples."""


@dataclass(frozen=True)
class Tally:
    """What was counted, image by image.

    Attributes:
        total: `[n]` hits of every image, or the sum of what was measured on it.
        trials: `[n]` of how many; 0 where an image was not asked.
    """

    total: np.ndarray
    trials: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, asked: np.ndarray | None = None) -> "Tally":
        """One trial on every image that was asked: values `[n]`, asked `[n]` bool (None for all)."""
        asked = np.ones(len(values), bool) if asked is None else asked
        return cls(np.where(asked, values, 0).astype(np.float64), asked.astype(np.float64))

    @property
    def n(self) -> int:
        """Trials in all."""
        return int(self.trials.sum())


@dataclass(frozen=True)
class Rate:
    """A mean and its interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end.
        n: trials, of all that was averaged.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def percent(self) -> str:
        """As `96.9 [93.8, 100.0]`."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> str:
        """As `0.031 [0.027, 0.036]`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@lru_cache(maxsize=4)
def _resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n images is drawn `[draws, n]`."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def rate(tallies: Sequence[Tally], *more: Sequence[Tally], draws: int = DRAWS, seed: int = SEED) -> Rate | None:
    """Mean over tallies of the same images, each by its own trials.

    Args:
        tallies: one for every target; those without any trial are left out.
        more: further kinds of the same images: the value is then the mean over the kinds of their means.
        draws: resamples.
        seed: of the resamples.

    Returns:
        None where any kind has no trial at all.

    Raises:
        ValueError: if the tallies are not of equally many images.
    """
    kinds = [[one for one in kind if one.n] for kind in (tallies, *more)]
    if not all(kinds):
        return None
    if len(sizes := {len(one.total) for kind in kinds for one in kind}) != 1:
        raise ValueError(f"tallies must be of the same images to be averaged, got {sorted(sizes)} images")
    often = _resamples(sizes.pop(), draws, seed)
    values, samples = [], []
    for kind in kinds:
        total, trials = np.stack([one.total for one in kind]), np.stack([one.trials for one in kind])
        values.append(float((total.sum(1) / trials.sum(1)).mean()))
        asked = often @ trials.T
        found = np.divide(often @ total.T, asked, out=np.full_like(asked, np.nan), where=asked > 0)
        met = ~np.isnan(found)
        means = np.where(met, found, 0).sum(1)
        samples.append(np.divide(means, met.sum(1), out=np.full(draws, np.nan), where=met.any(1)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.mean(samples, axis=0), [tail, 100 - tail])
    return Rate(float(np.mean(values)), float(low), float(high), sum(one.n for kind in kinds for one in kind))
