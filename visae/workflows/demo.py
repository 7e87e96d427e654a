"""The first journey, offline: a small CLIP, the built-in world, a dictionary, heat maps, a report, true numbers."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visae.json_files import write_json
from visae.show import grid_figure
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.workflows.report import report
from visae.workflows.run import Run
from visae.workflows.study import Study
from visae.workflows.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

F1_GOAL = 0.9
CONCEPTS = ("shape", "style", "colour")
"""Factors whose values should each have a latent."""
PLACED = ("shape", "colour")
"""Factors whose latents should point at the object."""
RECIPE: dict[str, Any] = {
    "model": "visae:tiny-clip",
    "site": "blocks.-2",
    "kind": "topk",
    "latents": 352,
    "k": 8,
    "lr": 1.4e-3,
    "passes": 9,
    "batch": 1024,
}
"""What the demo trains; everything else is `visae train`'s default. Few latents and few at a time: with more of
either, two latents share a colour (red is both of two, orange the first of them) and neither tells it."""


@dataclass(frozen=True)
class Demo:
    """What the demo made; prints as its summary."""

    folder: Path
    summary: dict[str, float]
    text: str

    def __str__(self) -> str:
        return self.text


def demo(out: Path = Path("visae-demo"), *, images: int = 4000, seed: int = 0) -> Demo:
    """See what a sparse autoencoder finds in a CLIP encoder: five minutes, no network.

    Trains a dictionary on a small CLIP that ships with visae, looks for the latents of every shape, style and colour,
    measures on held-out images whether they are right and in the right place, and writes a page to look at.

    Example:
        visae demo my-demo

    Args:
        out: folder for the page and the numbers.
        images: images to train on, from the built-in world.
        seed: of the dictionary.
    """
    begun, out = time.perf_counter(), Path(out)
    trained = train(out, data=f"world:train?n={images}&objects=1", seed=seed, **RECIPE)
    made = report(out, images=2000, localise=PLACED)
    summary = summarise(made.study, time.perf_counter() - begun)
    write_json(out / "summary.json", summary)
    picture(made.study).savefig(out / "demo.png", dpi=100)
    return Demo(out, summary, tell(trained.run, made.study, summary, made.page))


def summarise(study: Study, seconds: float) -> dict[str, float]:
    """The numbers of the demo, shares as fractions, all on held-out images."""
    pointing, chance = pointing_game(study, PLACED)
    return {
        "fvu": study.metrics.fvu,
        "fvu_pca": study.metrics_pca.fvu,
        "l0": study.metrics.l0,
        "dead_share": study.metrics.dead,
        "concepts_with_f1_90": study.share_with_f1(CONCEPTS, F1_GOAL),
        "pointing_game": pointing,
        "pointing_game_chance": chance,
        "seconds": seconds,
    }


def pointing_game(study: Study, factors: tuple[str, ...]) -> tuple[float, float]:
    """Mean pointing game over the values of some factors, and mean chance."""
    found = [one.methods["latent"] for one in study.localised if one.factor in factors]
    return float(np.mean([r.pointing for r in found])), float(np.mean([r.chance for r in found]))


def picture(study: Study, rows: int = 5, columns: int = 6) -> "Figure":
    """The best told shapes, styles and colours, each over the first held-out images that show it.

    A row is one latent on one scale; the first images are taken, not the best ones.
    """
    best = sorted((c for c in study.concepts if c.selection.factor in CONCEPTS), key=lambda c: -c.measured.f1)
    chosen = [c.selection for f in CONCEPTS for c in [b for b in best if b.selection.factor == f][:2]][:rows]
    images, heats, captions = [], [], []
    for selection in chosen:
        number = study.test.factors[selection.factor].index(selection.value)
        items = np.flatnonzero(study.test.shows(selection.factor)[number])[:columns]
        shown = [study.test_data[int(i)].image for i in items]
        grids = [study.test.grid(int(i), selection.latents[0], selection.signs[0]) for i in items]
        geometry, top = study.test.geometry, max(1e-9, *(float(g.max()) for g in grids))
        if geometry is None:
            raise ValueError("the demo's picture needs tokens with a place in the image")
        images.append(shown)
        heats.append([geometry.to_image(g / top, (i.height, i.width)) for g, i in zip(grids, shown, strict=True)])
        captions.append([f"{selection.name}: latent {selection.latents[0]}", *[""] * (len(shown) - 1)])
    return grid_figure(images, heats, captions=captions, vmax=1.0)


def tell(run: Run, study: Study, summary: dict[str, float], page: Path) -> str:
    """The summary in the terminal."""
    n = study.test.n_items
    concepts = [c for c in study.concepts if c.selection.factor in CONCEPTS]
    good = sum(c.measured.f1 >= F1_GOAL for c in concepts)
    placed = {(one.factor, one.value): one.methods["latent"].pointing for one in study.localised}
    rows = [
        [
            c.selection.name,
            f"latent {c.selection.latents[0]}",
            c.measured.f1,
            placed.get((c.selection.factor, c.selection.value)),
        ]
        for c in concepts
    ]
    lines = [
        f"{run.card.model['id']} {run.card.site['name']}: {study.test.n_latents:,} latents, "
        f"{summary['l0']:.1f} active per token",
        "",
        text_table(["concept", "found", "F1", "pointing"], rows),
        "",
        f"On {n:,} held-out images ({study.metrics.n:,} tokens):",
        f"  FVU {summary['fvu']:.3f}; PCA with as many components as L0: {summary['fvu_pca']:.3f}",
        f"  dead latents {summary['dead_share']:.1%} (wanted: under 5 %)",
        f"  {good} of {len(concepts)} shapes, styles and colours have a latent with F1 of at least {F1_GOAL} "
        f"({summary['concepts_with_f1_90']:.0%}; wanted: 80 %)",
        f"  pointing game over shapes and colours {summary['pointing_game']:.3f} (wanted: 0.9), "
        f"chance {summary['pointing_game_chance']:.3f}",
        f"  {duration(summary['seconds'])}",
        "",
        f"Open {page}",
    ]
    return "\n".join(lines)
