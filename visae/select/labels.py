"""Which latents mean a label: scored over all latents on one split, measured on another."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from visae.codes import CodeTable
from visae.select.scores import SCORES, Columns, auroc, best_cut
from visae.select.selection import Selection


@dataclass(frozen=True)
class LabelScores:
    """Scores of all latents for all values of a factor on one data set.

    A column is a latent, or for a signed dictionary a latent with a sign: columns F to 2F - 1 are the negative sides.

    Attributes:
        factor: the factor.
        values: its V values.
        scores: name -> `[V, columns]`: `mean_difference`, `auroc`, `f1`;
            NaN for a value that no item or every item shows.
        thresholds: `[V, columns]` where F1 is reached.
        n: labelled items.
        n_positive: `[V]` items that show each value.
        n_latents: F.
    """

    factor: str
    values: list[str]
    scores: dict[str, np.ndarray]
    thresholds: np.ndarray
    n: int
    n_positive: np.ndarray
    n_latents: int

    def side(self, column: int) -> tuple[int, int]:
        """Latent and sign of a column."""
        return int(column % self.n_latents), 1 if column < self.n_latents else -1


@dataclass(frozen=True)
class Measured:
    """A selection on items it was not chosen on.

    Attributes:
        precision: of "any latent exceeds its threshold"; 0 if none does.
        recall: likewise.
        f1: likewise.
        auroc: of the weighted strength.
        f1_ci: 95 % bootstrap interval of F1 over items (1000 draws).
        n: labelled items.
        n_positive: items that show the label.
        held_out: whether the data differ from those the selection was chosen on.
    """

    precision: float
    recall: float
    f1: float
    auroc: float
    f1_ci: tuple[float, float]
    n: int
    n_positive: int
    held_out: bool


def label_scores(table: CodeTable, factor: str) -> LabelScores:
    """All scores of all latents for all values of a factor.

    Items without any value of the factor are left out: they are unknown, not negative.
    """
    keep, shows = table.labelled(factor), table.shows(factor)
    return score_columns(factor, table.factors[factor], table_columns(table, keep), shows, keep, table.n_latents)


def table_columns(table: CodeTable, keep: np.ndarray | None = None) -> Columns:
    """Item maxima of a table, both sides of a signed one as separate columns."""
    pointers, items, values = table.item_maxima(1)
    if table.signed:
        more, other, negative = table.item_maxima(-1)
        pointers = np.concatenate([pointers, np.asarray(more)[1:] + pointers[-1]])
        items, values = np.concatenate([items, other]), np.concatenate([values, -np.asarray(negative)])
    return Columns.sort(np.asarray(pointers), items, values, keep)


def score_columns(
    factor: str, values: list[str], columns: Columns, shows: np.ndarray, keep: np.ndarray, n_latents: int
) -> LabelScores:
    """Every score for every value `shows` `[V, n_items]` over the items `keep`; see `label_scores`."""
    scores = {name: np.full((len(values), len(columns)), np.nan) for name in SCORES}
    thresholds = np.full((len(values), len(columns)), np.inf)
    n, n_positive = int(keep.sum()), (shows & keep).sum(1)
    for v, positive in enumerate(shows):
        counts = int(n_positive[v]), n - int(n_positive[v])
        if min(counts) == 0:
            continue
        for name, score in SCORES.items():
            if name != "f1":
                scores[name][v] = score(columns, positive, *counts)
        scores["f1"][v], thresholds[v] = best_cut(columns, positive, *counts)
    return LabelScores(factor, values, scores, thresholds, n, n_positive, n_latents)


def best_latents(table: CodeTable, factor: str, *, by: str = "f1", n: int = 1) -> dict[str, Selection]:
    """For every value of a factor, the latents that mean it best on this table.

    Args:
        table: of the split to choose on (validation).
        factor: whose values are looked for.
        by: the score that ranks: `f1`, `auroc` or `mean_difference` (times the
            direction's norm, so that latents compare); ties go to the higher AUROC.
        n: latents in each selection; more than one widens the rule to "any fires above its threshold".

    Returns:
        Value -> selection, without the values that no labelled item, or every one, shows.

    Raises:
        UnknownName: if the factor or the score is unknown.
        ValueError: if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"a selection needs at least one latent, got n={n}")
    SCORES[by]  # an unknown name is better refused before the work
    found = label_scores(table, factor)
    return {
        found.values[v]: choose(found, v, table, by, n)
        for v in range(len(found.values))
        if not np.isnan(found.scores["f1"][v]).all()
    }


