"""`check_geometry`: is a token where the geometry says? Squares are painted under tokens, and the tokens looked at.

For a pipeline they are painted on the latents, which lie on the image as its geometry says.
"""

from dataclasses import dataclass

import numpy as np
import torch

from visae.geometry import HW, Geometry
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.taps import tap

SMALLEST = 8
"""Side, in input pixels, of the smallest square painted: what is smaller may not survive the resize."""


@dataclass(frozen=True)
class GeometryCheck:
    """Where squares were painted, and which tokens they changed most.

    Attributes:
        site: name of the site.
        image_hw: height and width of the images.
        planted: rows and columns of the tokens under the squares.
        found: rows and columns of the tokens that changed most; None where no token changed at all.
        slack: tokens of distance that still count as a hit: 0 where tokens are plain tiles, else 1 (receptive fields of
            neighbours overlap), and as many as the smallest square is wide.
    """

    site: str
    image_hw: HW
    planted: tuple[HW, ...]
    found: tuple[HW | None, ...]
    slack: HW

    @property
    def share(self) -> float:
        """Share of the squares that were found at their place."""
        return sum(self._hit(p, f) for p, f in zip(self.planted, self.found, strict=True)) / len(self.planted)

    @property
    def silent(self) -> bool:
        """Whether the site answers to nothing: a branch that starts at zero in a model without trained weights."""
        return all(place is None for place in self.found)

    @property
    def ok(self) -> bool:
        """Whether most of the squares were found at their place."""
        return self.share > 0.5

    def _hit(self, planted: HW, found: HW | None) -> bool:
        return found is not None and all(abs(p - f) <= s for p, f, s in zip(planted, found, self.slack, strict=True))


@torch.no_grad()
def check_geometry(
    model: AdaptedModel | AdaptedPipeline,
    site: str | Site,
    image_hw: HW | None = None,
    positions: int = 5,
    seed: int = 0,
) -> GeometryCheck:
    """Paints a square under one token of an image at a time and looks which token changes most.

    Everything on the way is checked at once: resize, crop, patches, strides, leading tokens and the order of tokens.
    In deep layers of trained models attention may carry a change elsewhere, so a few misses there say little.

    Args:
        model: an adapted model.
        site: a site with patch tokens.
        image_hw: size of the painted images; None takes one that is neither square nor of the input's size. A pipeline
            has one size only.
        positions: how many tokens are tried, spread over those that the image covers whole.
        seed: of the noise that the image shows, and of the tokens' choice.

    Raises:
        ValueError: if the site has no patch tokens.
    """
    found_site, geometry = model.site(site), model.geometry(site)
    random = np.random.default_rng(seed)
    if isinstance(model, AdaptedPipeline):
        image_hw = model.framing.input_hw
        canvas: _Pixels | _Latents = _Latents(model, seed)
    else:
        height, width = model.framing.input_hw
        image_hw = image_hw or (round(height * 1.15), round(width * 1.6))
        canvas = _Pixels(model, image_hw, random)
    planted = _choose(geometry, image_hw, positions, random)

    def patches(square: tuple[int, int, int, int] | None, odd: bool = False) -> torch.Tensor:
        with tap(model, found_site) as taken:
            canvas.show(square, odd)
        return taken[found_site.name][0, len(found_site.prefix) :].double()

    before = patches(None)
    found: list[HW | None] = []
    for row, column in planted:
        change = (patches(canvas.square(geometry, row, column), (row + column) % 2 == 1) - before).abs().sum(-1)
        found.append(canvas.locate(change.reshape(geometry.grid)) if change.any() else None)
    slack = [int(geometry.reach is not None or stride != round(stride)) for stride in geometry.stride]
    least = [round(canvas.smallest / stride) - 1 for stride in geometry.stride]
    slack = [max(*pair, canvas.blur) for pair in zip(slack, least, strict=True)]
    return GeometryCheck(found_site.name, image_hw, tuple(planted), tuple(found), (slack[0], slack[1]))


