"""Bins of noise levels: the same for every number of steps, so that tables of different runs can be compared.

| scale (`visae.clock`) | share of noise | bins |
|---|---|---|
| variance-preserving | `sigma / (1 + sigma)` | 10, equally wide in it |
| flow matching | `sigma` | likewise |
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from visae.evaluate.core import Metrics

N_BINS = 10


def noise_share(sigma: np.ndarray, scale: str) -> np.ndarray:
    """Share of noise, 0 to 1, at noise levels."""
    return sigma if scale == "flow" else sigma / (1 + sigma)


def bin_of(sigma: Any, scale: str) -> np.ndarray:
    """Bin `[n]` of noise levels `[n]`, 0 to 9, rising with the noise."""
    share = noise_share(np.asarray(sigma, np.float64), scale)
    return np.minimum((share * N_BINS + 1e-9).astype(np.int64), N_BINS - 1)


def bin_name(number: int, scale: str) -> str:
    """Noise levels of a bin, e.g. `0.43-0.67`."""
    low, high = number / N_BINS, (number + 1) / N_BINS
    if scale == "flow":
        return f"{low:.1f}-{high:.1f}"
    return f"{low / (1 - low):.2g}-" + ("inf" if number == N_BINS - 1 else f"{high / (1 - high):.2g}")


def over_bins(by_sigma: Mapping[str, "Metrics"]) -> dict[str, float]:
    """`fvu_mean`, mean FVU of the bins that hold tokens, and `fvu_worst_bin`, the largest; empty without bins."""
    found = [metrics.fvu for metrics in by_sigma.values()]
    return {"fvu_mean": float(np.mean(found)), "fvu_worst_bin": float(max(found))} if found else {}
