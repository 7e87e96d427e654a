"""Galleries of a report: every thumbnail stored once, heat as small grids that the page paints itself."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from visae.codes import CodeTable
from visae.data.sample import ImageData

THUMB = 128
"""Longest side of a thumbnail in pixels; smaller pictures stay as they are."""


@dataclass
class Galleries:
    """What the page needs to show the top images of some latents.

    Attributes:
        table: whose grids are shown.
        data: whose images are shown.
        n_images: images per latent and sign.
        max_bytes: room for thumbnails and grids together, in characters of the page.
        thumbs: of the page: source, size, rectangles of the token grid and of what the model saw, name, labels.
        shown: latent -> galleries, one per sign.
        used: characters spent.
        skipped: latents that found no room.
    """

    table: CodeTable
    data: ImageData
    n_images: int
    max_bytes: int
    thumbs: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    used: int = 0
    skipped: int = 0
    _place: dict[int, int] = field(default_factory=dict)

    def fill(self, latents: Sequence[int]) -> None:
        """Adds latents in this order until the room is used up."""
        for number, latent in enumerate(latents):
            if latent in self.shown:
                continue
            if self.used > self.max_bytes:
                self.skipped += len([j for j in latents[number:] if j not in self.shown])
                return
            signs = (1, -1) if self.table.signed else (1,)
            found = [self._gallery(int(latent), sign) for sign in signs]
            self.shown[int(latent)] = [gallery for gallery in found if gallery["items"]]

    def _gallery(self, latent: int, sign: int) -> dict[str, Any]:
        top = self.table.top(latent, self.n_images, sign)
        scale = float(np.abs(top.values).max()) if len(top.values) else 1.0
        entries = []
        for item, value in zip(top.items, top.values, strict=True):
            heat = ""
            if self.table.geometry is not None:
                grid = self.table.grid(int(item), latent, sign) / scale
                heat = base64.b64encode((grid * 255).round().astype(np.uint8).tobytes()).decode()
            self.used += len(heat) + 24
            entries.append([self._thumb(int(item)), float(f"{value:.4g}"), heat])
        return {"sign": sign, "items": entries}

    def _thumb(self, item: int) -> int:
        if item not in self._place:
            sample = self.data[item]
            labels = [f"{factor}: {', '.join(values)}" for factor, values in sample.labels.items() if values]
            source, size = encode(sample.image)
            box, seen = token_boxes(self.table, (sample.image.height, sample.image.width))
            self._place[item] = len(self.thumbs)
            self.thumbs.append(
                {
                    "src": source,
                    "w": size[0],
                    "h": size[1],
                    "box": box,
                    "seen": seen,
                    "key": sample.key,
                    "labels": labels,
                }
            )
            self.used += len(source) + len(sample.key) + sum(map(len, labels)) + 96
        return self._place[item]


def encode(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """A thumbnail as base64 WebP, and its width and height."""
    small = image.convert("RGB")
    small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return base64.b64encode(buffer.getvalue()).decode(), small.size


def token_boxes(table: CodeTable, image_hw: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Two rectangles of a picture: its grid of equal tokens, and the part that the model saw.

    Each is left, top, right, bottom as shares of width and height; the outermost tokens may be stretched or cut to
    what the model saw.
    """
    geometry = table.geometry
    if geometry is None:
        return [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]
    placement = geometry.framing.place(image_hw)
    first = np.array(geometry.offset)
    corners = placement.to_image(np.stack([first, first + np.array(geometry.stride) * geometry.grid])) / image_hw
    rows, columns = geometry.edges(image_hw)
    seen = np.array([[rows[0], columns[0]], [rows[-1], columns[-1]]]) / image_hw
    grid, known = ([round(float(x), 5) for x in (*box[0, ::-1], *box[1, ::-1])] for box in (corners, seen))
    return grid, known
