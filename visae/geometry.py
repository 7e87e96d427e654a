"""Which pixels a token saw: the one place that knows resize, crop, pad, patch, stride and leading tokens.

Coordinates are continuous: pixel (i, j) covers [i, i+1) x [j, j+1), rows first, so its centre is (i + 0.5, j + 0.5).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

ResizeMode = Literal["shortest", "cover", "fit", "squash", "none"]
Rounding = Literal["floor", "round"]
HW = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Where an image of one size lands in the model's input: `input = image * scale + offset` on each axis.

    Attributes:
        image_hw: height and width of the image in pixels.
        input_hw: height and width of the model's input in pixels.
        scale: input pixels per image pixel (rows, columns).
        offset: input coordinate of the image's top left corner (negative where the crop cuts it off).
    """

    image_hw: HW
    input_hw: HW
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """Image coordinates `[..., 2]` (row, column) to input coordinates."""
        return np.asarray(points, dtype=np.float64) * self.scale + self.offset

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Input coordinates `[..., 2]` (row, column) to image coordinates."""
        return (np.asarray(points, dtype=np.float64) - self.offset) / self.scale

    @property
    def visible(self) -> tuple[float, float, float, float]:
        """Part of the image that the model sees: top, left, bottom, right in image coordinates."""
        (top, left), (bottom, right) = self.to_image(np.array([(0, 0), self.input_hw]))
        height, width = self.image_hw
        return max(top, 0.0), max(left, 0.0), min(bottom, float(height)), min(right, float(width))


@dataclass(frozen=True)
class Framing:
    """How an image of any size becomes the model's input: resize, then centre crop or pad to `input_hw`.

    Attributes:
        input_hw: height and width that the model sees.
        mode: `shortest` scales the short side to `resize_hw[0]` (torchvision's rule), `cover` scales until
            `resize_hw` is covered, `fit` until the image fits into it, `squash` changes the aspect ratio, `none`
            leaves the image as it is.
        resize_hw: target of the resize; None means `input_hw`.
        size_rounding: how the resized side is made an integer.
        crop_rounding: how half a pixel is treated when the crop is centred.
    """

    input_hw: HW
    mode: ResizeMode = "shortest"
    resize_hw: HW | None = None
    size_rounding: Rounding = "floor"
    crop_rounding: Rounding = "round"

    def resized(self, image_hw: HW) -> HW:
        """Height and width after the resize, before the crop."""
        height, width = image_hw
        goal_h, goal_w = self.resize_hw or self.input_hw
        if self.mode == "none":
            return height, width
        if self.mode == "squash":
            return goal_h, goal_w
        if self.mode == "shortest":
            short, long = min(image_hw), max(image_hw)
            other = _whole(goal_h * long / short, self.size_rounding)
            return (goal_h, other) if height <= width else (other, goal_h)
        pick = min if self.mode == "cover" else max
        ratio = pick(height / goal_h, width / goal_w)
        return _whole(height / ratio, self.size_rounding), _whole(width / ratio, self.size_rounding)

    def place(self, image_hw: HW) -> Placement:
        """Where an image of `image_hw` lands in the input.

        Raises:
            ValueError: if the image has no pixels.
        """
        if min(image_hw) < 1:
            raise ValueError(f"an image needs at least one pixel each way, got height, width = {image_hw}")
        after = self.resized(image_hw)
        offset = tuple(-float(_crop_start(a, t, self.crop_rounding)) for a, t in zip(after, self.input_hw, strict=True))
        scale = tuple(a / s for a, s in zip(after, image_hw, strict=True))
        return Placement(image_hw, self.input_hw, scale, offset)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for cards."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Framing":
        """Reverse of `to_dict`."""
        pair = {key: tuple(data[key]) if data.get(key) is not None else None for key in ("input_hw", "resize_hw")}
        return cls(**{**data, **pair})


def _whole(value: float, rounding: Rounding) -> int:
    return max(1, int(value) if rounding == "floor" else round(value))


def _crop_start(size: int, target: int, rounding: Rounding) -> int:
    """First row of a centred crop; negative where the image is padded instead."""
    if size < target:
        return -((target - size) // 2)
    return (size - target) // 2 if rounding == "floor" else round((size - target) / 2)


@dataclass(frozen=True)
class Geometry:
    """Maps pixels of an image of any size to the tokens of one site, both ways.

    Token (r, c) of the grid covers input pixels `offset + r * stride` to `offset + (r + 1) * stride`: the pixels that
    are nearer to the centre of its receptive field than to any other. A convolution with padding puts the first centre
    near the border, so `offset` may be negative; the outermost tokens then end where the image does (`reach`).

    Attributes:
        framing: how the image becomes the input.
        grid: rows and columns of patch tokens.
        stride: input pixels from one token to the next (rows, columns).
        offset: input coordinate where token (0, 0) begins.
        prefix: kinds of the tokens that precede the patches in the sequence, e.g. `("cls", "reg", "reg")`.
        reach: part of the input that some token sees (top, left, bottom, right in input coordinates), to which the
            outermost tokens are stretched or cut; None where the tokens are plain tiles.
    """

    framing: Framing
    grid: HW
    stride: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    prefix: tuple[str, ...] = ()
    reach: tuple[float, float, float, float] | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens in the sequence, prefix included."""
        return len(self.prefix) + self.grid[0] * self.grid[1]

    def index(self, row: int, column: int) -> int:
        """Place in the sequence of the patch token at (row, column)."""
        return len(self.prefix) + row * self.grid[1] + column

    def position(self, index: int) -> tuple[int, int] | None:
        """Row and column of the token at a place in the sequence; None for a prefix token."""
        patch = index - len(self.prefix)
        return None if patch < 0 else divmod(patch, self.grid[1])

    def edges(self, image_hw: HW) -> tuple[np.ndarray, np.ndarray]:
        """Borders of the token rows `[h + 1]` and columns `[w + 1]` in image coordinates."""
        placement = self.framing.place(image_hw)
        rows, columns = (
            (self._borders(axis) - shift) / scale
            for axis, (shift, scale) in enumerate(zip(placement.offset, placement.scale, strict=True))
        )
        return rows, columns

    def _borders(self, axis: int) -> np.ndarray:
        """Borders of the tokens along an axis, `[n + 1]` in input coordinates."""
        borders = self.offset[axis] + self.stride[axis] * np.arange(self.grid[axis] + 1, dtype=np.float64)
        if self.reach is not None:
            low, high = self.reach[axis], self.reach[axis + 2]
            borders[0], borders[-1] = low, high
            borders = borders.clip(low, high)
        return borders

    def token_box(self, row: int, column: int, image_hw: HW) -> tuple[float, float, float, float]:
        """Pixels of the image under one token, as x0, y0, x1, y1 (may reach past the image where it was padded)."""
        rows, columns = self.edges(image_hw)
        return float(columns[column]), float(rows[row]), float(columns[column + 1]), float(rows[row + 1])

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """Share `[h, w]` of each token's pixels that a mask `[H, W]` covers."""
        rows, columns = self.edges(mask.shape)  # type: ignore[arg-type]
        by_row, by_column = _overlap(rows, mask.shape[0]), _overlap(columns, mask.shape[1])
        area = np.outer(np.diff(rows), np.diff(columns))
        covered = by_row @ mask.astype(np.float64) @ by_column.T
        return np.divide(covered, area, out=np.zeros_like(covered), where=area > 0).astype(np.float32)

    def regions(self, regions: np.ndarray) -> np.ndarray:
        """Region `[h, w]` (int64) that covers most of each token, from an integer map `[H, W]`; 0 is background."""
        names = np.unique(np.append(regions, 0))
        shares = np.stack([self.coverage(regions == name) for name in names])
        return names[shares.argmax(0)].astype(np.int64)

    def to_image(
        self, heat: np.ndarray, image_hw: HW, mode: Literal["nearest", "bilinear"] = "bilinear", fill: float = 0.0
    ) -> np.ndarray:
        """Token values `[..., h, w]` as a map of the image `[..., H, W]`; `fill` where the model saw nothing.

        Raises:
            ValueError: if `heat` does not have this grid.
        """
        if tuple(heat.shape[-2:]) != tuple(self.grid):
            raise ValueError(f"a heat map for this site has {self.grid} rows and columns, got {tuple(heat.shape[-2:])}")
        rows, columns = self._sample(image_hw, axis=0), self._sample(image_hw, axis=1)
        if mode == "nearest":
            at_row, at_column = np.floor(rows + 0.5).astype(int), np.floor(columns + 0.5).astype(int)
            out = heat[..., at_row.clip(0, self.grid[0] - 1), :][..., at_column.clip(0, self.grid[1] - 1)]
        else:
            out = _lerp(_lerp(heat, rows, axis=-2), columns, axis=-1)
        return np.where(self.seen(image_hw), out, np.asarray(fill, dtype=out.dtype))

    def seen(self, image_hw: HW) -> np.ndarray:
        """Pixels `[H, W]` (bool) of the image whose centre falls on some token."""
        inside = []
        for axis in (0, 1):
            centres, borders = self._centres(image_hw, axis), self._borders(axis)
            inside.append((centres >= borders[0]) & (centres < borders[-1]))
        return inside[0][:, None] & inside[1][None, :]

    def _centres(self, image_hw: HW, axis: int) -> np.ndarray:
        """Input coordinate of every pixel centre of the image along an axis."""
        placement = self.framing.place(image_hw)
        return (np.arange(image_hw[axis]) + 0.5) * placement.scale[axis] + placement.offset[axis]

    def _sample(self, image_hw: HW, axis: int) -> np.ndarray:
        """Token coordinate of every pixel centre along an axis; token i has its centre at i."""
        return (self._centres(image_hw, axis) - self.offset[axis]) / self.stride[axis] - 0.5

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for cards."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Geometry":
        """Reverse of `to_dict`."""
        pairs = {key: tuple(data[key]) for key in ("grid", "stride", "offset", "prefix")}
        reach = tuple(data["reach"]) if data.get("reach") is not None else None
        return cls(framing=Framing.from_dict(data["framing"]), reach=reach, **pairs)  # type: ignore[arg-type]


def _overlap(edges: np.ndarray, size: int) -> np.ndarray:
    """Length `[tokens, size]` of each token interval that lies on each pixel."""
    pixels = np.arange(size)
    return np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, 1)


def _lerp(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along an axis at fractional places; the border values go on outwards."""
    last = values.shape[axis] - 1
    at = at.clip(0, last)
    low = np.floor(at).astype(int)
    weight = (at - low).astype(values.dtype if values.dtype.kind == "f" else np.float32)
    weight = weight[:, None] if axis == -2 else weight
    return np.take(values, low, axis) * (1 - weight) + np.take(values, np.minimum(low + 1, last), axis) * weight
