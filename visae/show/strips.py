"""Heat over time: a latent's maps at every step of a diffusion run, over the image as it emerges."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from visae.registry import UnknownName
from visae.show.figures import grid_figure
from visae.show.overlay import overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANIMATED = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
"""Endings of animated pictures and what they are."""

_SIDE = 192
"""Pixels that a frame is enlarged to at least."""


def strip_figure(
    frames: Sequence[Image.Image],
    heats: np.ndarray,
    names: Sequence[str],
    steps: Sequence[str],
    *,
    title: str = "",
) -> "Figure":
    """The emerging image on top, and a row for each latent: its map over the image of every step, on one scale a row.

    Args:
        frames: S pictures, one for each step.
        heats: `[L, S, H, W]` values on the pictures' pixels.
        names: of the L latents.
        steps: what stands over each of the S columns, e.g. the noise level.
        title: e.g. the prompt.

    Raises:
        ValueError: if the numbers of frames, maps and names do not match.
    """
    if heats.ndim != 4 or heats.shape[:2] != (len(names), len(frames)) or len(steps) != len(frames):
        raise ValueError(
            f"a strip needs maps [{len(names)} latents, {len(frames)} frames, H, W] and as many step titles; "
            f"got {heats.shape} and {len(steps)} titles"
        )
    tops = [float(np.abs(rows).max()) or 1.0 for rows in heats]
    maps = [[None] * len(frames), *([heat / top for heat in rows] for rows, top in zip(heats, tops, strict=True))]
    titles = ["the image", *(f"{name}\n1 = {top:.3g}" for name, top in zip(names, tops, strict=True))]
    return grid_figure(
        [list(frames)] * len(maps), maps, title=title, column_titles=list(steps), row_titles=titles, vmax=1.0
    )


def animate(
    path: Path, frames: Sequence[Image.Image], heats: np.ndarray, *, vmax: float | None = None, seconds: float = 4.0
) -> Path:
    """Writes an animated picture: the emerging image beside the same under each latent's map, the last frame held.

    Args:
        path: ends in .gif, .png or .webp; whole or not there.
        frames: S pictures.
        heats: `[L, S, H, W]` values on the pictures' pixels.
        vmax: value of the strongest colour; None takes the largest of each latent.
        seconds: length of the run, without the second for which its last frame is held.

    Raises:
        UnknownName: if the ending is another one.
    """
    if path.suffix.lower() not in ANIMATED:
        raise UnknownName("ending of an animated picture", path.suffix, ANIMATED)
    tops = [vmax or float(np.abs(rows).max()) or 1.0 for rows in heats]
    pictures = []
    for step, frame in enumerate(frames):
        shown = [frame.convert("RGB")]
        shown += [overlay(frame, rows[step], vmax=top) for rows, top in zip(heats, tops, strict=True)]
        pictures.append(_beside([_enlarged(one) for one in shown]))
    each = round(1000 * seconds / len(frames))
    whole = io.BytesIO()
    pictures[0].save(
        whole,
        ANIMATED[path.suffix.lower()],
        save_all=True,
        append_images=pictures[1:],
        duration=[each] * (len(frames) - 1) + [each + 1000],
        loop=0,
        **({"lossless": True} if path.suffix.lower() == ".webp" else {}),
    )
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(whole.getvalue())
    os.replace(partial, path)
    return path


def _enlarged(picture: Image.Image) -> Image.Image:
    """Small pictures several times as large, by whole factors, so that every pixel stays a square."""
    factor = max(1, -(-_SIDE // min(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _beside(pictures: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place * (width + gap), 0))
    return sheet
