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
        lift: `(F1 - F1 of "always yes") / (1 - F1 of "always yes")`, where labels were chosen: 0 says
            nothing, 1 all. F1 alone would call every latent by the most frequent label.
        f1: at its best threshold, on the data where label and threshold were chosen.
        auroc: there.
        held_out: F1 at that threshold on other data; None where there are none.
        sign: -1 where the negative values mean the label.
        threshold: above which value (times sign) the label is said to be shown.
    """

    name: str
    lift: float
    f1: float
    auroc: float
    held_out: float | None
    sign: int
    threshold: float


def best_labels(chosen_on: CodeTable, measured_on: CodeTable | None) -> dict[int, list[LatentLabel]]:
    """For every latent that fires in some labelled item, its best labels by lift, over all factors.

    A label that the latent tells no better than "always yes" does is not listed.

    Args:
        chosen_on: table on which labels and thresholds are chosen.
        measured_on: table of other images of the same factors, on which F1 is measured again.
    """
    shows = (
        {factor: (measured_on.shows(factor), measured_on.labelled(factor)) for factor in measured_on.factors}
        if measured_on
        else {}
    )
    best: dict[int, list[LatentLabel]] = {}
    for factor in chosen_on.factors:
        found = label_scores(chosen_on, factor)
        always = (2 * found.n_positive / np.maximum(found.n_positive + found.n, 1))[:, None]
        lift = np.nan_to_num((found.scores["f1"] - always) / np.maximum(1 - always, 1e-12), nan=0.0)
        order = np.argsort(-lift, axis=0, kind="stable")[:BEST]
        for column in np.flatnonzero(lift.max(0) > 0):
            latent, sign = found.side(int(column))
            for v in order[:, column][lift[order[:, column], column] > 0]:
                threshold = float(found.thresholds[v, column])
                held_out = _held_out(measured_on, shows, latent, factor, found.values[v], sign, threshold)
                best.setdefault(latent, []).append(
                    LatentLabel(
                        f"{factor}={found.values[v]}",
                        float(lift[v, column]),
                        float(found.scores["f1"][v, column]),
                        float(found.scores["auroc"][v, column]),
                        held_out,
                        sign,
                        threshold,
                    )
                )
    return {latent: sorted(labels, key=lambda x: (-x.lift, -x.auroc))[:BEST] for latent, labels in best.items()}


def _held_out(
    table: CodeTable | None, shows: dict[str, Any], latent: int, factor: str, value: str, sign: int, threshold: float
) -> float | None:
    """F1 of "value times sign above threshold" on another table; None without one."""
    if table is None or factor not in shows or value not in table.factors[factor]:
        return None
    shown, labelled = shows[factor]
    positive = shown[table.factors[factor].index(value)]
    items, values = table.item_max(latent, sign)
    fired = items[(values * sign > threshold) & labelled[items]]
    total = int(positive.sum()) + len(fired)
    return 2 * int(positive[fired].sum()) / total if total else None


def latent_rows(table: CodeTable, labels: dict[int, list[LatentLabel]]) -> dict[str, Any]:
    """Columns of the page's table, one entry per latent that fires, as JSON; `max` is the value furthest from 0."""
    alive = table.alive
    furthest = np.where(table.highest >= -table.lowest, table.highest, table.lowest)[alive]
    first = [labels.get(int(j), [None])[0] for j in alive]
    return {
        "id": alive.tolist(),
        "density": [float(f"{d:.3g}") for d in table.density[alive]],
        "max": [float(f"{v:.4g}") for v in furthest],
        "mean": [float(f"{v:.4g}") for v in table.mean_active[alive]],
        "label": [label.name if label else "" for label in first],
        "lift": [round(label.lift, 3) if label else None for label in first],
        "f1": [round(label.f1, 3) if label else None for label in first],
        "held": [round(label.held_out, 3) if label and label.held_out is not None else None for label in first],
        "auroc": [round(label.auroc, 3) if label else None for label in first],
        "range": [[float(f"{table.lowest[j]:.4g}"), float(f"{table.highest[j]:.4g}")] for j in alive],
        "histogram": [table.histogram(int(j))[0].tolist() for j in alive],
        "labels": [
            [
                [
                    x.name,
                    round(x.f1, 3),
                    round(x.auroc, 3),
                    None if x.held_out is None else round(x.held_out, 3),
                    x.sign,
                ]
                for x in labels.get(int(j), [])
            ]
            for j in alive
        ],
    }
