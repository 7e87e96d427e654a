"""Localisation of labels on a data set with masks: the chosen latent beside a random one, a neuron and a component."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from visae.codes import CodeTable
from visae.data.sample import ImageData
from visae.evaluate.localise import TAU, Localisation, best_tau, score_image, summarise
from visae.sae import Dictionary, neurons, pca
from visae.select import Selection, label_scores
from visae.select.labels import rank, score_columns
from visae.select.scores import Columns
from visae.tokens import KINDS

METHODS = ("latent", "top 5 latents", "random latent", "neuron", "pca")
"""What is compared, in the order of print."""

_PATCH = KINDS.index("patch")


class Source(Protocol):
    """An activation source, see `visae.store`."""

    def chunks(self) -> Any:
        """Rows of whole items, in order."""
        ...


@dataclass(frozen=True)
class ConceptLocalisation:
    """One label: how well each method's heat maps lie on its masks.

    Attributes:
        factor: of the label.
        value: of the label.
        selection: latents that were chosen on the validation split; the first one is localised.
        methods: name -> result; `top 5 latents` and `random latent` are means over five latents.
        chosen: name -> what was compared, e.g. `-neuron 17`.
    """

    factor: str
    value: str
    selection: Selection
    methods: dict[str, Localisation]
    chosen: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        methods = {name: result.to_dict() for name, result in self.methods.items()}
        return {
            "factor": self.factor,
            "value": self.value,
            "selection": self.selection.to_dict(),
            "methods": methods,
            "chosen": self.chosen,
        }


@dataclass(frozen=True)
class Rival:
    """Signed directions whose rectified projections are read like codes.

    Attributes:
        name: `neuron` or `pca`.
        probe: its codes are the projections of the centred activation.
    """

    name: str
    probe: Dictionary

    def both_sides(self, rows: torch.Tensor) -> np.ndarray:
        """Values `[n, 2d]` of the directions and of their negatives, cut at 0."""
        projected = self.probe.encode(rows.float()).to_dense()
        return torch.cat([projected, -projected], 1).clamp(min=0).numpy()

    def label(self, column: int) -> str:
        """`neuron 3`, or `-neuron 3` for the negative side."""
        d = self.probe.n_latents
        return f"{'-' if column >= d else ''}{self.name} {column % d}"


def localise_concepts(
    selections: Sequence[Selection],
    val: CodeTable,
    test: CodeTable,
    val_rows: Source,
    test_rows: Source,
    val_data: ImageData,
    test_data: ImageData,
    *,
    max_images: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> list[ConceptLocalisation]:
    """Localises every selection on the test split, with the same choice made among neurons and principal components.

    Latent, neuron, component and threshold are chosen on the validation split by F1 (ties by AUROC) of image maxima;
    components are fitted there too. Only then the test split is looked at.

    Args:
        selections: from `best_latents` on `val`.
        val: codes of the validation split.
        test: codes of the test split.
        val_rows: activations of the validation split.
        test_rows: activations of the test split.
        val_data: images and masks of the validation split.
        test_data: images and masks of the test split.
        max_images: at most so many images of each label, the same for all methods.
        seed: of the random latents and the bootstrap.
        progress: show a bar.

    Returns:
        One entry per selection, in order, without those that no test image shows with a mask.

    Raises:
        ValueError: if the tokens have no grid.
    """
    rivals = [Rival("neuron", neurons(_patches(val_rows))), Rival("pca", _all_components(val_rows))]
    plan = _plan(selections, val, val_rows, rivals, seed)
    taus = _taus(plan, val, val_rows, val_data, rivals, max_images)
    found = _Maps(plan, test, test_rows, rivals, max_images)
    scores: dict[tuple[int, str], list[np.ndarray]] = {(s, m): [] for s in range(len(plan)) for m in METHODS}
    for item, wanted in tqdm(found.items.items(), desc="localise", unit="image", disable=not progress):
        sample = test_data[item]
        for s in wanted:
            mask = sample.mask(plan[s].selection.factor, plan[s].selection.value)
            seen = found.geometry.seen(mask.shape)
            if not (mask & seen).any():
                continue
            for method in METHODS:
                maps = found.geometry.to_image(found.grids(item, s, method), mask.shape)
                rows = [score_image(heat, mask, seen, tau) for heat, tau in zip(maps, taus[s][method], strict=True)]
                scores[s, method].append(np.mean(rows, axis=0))
    return [
        _conclude(p, {m: scores[s, m] for m in METHODS}, taus[s], seed)
        for s, p in enumerate(plan)
        if scores[s, "latent"]
    ]


@dataclass(frozen=True)
class _Plan:
    """What is drawn for one label: latents with signs, and a column of each rival."""

    selection: Selection
    latents: dict[str, list[tuple[int, int]]]
    columns: dict[str, int]
    labels: dict[str, str]


def _plan(
    selections: Sequence[Selection], val: CodeTable, rows: Source, rivals: Sequence[Rival], seed: int
) -> list[_Plan]:
    maxima = _item_maxima(val, rows, rivals)
    rng = np.random.default_rng(seed)
    firing = [(int(j), s) for s in ((1, -1) if val.signed else (1,)) for j in _alive(val, s)]
    plan, scored = [], {}
    for selection in selections:
        factor, keep = selection.factor, val.labelled(selection.factor)
        v = val.factors[factor].index(selection.value)
        if factor not in scored:
            scored[factor] = (
                label_scores(val, factor),
                {
                    r.name: score_columns(
                        factor,
                        val.factors[factor],
                        Columns.dense(maxima[r.name] * keep[:, None]),
                        val.shows(factor),
                        keep,
                        r.probe.n_latents,
                    )
                    for r in rivals
                },
            )
        latents, others = scored[factor]
        best = {name: int(rank(found, v, "f1")[0]) for name, found in others.items()}
        top = [latents.side(int(c)) for c in rank(latents, v, "f1")[:5]]
        chosen = {
            "latent": [(selection.latents[0], selection.signs[0])],
            "top 5 latents": top,
            "random latent": [firing[i] for i in rng.choice(len(firing), 5, replace=len(firing) < 5)],
        }
        names = {name: ", ".join(f"{'-' if s < 0 else ''}{j}" for j, s in pairs) for name, pairs in chosen.items()}
        plan.append(_Plan(selection, chosen, best, names | {r.name: r.label(best[r.name]) for r in rivals}))
    return plan


def _alive(table: CodeTable, sign: int) -> np.ndarray:
    """Latents that fire on some patch with a sign."""
    return np.flatnonzero(np.diff(table.item_maxima(sign)[0]))


class _Maps:
    """Token grids of every method for the images that show each label, gathered in one pass over the activations."""

    def __init__(self, plan: Sequence[_Plan], table: CodeTable, rows: Source, rivals: Sequence[Rival], max_images: int):
        if table.geometry is None:
            raise ValueError("localisation needs tokens on a grid; these tables are of a pooled site")
        self._plan, self._table, self.geometry = plan, table, table.geometry
        self.items: dict[int, list[int]] = {}
        for s, p in enumerate(plan):
            shows = table.shows(p.selection.factor)[table.factors[p.selection.factor].index(p.selection.value)]
            stored = np.diff(table.array("item_ptr")) > 0
            for item in np.flatnonzero(shows & stored)[:max_images]:
                self.items.setdefault(int(item), []).append(s)
        self.items = dict(sorted(self.items.items()))
        self._columns = {r.name: sorted({p.columns[r.name] for p in plan}) for r in rivals}
        self._rival: dict[tuple[str, int], np.ndarray] = {}
        wanted = np.array(list(self.items), np.int64)
        for chunk in rows.chunks():
            item, kind = np.asarray(chunk.item), np.asarray(chunk.kind)
            keep = np.flatnonzero((kind == _PATCH) & np.isin(item, wanted))
            if len(keep):
                self._gather(item[keep], np.asarray(chunk.y)[keep], np.asarray(chunk.x)[keep], chunk.rows[keep], rivals)

    def _gather(
        self, item: np.ndarray, y: np.ndarray, x: np.ndarray, rows: torch.Tensor, rivals: Sequence[Rival]
    ) -> None:
        for rival in rivals:
            values = rival.both_sides(rows)[:, self._columns[rival.name]]
            for one in np.unique(item):
                mine = item == one
                grid = np.zeros((values.shape[1], *self.geometry.grid), np.float32)
                grid[:, y[mine], x[mine]] = values[mine].T
                self._rival[rival.name, int(one)] = grid

    def grids(self, item: int, s: int, method: str) -> np.ndarray:
        """Grids `[m, h, w]` of a method for plan number `s`; values point up where they mean the label."""
        p = self._plan[s]
        if method in p.latents:
            latents, signs = zip(*p.latents[method], strict=True)
            return self._table.grids(item, latents, signs)
        return self._rival[method, item][[self._columns[method].index(p.columns[method])]]


def _taus(
    plan: Sequence[_Plan], val: CodeTable, rows: Source, data: ImageData, rivals: Sequence[Rival], max_images: int
) -> list[dict[str, list[float]]]:
    """Per label and method, the threshold of each map with the best IoU on the validation split."""
    found = _Maps(plan, val, rows, rivals, min(max_images, 50))
    heats: dict[tuple[int, str], list[np.ndarray]] = {(s, m): [] for s in range(len(plan)) for m in METHODS}
    masks: list[list[np.ndarray]] = [[] for _ in plan]
    for item, wanted in found.items.items():
        sample = data[item]
        for s in wanted:
            mask = sample.mask(plan[s].selection.factor, plan[s].selection.value)
            seen = found.geometry.seen(mask.shape)
            if (mask & seen).any():
                masks[s].append(mask[seen])
                for method in METHODS:
                    maps = found.geometry.to_image(found.grids(item, s, method), mask.shape)
                    heats[s, method].append(np.maximum(maps[:, seen], 0))
    out = []
    for s, p in enumerate(plan):
        width = {m: len(p.latents.get(m, [0])) for m in METHODS}
        out.append(
            {
                m: [best_tau([h[i] for h in heats[s, m]], masks[s]) if masks[s] else TAU for i in range(width[m])]
                for m in METHODS
            }
        )
    return out


def _conclude(
    plan: _Plan, scores: dict[str, list[np.ndarray]], taus: dict[str, list[float]], seed: int
) -> ConceptLocalisation:
    methods = {m: summarise(rows, tau_best=float(np.mean(taus[m])), seed=seed) for m, rows in scores.items()}
    return ConceptLocalisation(plan.selection.factor, plan.selection.value, plan.selection, methods, plan.labels)


def _patches(rows: Source) -> Any:
    for chunk in rows.chunks():
        keep = torch.as_tensor(np.asarray(chunk.kind)) == _PATCH
        if keep.any():
            yield chunk.rows[keep].float()


def _all_components(rows: Source) -> Dictionary:
    """All principal components of the patches."""
    d = next(iter(_patches(rows))).shape[1]
    return pca(_patches(rows), d)


def _item_maxima(table: CodeTable, rows: Source, rivals: Sequence[Rival]) -> dict[str, np.ndarray]:
    """Largest value `[n_items, 2d]` over the patches of each item, for both sides of each rival's directions."""
    out = {r.name: np.zeros((table.n_items, 2 * r.probe.n_latents), np.float32) for r in rivals}
    for chunk in rows.chunks():
        keep = np.flatnonzero(np.asarray(chunk.kind) == _PATCH)
        item = np.asarray(chunk.item)[keep]
        if len(item):
            starts = np.flatnonzero(np.diff(item, prepend=-1))
            for rival in rivals:
                out[rival.name][item[starts]] = np.maximum.reduceat(rival.both_sides(chunk.rows[keep]), starts)
    return out
