"""`visae report`: one HTML page about a dictionary that opens from disk, without a network, without a server."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visae import __version__
from visae.codes import CodeTable
from visae.data.sample import ImageData
from visae.evaluate import core
from visae.evaluate.localise_concepts import METHODS, ConceptLocalisation
from visae.select import Measured, Selection
from visae.show.gallery import Galleries
from visae.show.latents import LatentLabel, best_labels, latent_rows
from visae.show.overlay import lookup
from visae.show.page import ASSETS, environment, number, write_page
from visae.show.sections import Section

MAX_BYTES = 16_000_000
"""Room for pictures and heat; tables of very wide dictionaries come on top (about 300 bytes per latent)."""

DEFINITIONS = {
    **{
        name: text.replace("`", "")
        for name, text in re.findall(r"^\| `(\w+)` \| (.+) \|$", core.__doc__ or "", re.MULTILINE)
    },
    "alive": "Share of latents that fire on at least one of these tokens.",
    "n": "Tokens that the numbers of this row are of.",
    "pointing": "Share of images where the largest heat lies inside the object; chance is the object's area.",
}
"""What the words of the page mean, shown on hover: the table in `evaluate.core`, one definition of each."""


@dataclass(frozen=True)
class Concept:
    """One label in the report: its latent, how it was measured, where its heat lies.

    Attributes:
        selection: chosen on the validation split.
        measured: on the test split.
        localisation: on the test split; None where the data have no masks.
    """

    selection: Selection
    measured: Measured
    localisation: ConceptLocalisation | None = None


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report tells.

    Attributes:
        title: of the page.
        card: the dictionary's card as JSON.
        table: codes of the images shown in the galleries, normally the test split.
        data: those images.
        chosen_on: table of another split on which best labels and thresholds are chosen; None chooses on `table`.
        metrics: token kind (or `all`) -> metric -> number, or anything JSON can hold.
        concepts: labels with their latents.
        definitions: metric -> sentence shown on hover.
        notes: sentences shown under the title, e.g. known traps that the run touches.
        sections: more of what was found, shown before the latents.
    """

    title: str
    card: Mapping[str, Any]
    table: CodeTable
    data: ImageData
    chosen_on: CodeTable | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    concepts: Sequence[Concept] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()


def build_report(run: ReportInputs, out: str | Path, *, n_images: int = 12, max_bytes: int = MAX_BYTES) -> Path:
    """Writes the page.

    All latents that fire are in its table. Galleries are made for latents in this order until `max_bytes` are used:
    those of the concepts, then by lift of the best label, then by density from high to low. Thumbnails are stored once.

    Args:
        run: what to tell.
        out: an `.html` file, replaced if it exists.
        n_images: top images of each latent (and sign).
        max_bytes: room for thumbnails and heat.

    Returns:
        The file.

    Raises:
        ValueError: if table and data are not of the same images.
    """
    if len(run.data) != run.table.n_items:
        raise ValueError(
            f"the table is of {run.table.n_items} items, the data set {run.data.name} has {len(run.data)}: "
            "they must be the same images"
        )
    chosen_on, measured_on = (run.table, None) if run.chosen_on is None else (run.chosen_on, run.table)
    labels = best_labels(chosen_on, measured_on)
    galleries = Galleries(run.table, run.data, n_images, max_bytes)
    galleries.fill(gallery_order(run, labels))
    page = render(run, labels, galleries)
    return write_page(page, Path(out))


