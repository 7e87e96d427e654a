"""Pages: one HTML file each that opens from disk, without a network, without a server."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visae import __version__
from visae.show.sections import Section

if TYPE_CHECKING:
    from jinja2 import Environment

ASSETS = Path(__file__).parent / "assets"


def build_page(
    out: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    brand: str = "visae",
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    repeat: str = "",
) -> Path:
    """Writes a page of sections.

    Args:
        out: an `.html` file, replaced if it exists.
        title: its heading.
        sections: in their order.
        brand: over the heading: which command made it.
        notes: sentences under the heading.
        settings: shown whole at the end, as JSON.
        repeat: the command that makes it again, shown with them.

    Returns:
        The file.
    """
    details = None
    if settings is not None:
        text = [f"Made by: {repeat}"] if repeat else []
        details = {"text": text, "json": json.dumps(settings, indent=2, default=str)}
    page = environment().get_template("page.html.j2").render(
        title=title, sections=sections, brand=brand, notes=notes, details=details, version=__version__,
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    return write_page(page, Path(out))


def environment() -> "Environment":
    """Templates and what they may call."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    return made


def write_page(page: str, path: Path) -> Path:
    """Writes a page, under another name until it is whole; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def number(value: Any) -> str:
    """A number as people read it; other things as text, nothing as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        size = abs(float(value))
        return f"{value:,.0f}" if size >= 10_000 else f"{value:.3g}" if 0 < size < 1e-3 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {number(v)}" for k, v in value.items())
    return " to ".join(number(v) for v in value) if isinstance(value, Sequence) else str(value)
