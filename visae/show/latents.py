"""The table of latents of a report: density, values, histogram and best labels of every latent that fires."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from visae.codes import CodeTable
from visae.select import label_scores

BEST = 3
"""Labels listed for a latent."""


@dataclass(frozen=True)
class LatentLabel:
    """How well one latent alone tells one label.

    Attributes:
        name: `shape=circle`.
        f1: at its best threshold, on the data where label and threshold were chosen.
        auroc: there.
        held_out: F1 at that threshold on other data; None where there are none.
        sign: -1 where the negative values mean the label.
        threshold: above which value (times sign) the label is said to be shown.
    """

    name: str
    f1: float
    auroc: float
    held_out: float | None
    sign: int
    threshold: float


def best_labels(chosen_on: CodeTable, measured_on: CodeTable | None) -> dict[int, list[LatentLabel]]:
    """For every latent that fires in some labelled item, its best labels by F1, over all factors.

    Args:
        chosen_on: table on which labels and thresholds are chosen.
        measured_on: table of other images of the same factors, on which F1 is measured again.
    """
    best: dict[int, list[tuple[float, float, str, str, int, float]]] = {}
    for factor in chosen_on.factors:
        found = label_scores(chosen_on, factor)
        f1 = np.nan_to_num(found.scores["f1"], nan=0.0)
        order = np.argsort(-f1, axis=0, kind="stable")[:BEST]
        for column in np.flatnonzero(f1.max(0) > 0):
            latent, sign = found.side(int(column))
            best.setdefault(latent, []).extend(
                (f1[v, column], found.scores["auroc"][v, column], factor, found.values[v], sign, found.thresholds[v, column])
                for v in order[:, column] if f1[v, column] > 0
            )
    shows = {factor: (measured_on.shows(factor), measured_on.labelled(factor)) for factor in measured_on.factors} if measured_on else {}
    out = {}
    for latent, labels in best.items():
        labels.sort(key=lambda row: (-row[0], -row[1]))
        out[latent] = [
            LatentLabel(f"{factor}={value}", float(f1), float(auroc), _held_out(measured_on, shows, latent, factor, value, sign, threshold),
                        sign, float(threshold))
            for f1, auroc, factor, value, sign, threshold in labels[:BEST]
        ]
    return out


def _held_out(table: CodeTable | None, shows: dict[str, Any], latent: int, factor: str, value: str, sign: int, threshold: float) -> float | None:
    if table is None or factor not in shows or value not in table.factors[factor]:
        return None
    shown, labelled = shows[factor]
    positive = shown[table.factors[factor].index(value)]
    items, values = table.item_max(latent, sign)
    fired = items[(values * sign > threshold) & labelled[items]]
    total = int(positive.sum()) + len(fired)
    return 2 * int(positive[fired].sum()) / total if total else None


def latent_rows(table: CodeTable, labels: dict[int, list[LatentLabel]]) -> dict[str, Any]:
    """Columns of the page's table, one entry per latent that fires, as JSON."""
    alive = table.alive
    first = [labels.get(int(j), [None])[0] for j in alive]
    return {
        "id": alive.tolist(),
        "density": [float(f"{d:.3g}") for d in table.density[alive]],
        "max": [float(f"{v:.4g}") for v in np.where(table.highest[alive] > 0, table.highest[alive], table.lowest[alive])],
        "mean": [float(f"{v:.4g}") for v in table.mean_active[alive]],
        "label": [label.name if label else "" for label in first],
        "f1": [round(label.f1, 3) if label else None for label in first],
        "held": [round(label.held_out, 3) if label and label.held_out is not None else None for label in first],
        "auroc": [round(label.auroc, 3) if label else None for label in first],
        "range": [[float(f"{table.lowest[j]:.4g}"), float(f"{table.highest[j]:.4g}")] for j in alive],
        "histogram": [table.histogram(int(j))[0].tolist() for j in alive],
        "labels": [[[x.name, round(x.f1, 3), round(x.auroc, 3), None if x.held_out is None else round(x.held_out, 3), x.sign]
                    for x in labels.get(int(j), [])] for j in alive],
    }
