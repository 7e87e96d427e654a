"""How well each latent tells the items of a label from the others: mean difference, AUROC, best F1. All exact.

Image level: an item's value is the latent's largest over its patches, 0 where it is silent (row SE1 of the metric
suite). A score takes `Columns`, the non-zero values of all latents sorted once, and the items that show a label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visae.registry import Registry


@dataclass(frozen=True)
class Columns:
    """Positive values of many latents over the same items, each latent's sorted from high to low, ties grouped.

    Attributes:
        item: `[m]` item of each entry; an item without an entry has the value 0.
        value: `[m]` float64, above 0.
        start: `[F + 1]` entries `start[j]` to `start[j + 1]` belong to latent j.
        group: `[g]` first entry of each run of equal values of one latent.
        owner: `[g]` latent of each run.
        first_group: `[F + 1]` runs `first_group[j]` to `first_group[j + 1]` belong to latent j.
    """

    item: np.ndarray
    value: np.ndarray
    start: np.ndarray
    group: np.ndarray
    owner: np.ndarray
    first_group: np.ndarray

    @classmethod
    def sort(
        cls, pointers: np.ndarray, items: np.ndarray, values: np.ndarray, keep: np.ndarray | None = None
    ) -> "Columns":
        """Columns from compressed sparse columns; `keep` `[n_items]` (bool) leaves out items that are not labelled."""
        n = len(pointers) - 1
        owner = np.repeat(np.arange(n), np.diff(pointers))
        items, values = np.asarray(items), np.asarray(values, np.float64)
        if keep is not None and not keep.all():
            chosen = keep[items]
            owner, items, values = owner[chosen], items[chosen], values[chosen]
        order = np.lexsort((-values, owner))
        owner, items, values = owner[order], items[order], values[order]
        new = np.ones(len(owner), bool)
        new[1:] = (np.diff(owner) != 0) | (np.diff(values) != 0)
        group = np.flatnonzero(new)
        edges = np.arange(n + 1)
        return cls(
            items, values, np.searchsorted(owner, edges), group, owner[group], np.searchsorted(owner[group], edges)
        )

    @classmethod
    def dense(cls, values: np.ndarray) -> "Columns":
        """Columns from values `[n_items, F]`, of which only the positive ones count."""
        owner, items = np.nonzero(values.T > 0)
        return cls.sort(np.searchsorted(owner, np.arange(values.shape[1] + 1)), items, values.T[owner, items])

    def __len__(self) -> int:
        return len(self.start) - 1

    def counts(self, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative items `[g]` in each run of equal values."""
        if not len(self.group):
            return np.zeros(0), np.zeros(0)
        hits = np.add.reduceat(positive[self.item].astype(np.float64), self.group)
        return hits, np.diff(np.append(self.group, len(self.item))) - hits

    def running(self, per_group: np.ndarray) -> np.ndarray:
        """Running sum over the runs of each latent, the present one included."""
        total = np.concatenate([[0.0], np.cumsum(per_group)])
        return total[1:] - total[self.first_group[self.owner]]

    def per_latent(self, per_group: np.ndarray) -> np.ndarray:
        """Sum `[F]` over the runs of each latent."""
        total = np.concatenate([[0.0], np.cumsum(per_group)])
        return np.diff(total[self.first_group])


Score = Callable[[Columns, np.ndarray, int, int], np.ndarray]
"""`score(columns, positive [n_items] bool, P, N) -> [F]`, larger is better; P and N count the two sorts of items."""

SCORES: Registry[Score] = Registry("label score")
"""Name -> score."""


@SCORES.register("mean_difference")
def mean_difference(columns: Columns, positive: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    """Mean value on items with the label minus mean on the others, silent items counting as 0, in the codes' unit."""
    if not len(columns.group):
        return np.zeros(len(columns))
    hits, misses = columns.counts(positive)
    value = columns.value[columns.group]
    return columns.per_latent(value * hits) / n_positive - columns.per_latent(value * misses) / n_negative


@SCORES.register("auroc")
def auroc(columns: Columns, positive: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    """P(value on an item with the label > value on one without) + half of P(equal): the Mann-Whitney statistic.

    Ties are counted exactly, those at 0 (both items silent) included.
    """
    hits, misses = columns.counts(positive)
    above = columns.running(hits) - hits
    won = columns.per_latent(misses * (above + hits / 2))
    found, alarms = columns.per_latent(hits), columns.per_latent(misses)
    silent = (n_negative - alarms) * (found + (n_positive - found) / 2)
    return (won + silent) / (n_positive * n_negative)


@SCORES.register("f1")
def best_f1(columns: Columns, positive: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    """Largest F1 over all thresholds, see `best_cut`."""
    return best_cut(columns, positive, n_positive, n_negative)[0]


def best_cut(columns: Columns, positive: np.ndarray, n_positive: int, n_negative: int) -> tuple[np.ndarray, np.ndarray]:
    """Best F1 `[F]` of the rule "label if value > threshold" and the threshold `[F]` that reaches it.

    Every cut between two different values is tried, and the one between the smallest value and 0, but not "label
    everything". The threshold lies midway between the two values; of equal cuts the highest wins. A latent that never
    fires has F1 0 and threshold infinity.
    """
    del n_negative  # F1 does not ask; the argument keeps all scores alike
    f1, threshold = np.zeros(len(columns)), np.full(len(columns), np.inf)
    if not len(columns.group):
        return f1, threshold
    hits, misses = columns.counts(positive)
    found, alarms = columns.running(hits), columns.running(misses)
    value = columns.value[columns.group]
    same = np.append(columns.owner[1:] == columns.owner[:-1], False)
    below = np.where(same, np.append(value[1:], 0.0), 0.0)
    of_cut = 2 * found / (n_positive + found + alarms)
    owners, starts = np.unique(columns.owner, return_index=True)
    best = np.maximum.reduceat(of_cut, starts)
    reached = np.flatnonzero(of_cut == np.repeat(best, np.diff(np.append(starts, len(of_cut)))))
    winner = reached[np.unique(columns.owner[reached], return_index=True)[1]]
    f1[owners], threshold[owners] = best, (value[winner] + below[winner]) / 2
    return f1, threshold
