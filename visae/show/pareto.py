"""Reconstruction against sparsity: FVU over L0, one line per kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b6ea8", "#d1603d", "#2a9d8f", "#8e5ea2", "#c9a227", "#5c6b73", "#b23a6f", "#7a9e3f")
"""Told apart by people with any colour vision, with the markers."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Point:
    """A dictionary, or the mean of several that differ in their seed.

    Attributes:
        line: what it is joined with, e.g. the kind.
        panel: where it is drawn, e.g. the site.
        l0: codes per token.
        fvu: fraction of variance unexplained.
        low: smallest FVU of its seeds.
        high: largest FVU of its seeds.
        dominated: whether another has at most its L0 and FVU.
    """

    line: str
    panel: str
    l0: float
    fvu: float
    low: float
    high: float
    dominated: bool = False


def pareto_figure(points: Sequence[Point], *, title: str = "") -> "Figure":
    """FVU over L0: a panel per site, a line per kind, hollow where another dictionary dominates, bars over seeds."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(point.panel for point in points))
    lines = list(dict.fromkeys(point.line for point in points))
    figure = Figure(figsize=(3.8 * len(panels) + 1.9, 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for i, line in enumerate(lines):
            mine = [point for point in points if (point.panel, point.line) == (panel, line)]
            _line(axis, sorted(mine, key=lambda point: point.l0), COLOURS[i % 8], MARKERS[i % 8], line)
        _dress(axis, [point.l0 for point in points], panel if len(panels) > 1 else "")
    # Only now: a limit that is set on one panel freezes the axis that the others share.
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("FVU (fraction of variance unexplained)")
    handles, labels = axes[0].get_legend_handles_labels()
    for axis in axes[1:]:
        more = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        handles += [handle for label, handle in more.items() if label not in labels]
        labels += [label for label in more if label not in labels]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, title="hollow: dominated")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _line(axis: "Axes", points: Sequence[Point], colour: str, marker: str, label: str) -> None:
    if not points:
        return
    l0, fvu = [point.l0 for point in points], [point.fvu for point in points]
    spread = [[p.fvu - p.low for p in points], [p.high - p.fvu for p in points]]
    axis.errorbar(l0, fvu, spread, color=colour, linewidth=1.3, elinewidth=1, capsize=2, zorder=2)
    axis.plot([], [], color=colour, marker=marker, linewidth=1.3, markersize=5, label=label)
    for point in points:
        face = "white" if point.dominated else colour
        axis.plot(
            point.l0, point.fvu, marker=marker, markersize=5.5, markerfacecolor=face, markeredgecolor=colour, zorder=3
        )


def _dress(axis: "Axes", l0: Sequence[float], title: str) -> None:
    from matplotlib.ticker import ScalarFormatter

    axis.set_xlabel("L0 (codes per token)")
    if min(l0) > 0 and max(l0) > 4 * min(l0):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
