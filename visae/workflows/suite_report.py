"""What a suite found: one row per setting, which are dominated, how stable they are; as text, JSON and a picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from visae.evaluate import Metrics, stability
from visae.evaluate.pareto import dominated
from visae.json_files import write_json
from visae.sae import Dictionary
from visae.show.pareto import Point, pareto_figure
from visae.text_table import text_table
from visae.workflows.sweep import Setting

JSON, PICTURE = "suite.json", "suite.png"


@dataclass(frozen=True)
class Entry:
    """A dictionary to be measured.

    Attributes:
        name: of its folder, from the suite's.
        setting: what it is; of an ensemble, what its first member is.
        sae: the dictionary.
        folder: where it lies.
        label: `bag of 2` or the like for an ensemble.
    """

    name: str
    setting: Setting
    sae: Dictionary
    folder: Path
    label: str = ""


@dataclass(frozen=True)
class Row:
    """A setting and what its dictionaries have in common, means over their seeds.

    Attributes:
        setting: with the seed left out of account.
        members: names of their folders.
        label: `bag of 2` or the like for ensembles.
        l0: codes per token, held out.
        fvu: fraction of variance unexplained, held out.
        fvu_range: smallest and largest.
        dead: share of latents silent on all held-out tokens.
        dominated: whether another setting of the site has at most this L0 and FVU.
        shared: share of latents found again with another seed (see `visae.evaluate.stability`), mean over pairs; None
            for one seed.
        shared_alive: the same among alive latents.
        mmcs: mean largest cosine with another seed.
        mmcs_alive: the same among alive latents.
        chance: `mmcs` of random directions.
        fvu_by_sigma: of a pipeline's tokens, FVU in each bin of noise levels, rising.
    """

    setting: Setting
    members: list[str]
    label: str
    l0: float
    fvu: float
    fvu_range: tuple[float, float]
    dead: float
    dominated: bool = False
    shared: float | None = None
    shared_alive: float | None = None
    mmcs: float | None = None
    mmcs_alive: float | None = None
    chance: float | None = None
    fvu_by_sigma: dict[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind of dictionary, and what was made of it."""
        return f"{self.setting.kind}, {self.label}" if self.label else self.setting.kind


@dataclass(frozen=True)
class SuiteReport:
    """Everything a suite found; prints as a table.

    Attributes:
        folder: of the suite.
        rows: one per setting.
        n: held-out tokens measured at each site.
        data: the held-out images.
        failed: why members were given up, by name.
    """

    folder: Path
    rows: list[Row]
    n: int
    data: str
    failed: dict[str, str]

    def __str__(self) -> str:
        head, cells = _table(self.rows)
        members = sum(len(row.members) for row in self.rows)
        lines = [
            f"{members} dictionaries in {len(self.rows)} rows; measured on {self.n:,} tokens of {self.data}",
            "",
            text_table(head, cells),
            "",
            "pareto: no other setting of the site has both an L0 and an FVU at most as large.",
        ]
        if any(row.shared is not None for row in self.rows):
            lines.append(
                "shared: share of latents with a partner of their own at a cosine above 0.7 under another seed; of all "
                "latents, and of alive ones."
            )
        lines += [f"given up: {name}: {why}" for name, why in self.failed.items()]
        lines += [f"in {self.folder}: {JSON}, {PICTURE}, a folder per dictionary (visae report {self.folder}/NAME)"]
        return "\n".join(lines)

    def write(self) -> None:
        """Writes `suite.json` and `suite.png`, each under another name first."""
        write_json(self.folder / JSON, asdict(self) | {"folder": str(self.folder)})
        figure = pareto_figure(points(self.rows))
        partial = self.folder / f".tmp.{PICTURE}"
        figure.savefig(partial, dpi=160)
        os.replace(partial, self.folder / PICTURE)