def choose(found: LabelScores, v: int, table: CodeTable, by: str = "f1", n: int = 1) -> Selection:
    """The `n` best columns for value number `v` as a selection."""
    columns = rank(found, v, by, table.norm)[:n]
    sides = [found.side(c) for c in columns]
    return Selection(
        factor=found.factor,
        value=found.values[v],
        latents=tuple(j for j, _ in sides),
        signs=tuple(s for _, s in sides),
        weights=(1.0,) * len(columns),
        thresholds=tuple(float(found.thresholds[v, c]) for c in columns),
        score=by,
        scores=tuple(float(found.scores[by][v, c]) for c in columns),
        sae=table.sae_fingerprint,
        chosen_on=data_identity(table) | {"n": found.n, "n_positive": int(found.n_positive[v])},
    )


def rank(found: LabelScores, v: int, by: str, norm: np.ndarray | None = None) -> np.ndarray:
    """Columns from best to worst for value number `v`; ties go to the higher AUROC, then to the lower number."""
    score = found.scores[by][v]
    if by == "mean_difference" and norm is not None:
        score = score * np.tile(norm, len(score) // len(norm))
    return np.lexsort((-found.scores["auroc"][v], -score))


def measure(selection: Selection, table: CodeTable, *, draws: int = 1000, seed: int = 0) -> Measured:
    """How good a selection is on a table, normally of another split than it was chosen on.

    Raises:
        ValueError: if the table is of another dictionary, or shows the label on no item or on every one.
    """
    if selection.sae and selection.sae != table.sae_fingerprint:
        raise ValueError(
            f"{selection.name} was chosen in dictionary {selection.sae}, this table is of {table.sae_fingerprint}: "
            "numbers of latents do not carry over; choose again with best_latents"
        )
    keep = table.labelled(selection.factor)
    positive = table.shows(selection.factor)[table.factors[selection.factor].index(selection.value)][keep]
    n, n_positive = len(positive), int(positive.sum())
    if n_positive in (0, n):
        raise ValueError(
            f"{selection.name} is shown by {n_positive} of {n} labelled items of {table.name}: nothing to tell apart"
        )
    fires, strength = selection.fires(table)[keep], selection.strength(table)[keep]
    hit = int((fires & positive).sum())
    low = strength.min()  # the core counts values above 0; a shift does not change ranks
    area = auroc(Columns.dense((strength - low)[:, None]), positive, n_positive, n - n_positive)[0]
    return Measured(
        precision=hit / max(1, int(fires.sum())),
        recall=hit / n_positive,
        f1=2 * hit / (n_positive + int(fires.sum())),
        auroc=float(area),
        f1_ci=_f1_interval(fires, positive, draws, seed),
        n=n,
        n_positive=n_positive,
        held_out=selection.chosen_on.get("fingerprint") != data_identity(table)["fingerprint"],
    )


def data_identity(table: CodeTable) -> dict[str, Any]:
    """Name and fingerprint of the data set of a table."""
    return {"data": table.name, "fingerprint": table.data_fingerprint}


def _f1_interval(fires: np.ndarray, positive: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval over resampled items; only the four cells of the table of counts matter."""
    cells = np.bincount(2 * positive + fires, minlength=4) / len(fires)
    _, false, missed, true = np.random.default_rng(seed).multinomial(len(fires), cells, draws).T
    f1 = 2 * true / np.maximum(2 * true + false + missed, 1)
    low, high = np.quantile(f1, [0.025, 0.975])
    return float(low), float(high)
