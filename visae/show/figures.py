"""Figures with colour bars: one latent over images, the strongest latents of an image, the latents of a label.

Every function returns a matplotlib `Figure` that belongs to nobody: save it, or let a notebook show it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from visae.show.overlay import lookup, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 2.1
"""Inches of one picture."""


def heat_figure(
    image: Image.Image, heat: np.ndarray, *, title: str = "", vmax: float | None = None, seen: np.ndarray | None = None
) -> "Figure":
    """The picture beside the same picture under its heat map `[H, W]`, with a colour bar."""
    return grid_figure([[image, image]], [[None, heat]], column_titles=["", title], vmax=vmax, seen=[[None, seen]])


def latent_figure(
    images: Sequence[Image.Image],
    heats: Sequence[np.ndarray],
    *,
    title: str = "",
    captions: Sequence[str] = (),
    columns: int = 6,
    seen: Sequence[np.ndarray | None] | None = None,
) -> "Figure":
    """One latent over many pictures, all on one scale."""
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    return grid_figure(
        [[images[i] for i in row] for row in rows],
        [[heats[i] for i in row] for row in rows],
        title=title,
        vmax=_largest(heats),
        captions=[[captions[i] if captions else "" for i in row] for row in rows],
        seen=[[seen[i] if seen else None for i in row] for row in rows],
    )


def strongest_figure(
    image: Image.Image,
    heats: np.ndarray,
    names: Sequence[str],
    *,
    title: str = "",
    columns: int = 5,
    seen: np.ndarray | None = None,
) -> "Figure":
    """The picture, then the same under the map of each of its strongest latents `[L, H, W]`, each on its own scale."""
    pictures: list[np.ndarray | None] = [None, *heats]
    captions = ["", *names]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    return grid_figure(
        [[image for _ in row] for row in rows],
        [[pictures[i] for i in row] for row in rows],
        title=title,
        captions=[[captions[i] for i in row] for row in rows],
        seen=[[seen if pictures[i] is not None else None for i in row] for row in rows],
    )


def label_figure(
    images: Sequence[Image.Image],
    heats: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    title: str = "",
    seen: Sequence[np.ndarray | None] | None = None,
) -> "Figure":
    """The latents of a label: a column of pictures, then one column per latent, each latent on its own scale.

    Args:
        images: n pictures.
        heats: `[L, H, W]` for each of them.
        names: of the L latents.
        title: e.g. the label.
        seen: pixels that the model saw, of each picture.
    """
    tops = [_largest([h[j] for h in heats]) for j in range(len(names))]
    scaled = [[None, *(h[j] / top for j, top in enumerate(tops))] for h in heats]
    titles = ["", *(f"{name}\n1 = {top:.3g}" for name, top in zip(names, tops, strict=True))]
    known = [[None, *[seen[i] if seen else None] * len(names)] for i in range(len(images))]
    return grid_figure(
        [[image] * (len(names) + 1) for image in images],
        scaled,
        title=title,
        column_titles=titles,
        vmax=1.0,
        seen=known,
    )


def grid_figure(
    images: Sequence[Sequence[Image.Image]],
    heats: Sequence[Sequence[np.ndarray | None]],
    *,
    title: str = "",
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    vmax: float | None = None,
    seen: Sequence[Sequence[np.ndarray | None]] = (),
) -> "Figure":
    """Rows of pictures, each plain (heat None) or under its heat map.

    Args:
        images: rows of pictures.
        heats: rows of `[H, W]` or None.
        title: of the figure.
        column_titles: over the first row.
        row_titles: left of the first column.
        captions: under each picture.
        vmax: one scale for all, with a colour bar at the side; None gives every map its own scale and bar.
        seen: pixels that the model saw; the others are hatched.
    """
    from matplotlib.figure import Figure

    n_rows, n_columns = len(images), max(len(row) for row in images)
    aspect = float(np.clip(np.median([i.height / i.width for row in images for i in row]), 0.4, 2))
    figure = Figure(
        figsize=((_CELL + 0.4 * (vmax is None)) * n_columns + 0.7, (_CELL * aspect + 0.3) * n_rows + 0.5),
        layout="constrained",
    )
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for r, row in enumerate(axes):
        for c, axis in enumerate(row):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if c >= len(images[r]):
                continue
            heat, known = heats[r][c], seen[r][c] if seen else None
            _draw(axis, images[r][c], heat, vmax, known)
            if heat is not None and vmax is None:
                _bar(figure, axis, _largest([heat]), bool((heat < 0).any()))
            if column_titles and r == 0:
                axis.set_title(column_titles[c], fontsize=9)
            if row_titles and c == 0:
                axis.set_ylabel(row_titles[r], fontsize=8, rotation=0, ha="right", va="center", labelpad=8)
            if captions and captions[r][c]:
                axis.set_xlabel(captions[r][c], fontsize=8)
    if vmax is not None and any(h is not None for row in heats for h in row):
        negative = any(h is not None and (h < 0).any() for row in heats for h in row)
        _bar(figure, axes, vmax, negative, "latent value")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def density_figure(density: np.ndarray, *, title: str = "") -> "Figure":
    """Histogram of log10 density of the alive latents; the number of dead ones is in the title."""
    from matplotlib.figure import Figure

    alive = density[density > 0]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    axis.hist(np.log10(alive), bins=40, color="#3b6ea8")
    axis.set_xlabel("log10 density (share of tokens on which a latent fires)")
    axis.set_ylabel("latents")
    axis.set_title(f"{title}{': ' if title else ''}{len(alive)} alive, {len(density) - len(alive)} dead", fontsize=10)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure


def _draw(
    axis: "Axes", image: Image.Image, heat: np.ndarray | None, vmax: float | None, seen: np.ndarray | None
) -> None:
    shown = image.convert("RGB") if heat is None else overlay(image, heat, vmax=vmax, seen=seen)
    axis.imshow(np.asarray(shown), interpolation="nearest" if min(image.size) < 128 else "antialiased")


def _bar(figure: "Figure", axes: "Axes | np.ndarray", vmax: float, negative: bool, label: str = "") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = lookup(1) if not negative else np.concatenate([lookup(-1)[::-1], lookup(1)])
    scale = ScalarMappable(Normalize(-vmax if negative else 0, vmax), ListedColormap(colours / 255))
    bar = figure.colorbar(scale, ax=axes, fraction=0.045, pad=0.02, aspect=18)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)


def _largest(heats: Sequence[np.ndarray]) -> float:
    return max((float(np.abs(h).max()) for h in heats), default=0.0) or 1.0