def render(run: ReportInputs, labels: Mapping[int, list[LatentLabel]], galleries: Galleries) -> str:
    """The page's text."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            table=run.table,
            version=__version__,
            facts=facts(run),
            metrics=metric_table(run.metrics),
            definitions={**DEFINITIONS, **run.definitions},
            methods=METHODS,
            concepts=run.concepts,
            summary=concept_summary(run.concepts),
            density=density_bars(run.table.density),
            galleries=galleries,
            chosen_on=(run.chosen_on or run.table).name,
            held_out=run.chosen_on is not None,
            card=json.dumps(run.card, indent=2, default=str),
            style=(ASSETS / "report.css").read_text(encoding="utf-8"),
            script=(ASSETS / "report.js").read_text(encoding="utf-8"),
            data=page_data(run, labels, galleries),
        )
    )


def gallery_order(run: ReportInputs, labels: Mapping[int, list[LatentLabel]]) -> list[int]:
    """Latents in the order in which they get a gallery."""
    density = run.table.density
    first = list(dict.fromkeys(j for c in run.concepts for j in c.selection.latents if density[j] > 0))
    others = sorted(
        (int(j) for j in run.table.alive), key=lambda j: (-(labels[j][0].lift if j in labels else 0), -density[j])
    )
    return list(dict.fromkeys([*first, *others]))


def page_data(run: ReportInputs, labels: Mapping[int, list[LatentLabel]], galleries: Galleries) -> str:
    """The JSON that the page's script reads, safe inside a script element."""
    grid = list(run.table.geometry.grid) if run.table.geometry else None
    data = {
        "grid": grid,
        "latents": latent_rows(run.table, dict(labels)),
        "thumbs": galleries.thumbs,
        "galleries": {str(j): shown for j, shown in galleries.shown.items()},
        "colours": {str(sign): base64.b64encode(lookup(sign).tobytes()).decode() for sign in (1, -1)},
        "concepts": sorted({j for c in run.concepts for j in c.selection.latents}),
    }
    return json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def facts(run: ReportInputs) -> list[tuple[str, str]]:
    """The lines of "what was trained on what"."""
    card, table = run.card, run.table
    model, site, policy, data = (card.get(key) or {} for key in ("model", "site", "policy", "data"))
    options = ", ".join(f"{k} = {v}" for k, v in (card.get("options") or {}).items())
    training = card.get("training") or {}
    wanted = ("tokens", "samples", "steps", "batch", "lr", "seed")
    told = ", ".join(f"{k} {number(training[k])}" for k in wanted if training.get(k) is not None)
    rows = [
        (
            "Model",
            " ".join(filter(None, [model.get("id", ""), f"({model['revision']})" if model.get("revision") else ""])),
        ),
        (
            "Site",
            " ".join(
                filter(None, [site.get("name"), f"({site['path']}, {site.get('kind')})" if site.get("path") else ""])
            ),
        ),
        (
            "Tokens",
            " + ".join(policy.get("kinds", []))
            + (f", {policy['per_image']} per image" if policy.get("per_image") else ""),
        ),
        ("Trained on", data.get("name", "")),
        (
            "Dictionary",
            f"{card.get('kind', '')}, {card.get('d', '?')} → {table.n_latents:,} latents"
            f"{', ' + options if options else ''}",
        ),
        ("Training", told),
        ("This page shows", f"{table.name}: {table.n_items:,} images, {table.n_rows:,} tokens"),
        ("visae", str(card.get("version", __version__))),
    ]
    return [(name, text) for name, text in rows if text.strip()]


def metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Token kinds as rows, metrics as columns."""
    columns = list(dict.fromkeys(name for row in metrics.values() for name in row))
    return {"columns": columns, "rows": [(kind, [row.get(name) for name in columns]) for kind, row in metrics.items()]}


def concept_summary(concepts: Sequence[Concept]) -> list[dict[str, Any]]:
    """Per factor: how many values reach F1 0.9, and mean pointing of every method beside chance."""
    out = []
    for factor in dict.fromkeys(c.selection.factor for c in concepts):
        mine = [c for c in concepts if c.selection.factor == factor]
        located = [c.localisation for c in mine if c.localisation]
        pointing = {m: float(np.mean([x.methods[m].pointing for x in located])) for m in METHODS} if located else None
        chance = float(np.mean([x.methods["latent"].chance for x in located])) if located else None
        reached = sum(c.measured.f1 >= 0.9 for c in mine)
        out.append(
            {
                "factor": factor,
                "n": len(mine),
                "reached": reached,
                "f1": float(np.mean([c.measured.f1 for c in mine])),
                "pointing": pointing,
                "chance": chance,
            }
        )
    return out


def density_bars(density: np.ndarray, width: float = 640, height: float = 170, bins: int = 40) -> dict[str, Any]:
    """Histogram of log10 density as rectangles and ticks in the units of an SVG."""
    alive = density[density > 0]
    logs = np.log10(alive) if len(alive) else np.array([-1.0])
    low, high = math.floor(logs.min()), 0
    low = min(low, high - 1)
    counts, edges = np.histogram(logs, bins=bins, range=(low, high))
    step = width / bins
    bars = [
        {
            "x": i * step + 0.75,
            "y": height * (1 - c / max(1, counts.max())),
            "w": step - 1.5,
            "h": height * c / max(1, counts.max()),
            "text": f"{c} latents with density {10**a:.2g} to {10**b:.2g}",
        }
        for i, (c, a, b) in enumerate(zip(counts.tolist(), edges, edges[1:], strict=False))
    ]
    ticks = [{"x": (e - low) / (high - low) * width, "text": f"{10.0**e:g}"} for e in range(low, high + 1)]
    return {
        "bars": bars,
        "ticks": ticks,
        "width": width,
        "height": height,
        "top": int(counts.max()),
        "alive": len(alive),
        "dead": int(len(density) - len(alive)),
        "dense": int((density > 0.1).sum()),
    }


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