def compare(entries: Sequence[Entry], measured: Mapping[str, Metrics]) -> list[Row]:
    """Rows from dictionaries and what was measured of each on held-out tokens, by name."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(repr((entry.setting.without_seed(), entry.label)), []).append(entry)
    rows = []
    for group in groups.values():
        metrics = [measured[entry.name] for entry in group]
        fvu = [one.fvu for one in metrics]
        rows.append(
            Row(
                group[0].setting.without_seed(),
                [entry.name for entry in group],
                group[0].label,
                l0=_mean([one.l0 for one in metrics]),
                fvu=_mean(fvu),
                fvu_range=(min(fvu), max(fvu)),
                dead=_mean([one.dead for one in metrics]),
                fvu_by_sigma={name: _mean([one.by_sigma[name].fvu for one in metrics]) for name in metrics[0].by_sigma},
                **_stability([entry.sae for entry in group], [one.density for one in metrics]),
            )
        )
    return _mark(rows)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _stability(saes: Sequence[Dictionary], densities: Sequence[np.ndarray]) -> dict[str, Any]:
    """Means over all pairs of seeds."""
    found = [stability(saes[i], saes[j], (densities[i], densities[j])) for i, j in combinations(range(len(saes)), 2)]
    keys = ("shared", "shared_alive", "mmcs", "mmcs_alive", "chance")
    return {key: _mean([getattr(one, key) for one in found]) for key in keys} if found else {}


def _mark(rows: Sequence[Row]) -> list[Row]:
    """The rows with what is dominated at each site."""
    marked = dict[int, bool]()
    for site in {row.setting.site for row in rows}:
        here = [i for i, row in enumerate(rows) if row.setting.site == site]
        marked |= dict(zip(here, dominated([(rows[i].l0, rows[i].fvu) for i in here]), strict=True))
    return [Row(**{**vars(row), "dominated": marked[i]}) for i, row in enumerate(rows)]


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Heads and cells; settings that are the same everywhere have no column, except the kind."""
    told: dict[str, list[Any]] = {
        "site": [row.setting.site for row in rows],
        "kind": [row.kind for row in rows],
        "latents": [row.setting.latents or f"{row.setting.expansion:g} d" for row in rows],
        "k": [row.setting.k for row in rows],
        "lr": [row.setting.lr for row in rows],
        "normaliser": [row.setting.normaliser for row in rows],
        "mfr": [row.setting.mfr or None for row in rows],
        "options": [_listed(row.setting.options) for row in rows],
        "schemes": [_listed(row.setting.schemes) for row in rows],
    }
    columns = {key: cells for key, cells in told.items() if key == "kind" or len({str(cell) for cell in cells}) > 1}
    columns |= {
        "L0": [f"{row.l0:.1f}" for row in rows],
        "FVU": [f"{row.fvu:.4f}" for row in rows],
        **_over_noise(rows),
        "dead": [f"{row.dead:.1%}" for row in rows],
        "pareto": ["dominated" if row.dominated else "yes" for row in rows],
    }
    if any(row.shared is not None for row in rows):
        columns["shared"] = [None if row.shared is None else f"{row.shared:.2f}" for row in rows]
        columns["alive"] = [None if row.shared_alive is None else f"{row.shared_alive:.2f}" for row in rows]
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def _listed(table: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in table.items()) or None


def _over_noise(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Columns of the bins of noise levels that any row has, with their mean and the worst; none where there are none.

    Sites of one suite see the same steps, so all have the same bins.
    """
    bins = dict.fromkeys(name for row in rows for name in row.fvu_by_sigma)
    if not bins:
        return {}
    columns: dict[str, list[Any]] = {f"FVU {name}": [row.fvu_by_sigma.get(name) for row in rows] for name in bins}
    levels = [list(row.fvu_by_sigma.values()) for row in rows]
    return columns | {"mean": [_mean(one) for one in levels], "worst": [max(one) for one in levels]}


def points(rows: Sequence[Row]) -> list[Point]:
    """What the picture shows: a line per kind, and per width, rate, normaliser or schemes where these were crossed."""
    told = [
        {
            "latents": row.setting.latents or f"{row.setting.expansion:g} d",
            "lr": row.setting.lr,
            "normaliser": row.setting.normaliser,
            "mfr": row.setting.mfr,
            "schemes": _listed(row.setting.schemes),
        }
        for row in rows
    ]
    crossed = [key for key in told[0] if len({str(one[key]) for one in told}) > 1]
    return [
        Point(
            line=", ".join([row.kind, *(f"{key} {one[key]}" for key in crossed if one[key] is not None)]),
            panel=row.setting.site,
            l0=row.l0,
            fvu=row.fvu,
            low=row.fvu_range[0],
            high=row.fvu_range[1],
            dominated=row.dominated,
        )
        for row, one in zip(rows, told, strict=True)
    ]
