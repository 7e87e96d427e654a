"""Further sections of a report page: sentences, a table, pictures that lie inside the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIME = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        data: `data:` address of its bytes.
        caption: said under it, and to those who cannot see it.
        width: at most so many CSS pixels; None takes the width of the page.
    """

    data: str
    caption: str
    width: int | None = None

    @classmethod
    def of(cls, file: Path, caption: str, width: int | None = None) -> "Picture":
        """A picture file, still or moving."""
        text = base64.b64encode(file.read_bytes()).decode()
        return cls(f"data:{MIME[file.suffix.lower()]};base64,{text}", caption, width)


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        title: its heading.
        text: sentences under it.
        head: columns of its table.
        rows: of its table; the first cell names the row.
        pictures: one under another where they are wide, side by side where they are small.
    """

    title: str
    text: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: Sequence[Picture] = ()
