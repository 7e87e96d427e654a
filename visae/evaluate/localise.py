"""Does a heat map lie on the object? Section 3.5 of the metric suite: definitions, chance and baselines side by side.

All metrics are of one image, then averaged over images; pixels that the model never saw count nowhere. H is the
heat map on the pixels of the image (bilinear, negative values cut to 0), m the mask, A the pixels seen.

- *Pointing game*: 1 if the largest value of H lies inside m, else 0. Where several pixels share the largest value it is
  the share of them inside m, so a uniform H scores its chance, the area |m| / |A|.
- *IoU*: of {H > tau * max(H)} with m. tau = 0.3, and beside it the tau that is best on the validation split.
- *Pixel AP*: area under precision over recall of the pixels ranked by H (ties as one step: scikit-learn's average
  precision). Chance is the area of m.
- *Energy inside*: sum of H over m / sum of H over A. Chance is the area of m.

A latent that is silent in an image points nowhere: pointing, IoU and energy are 0 there, AP is the area.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

METRICS = ("pointing", "iou", "pixel_ap", "energy")
"""Names of the metrics, in the order of the columns of `PerImage`."""

TAU = 0.3
"""Share of the largest value above which a pixel belongs to the object, by convention."""

TAUS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Thresholds tried on the validation split."""


@dataclass(frozen=True)
class Localisation:
    """How well heat maps lie on masks, mean over images.

    Attributes:
        pointing: see the head of the file, as for the others.
        iou: at tau = 0.3.
        iou_best: at `tau_best`; None where no validation split was given.
        pixel_ap: area under precision over recall.
        energy: share of the heat inside the mask.
        chance: mean area of the masks: what pointing, AP and energy of a uniform map are.
        silent: share of images in which the map is 0 everywhere.
        n: images.
        tau_best: threshold chosen on the validation split.
        ci: metric -> 95 % bootstrap interval over images (1000 draws).
    """

    pointing: float
    iou: float
    pixel_ap: float
    energy: float
    chance: float
    silent: float
    n: int
    iou_best: float | None = None
    tau_best: float | None = None
    ci: dict[str, tuple[float, float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def localise(
    heats: Iterable[np.ndarray],
    masks: Iterable[np.ndarray],
    *,
    seen: Iterable[np.ndarray | None] | None = None,
    tau_best: float | None = None,
    seed: int = 0,
) -> Localisation:
    """Compares heat maps with masks.

    Args:
        heats: `[H, W]` of each image, already on its pixels (`Geometry.to_image`).
        masks: `[H, W]` (bool) of each image, not empty.
        seen: `[H, W]` (bool) pixels that the model saw (`Geometry.seen`); None means all.
        tau_best: a threshold chosen by `best_tau` on other images, for `iou_best`.
        seed: of the bootstrap.

    Raises:
        ValueError: if there are no images, or a mask has no pixel that the model saw.
    """
    looked = iter(seen) if seen is not None else None
    rows = [score_image(h, m, next(looked) if looked else None, tau_best) for h, m in zip(heats, masks, strict=True)]
    return summarise(rows, tau_best=tau_best, seed=seed)


def score_image(
    heat: np.ndarray, mask: np.ndarray, seen: np.ndarray | None = None, tau_best: float | None = None
) -> np.ndarray:
    """Pointing, IoU, AP, energy, area, silent, IoU at `tau_best` (NaN without one) of one image, `[7]` float64.

    Raises:
        ValueError: if shapes differ, or the mask has no pixel that the model saw.
    """
    if heat.shape != mask.shape:
        raise ValueError(
            f"heat map {heat.shape} and mask {mask.shape} are not of the same image: bring the heat to pixels first"
        )
    heat, mask = (heat.ravel(), mask.ravel()) if seen is None else (heat[seen], mask[seen])
    if not mask.any():
        raise ValueError("the mask has no pixel that the model saw: leave such images out")
    heat = np.maximum(heat, 0)
    area = mask.mean()
    top = heat.max()
    if top == 0:
        return np.array([0, 0, area, 0, area, 1, np.nan if tau_best is None else 0])
    return np.array(
        [
            mask[heat == top].mean(),
            overlap(heat, mask, TAU),
            average_precision(heat, mask),
            heat[mask].sum(dtype=np.float64) / heat.sum(dtype=np.float64),
            area,
            0,
            np.nan if tau_best is None else overlap(heat, mask, tau_best),
        ]
    )


def overlap(heat: np.ndarray, mask: np.ndarray, tau: float) -> float:
    """IoU of the pixels above `tau` times the largest value with the mask."""
    inside = heat > tau * heat.max()
    return float((inside & mask).sum() / (inside | mask).sum())


def average_precision(heat: np.ndarray, mask: np.ndarray) -> float:
    """Average precision of pixels ranked by heat; equal values are one step."""
    order = np.argsort(-heat)
    ranked, value = mask[order], heat[order]
    last = np.append(np.flatnonzero(np.diff(value)), len(value) - 1)
    found = np.cumsum(ranked)[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / found[-1])


def best_tau(heats: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """The threshold of `TAUS` with the largest mean IoU; for a validation split."""
    return TAUS[int(np.argmax(np.mean([overlaps(h, m) for h, m in zip(heats, masks, strict=True)], axis=0)))]


def overlaps(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`overlap` at every threshold of `TAUS`, in one pass; 0 for a silent map."""
    heat, mask = np.maximum(heat, 0).ravel(), mask.ravel()
    above = np.searchsorted(np.asarray(TAUS) * heat.max(), heat, side="left")  # thresholds below each pixel's value
    counts = np.bincount(above + (len(TAUS) + 1) * mask, minlength=2 * len(TAUS) + 2).reshape(2, -1)
    outside, hit = counts[:, :0:-1].cumsum(1)[:, ::-1]
    return hit / np.maximum(mask.sum() + outside, 1)


def summarise(
    rows: Sequence[np.ndarray], *, tau_best: float | None = None, seed: int = 0, draws: int = 1000
) -> Localisation:
    """Mean and bootstrap interval of rows from `score_image`.

    Raises:
        ValueError: if there are none.
    """
    if len(rows) == 0:
        raise ValueError("no image shows this concept with a mask: nothing to localise")
    table = np.stack(rows)
    n = len(table)
    picks = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws) / n
    low, high = np.quantile(picks @ table[:, :4], [0.025, 0.975], axis=0)
    pointing, iou, pixel_ap, energy, chance, silent, at_best = (float(x) for x in table.mean(0))
    return Localisation(
        pointing,
        iou,
        pixel_ap,
        energy,
        chance,
        silent,
        n,
        None if tau_best is None else at_best,
        tau_best,
        {name: (float(a), float(b)) for name, a, b in zip(METRICS, low, high, strict=True)},
    )