class _Pixels:
    """A noise image on which squares are painted."""

    smallest, blur = SMALLEST, 0

    def __init__(self, model: AdaptedModel, image_hw: HW, random: np.random.Generator):
        self.model, self.image_hw = model, image_hw
        self.noise = random.normal(128, 25, (*image_hw, 3)).clip(0, 255).astype(np.uint8)

    def square(self, geometry: Geometry, row: int, column: int) -> tuple[int, int, int, int]:
        """Whole pixels under a token."""
        return _square(geometry, self.image_hw, row, column)

    def locate(self, change: torch.Tensor) -> HW:
        """The token that changed most."""
        row, column = divmod(int(change.argmax()), change.shape[1])
        return row, column

    def show(self, square: tuple[int, int, int, int] | None, odd: bool) -> None:
        """Sends the image, with a square or without, through the model."""
        from PIL import Image

        pixels = self.noise.copy()
        if square is not None:
            top, left, bottom, right = square
            pixels[top:bottom, left:right] = (255, 0, 255) if odd else (0, 255, 0)
        self.model.forward(self.model.preprocess([Image.fromarray(pixels)]))


class _Latents:
    """Noise latents on which squares are painted; convolutions blur a cell over its neighbours."""

    smallest = 0

    def __init__(self, model: AdaptedPipeline, seed: int):
        self.model = model
        self.blur = int(model.denoiser.name == "unet")
        self.noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)) * 0.5

    def square(self, geometry: Geometry, row: int, column: int) -> tuple[int, int, int, int]:
        """Whole cells of the latents whose centres lie under a token, at least one."""
        height, width = self.model.framing.input_hw
        left, top, right, bottom = geometry.token_box(row, column, (height, width))
        cells, rows, columns = [], *self.noise.shape[2:]
        for low, high, scale, size in ((top, bottom, rows / height, rows), (left, right, columns / width, columns)):
            first = min(max(0, round(low * scale)), size - 1)
            cells.append((first, min(size, max(round(high * scale), first + 1))))
        return cells[0][0], cells[1][0], cells[0][1], cells[1][1]

    def locate(self, change: torch.Tensor) -> HW:
        """The token nearest to the centre of what changed most (attention changes every token a little)."""
        weight = change.pow(4)
        places = [torch.arange(n, dtype=weight.dtype) for n in change.shape]
        row, column = (float((weight.sum(1 - i).cpu() * places[i]).sum() / weight.sum()) for i in (0, 1))
        return round(row), round(column)

    def show(self, square: tuple[int, int, int, int] | None, odd: bool) -> None:
        """Sends the latents, with a square or without, through the denoiser."""
        latents = self.noise.clone()
        if square is not None:
            top, left, bottom, right = square
            latents[..., top:bottom, left:right] += 3.0 if odd else -3.0
        self.model.denoise(latents)


def _choose(geometry: Geometry, image_hw: HW, positions: int, random: np.random.Generator) -> list[HW]:
    """Tokens that lie wholly on the image, away from the border of the grid where it has room."""
    seen = geometry.coverage(np.ones(image_hw, dtype=bool)) > 0.999
    rim = [1 if n > 4 else 0 for n in geometry.grid]
    inner = np.zeros_like(seen)
    inner[rim[0] : geometry.grid[0] - rim[0], rim[1] : geometry.grid[1] - rim[1]] = True
    candidates = np.argwhere(seen & inner)
    if not len(candidates):
        raise ValueError(f"no token of the grid {geometry.grid} is whole on an image of {image_hw}: take a larger one")
    picked = random.choice(len(candidates), size=min(positions, len(candidates)), replace=False)
    return [(int(row), int(column)) for row, column in candidates[picked]]


def _square(geometry: Geometry, image_hw: HW, row: int, column: int) -> tuple[int, int, int, int]:
    """Whole pixels of the image under a token: top, left, bottom, right."""
    left, top, right, bottom = geometry.token_box(row, column, image_hw)
    scale = geometry.framing.place(image_hw).scale
    out = []
    for low, high, ratio, size in ((top, bottom, scale[0], image_hw[0]), (left, right, scale[1], image_hw[1])):
        grow = max(0.0, SMALLEST / ratio - (high - low)) / 2
        first, last = max(0, round(low - grow)), min(size, round(high + grow))
        out.append((first, max(last, first + 1)))
    return out[0][0], out[1][0], out[0][1], out[1][1]
