"""`World`: an endless set of images whose truth is known."""

import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from visae.data.sample import FactorTable, Labels, Sample
from visae.registry import UnknownName
from visae.world.captions import Caption, draw_caption
from visae.world.factors import FACTORS, ROLES, SPLITS, THING_FACTORS
from visae.world.render import regions, render
from visae.world.scene import Scene
from visae.world.variants import VARIANTS, Draw, Value, changed_factor

DRAWING_VERSION = 1
"""Goes up whenever any pixel or label of any image changes; part of the fingerprint."""
_CAPTIONS = 4


class World:
    """Images drawn from a seed, with every factor, mask, box and many captions known.

    Image `i` depends on the arguments and `i` alone: it can be asked for in any order, at any size, and has the same
    bytes on every machine. Splits never share an image, whatever the seeds.

    Args:
        split: "train", "validation" or "test".
        n: how many images.
        size: side in pixels, 32 to 224.
        seed: which world.
        objects: objects per image, a number or (least, most); at most 3.
        variant: None or a name in `visae.world.variants.VARIANTS`.
        captions: how many captions a sample carries.
        **params: parameters of the variant, e.g. `p=0.9` for `spurious`.

    Raises:
        UnknownName: for a split, variant or parameter that does not exist.
        ValueError: for a value out of range.

    Example:
        >>> world = World("test", n=10, objects=1)
        >>> world[3].labels["shape"], world.render(3).shape
        (('oval',), (64, 64, 3))
    """

    def __init__(
        self,
        split: str = "train",
        n: int = 4000,
        size: int = 64,
        seed: int = 0,
        objects: int | tuple[int, int] = 1,
        variant: str | None = None,
        captions: int = _CAPTIONS,
        **params: Value,
    ) -> None:
        if split not in SPLITS:
            raise UnknownName("world split", split, SPLITS)
        low, high = (objects, objects) if isinstance(objects, int) else objects
        if not 1 <= low <= high <= 3:
            raise ValueError(f"objects is a number from 1 to 3 or a range of them such as (1, 3), got {objects!r}")
        if not 32 <= size <= 224:
            raise ValueError(f"size is 32 to 224 pixels, got {size}; resize the images yourself for anything else")
        if n < 1:
            raise ValueError(f"n is how many images there are, at least 1, got {n}")
        self.split, self.size, self.seed, self.objects = split, size, seed, (low, high)
        self.variant = variant or "plain"
        self._twist = VARIANTS[self.variant]
        if self._twist.one_object and high > 1:
            raise ValueError(f"the variant {self.variant!r} is about single objects, got objects={objects!r}; use 1")
        self.params = _checked_params(self.variant, self._twist.defaults, self._twist.choices, params)
        self._twist.check(self.params)
        self.captions = captions
        self._n = n
        self.factors: FactorTable = {factor: list(values) for factor, values in FACTORS.items()}
        if self.variant == "homonym":
            self.factors["role"] = list(ROLES)
        self.name = self._spec()
        self.fingerprint = hashlib.sha256(f"{DRAWING_VERSION} {self.name}".encode()).hexdigest()[:16]

    def _spec(self) -> str:
        low, high = self.objects
        count = str(low) if low == high else f"{low}-{high}"
        parts: dict[str, Value] = {
            "n": self._n,
            "size": self.size,
            "seed": self.seed,
            "objects": count,
            "captions": self.captions,
        }
        if self.variant != "plain":
            parts |= {"variant": self.variant} | self.params
        return f"world:{self.split}?" + "&".join(f"{key}={value}" for key, value in parts.items())

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"<World {self.name}>"

    def _draw(self, index: int) -> Draw:
        if not 0 <= index < self._n:
            raise IndexError(f"{self.name} has images 0 to {self._n - 1}, got {index}")
        return Draw(self.seed, SPLITS.index(self.split), index, self.objects)

    def scene(self, index: int) -> Scene:
        """Every parameter of an image."""
        return self._twist.draw(self._draw(index), self.params)

    def render(self, index: int) -> np.ndarray:
        """Pixels `[size, size, 3]` uint8."""
        return render(self.scene(index), self.size)

    def regions(self, index: int) -> np.ndarray:
        """Object number `[size, size]` uint8 of every pixel, 0 for background."""
        return regions(self.scene(index), self.size)

    def caption(self, index: int, j: int = 0) -> Caption:
        """Caption `j` (any number from 0) of an image, with what it states."""
        draw = self._draw(index)
        return draw_caption(self._twist.draw(draw, self.params), draw.stream(5, j))

    def labels(self, index: int) -> Labels:
        """Factor -> values present in the image, in the order of `factors`."""
        return scene_labels(self.scene(index), self.factors)

    def pair(self, k: int) -> tuple[int, int, str]:
        """Of the variant `pairs`: the two images of pair `k`, and the one factor in which they differ.

        Raises:
            ValueError: if this is another variant.
        """
        if self.variant != "pairs":
            raise ValueError(f"only the variant 'pairs' has pairs, this is {self.variant!r}")
        return 2 * k, 2 * k + 1, changed_factor(self._draw(2 * k + 1), self.params)

    def __getitem__(self, index: int) -> Sample:
        draw = self._draw(index)
        scene = self._twist.draw(draw, self.params)
        masks = regions(scene, self.size)
        return Sample(
            image=Image.fromarray(render(scene, self.size)),
            key=f"world/{self.split}/{self.seed}/{index}",
            labels=scene_labels(scene, self.factors),
            regions=masks.astype(np.int64),
            region_labels=tuple(thing.labels for thing in scene.things),
            boxes=boxes_of(masks, len(scene.things)),
            captions=tuple(draw_caption(scene, draw.stream(5, j)).text for j in range(self.captions)),
            group=f"pair/{index // 2}" if self.variant == "pairs" else None,
        )


def scene_labels(scene: Scene, factors: FactorTable) -> Labels:
    """Factor -> values present in a scene, in the order of `factors`."""
    known = [thing.labels for thing in scene.things]
    out: Labels = {"background": (scene.background,), "count": (scene.count,)}
    for factor in (*THING_FACTORS, "role"):
        present = {labels.get(factor) for labels in known}
        if factor in factors:
            out[factor] = tuple(value for value in factors[factor] if value in present)
    return {factor: out[factor] for factor in factors}


def boxes_of(masks: np.ndarray, n: int) -> np.ndarray:
    """Tight boxes `[n, 4]` float32 (x0, y0, x1, y1; x1, y1 exclusive) of regions 1 to n of a map `[H, W]`."""
    boxes = np.zeros((n, 4), np.float32)
    for number in range(1, n + 1):
        rows, cols = np.nonzero(masks == number)
        boxes[number - 1] = cols.min(), rows.min(), cols.max() + 1, rows.max() + 1
    return boxes


def _checked_params(
    variant: str, defaults: Mapping[str, Value], choices: Mapping[str, tuple[str, ...]], given: Mapping[str, Value]
) -> dict[str, Value]:
    out = dict(defaults)
    for key, value in given.items():
        if key not in defaults:
            raise UnknownName(f"parameter of the world variant {variant!r}", key, defaults)
        if isinstance(defaults[key], float):
            try:
                out[key] = float(value)
            except ValueError:
                raise ValueError(f"the parameter {key!r} of {variant!r} is a number, got {value!r}") from None
        elif value not in choices[key]:
            raise UnknownName(f"value of the parameter {key!r} of {variant!r}", value, choices[key])
        else:
            out[key] = value
    return out
