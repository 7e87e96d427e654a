"""COCO's layout: one JSON file of instances, maybe one of captions, and a folder of images."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visae.data.files import Record, Regions
from visae.data.layouts import LAYOUTS, Found, need


@LAYOUTS.register("coco")
def coco(root: Path, *, images: str, instances: str, captions: str = "", factor: str = "category") -> Found:
    """Instances with polygons or run lengths become regions (the smaller before the larger), their boxes are kept.

    Args:
        root: of the data set.
        images: folder of the images.
        instances: JSON file of the instances.
        captions: JSON file of the captions, optional.
        factor: what the categories are called; a second one, `supercategory`, is added where the file has it.
    """
    top, source = need(root / images, "the folder of images"), need(root / instances, "the file of instances")
    told = json.loads(source.read_text(encoding="utf-8"))
    labels = {one["id"]: _labels(one, factor) for one in told["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in told["annotations"]:
        by_image.setdefault(one["image_id"], []).append(one)
    said: dict[int, list[str]] = {}
    if captions:
        for one in json.loads(need(root / captions, "the file of captions").read_text(encoding="utf-8"))["annotations"]:
            said.setdefault(one["image_id"], []).append(one["caption"].strip())
    records = []
    for one in sorted(told["images"], key=lambda image: image["file_name"]):
        mine = sorted(by_image.get(one["id"], []), key=lambda a: (-a["bbox"][2] * a["bbox"][3], a["id"]))
        regions = partial(draw_instances, mine, labels, (one["height"], one["width"]))
        found = {
            name: tuple(sorted({labels[a["category_id"]][name] for a in mine})) for name in next(iter(labels.values()))
        }
        records.append(
            Record(
                top / one["file_name"],
                one["file_name"],
                {k: v for k, v in found.items() if v},
                tuple(said.get(one["id"], ())),
                regions=regions,
            )
        )
    factors = {name: sorted({known[name] for known in labels.values()}) for name in next(iter(labels.values()))}
    return Found(records, [source, *([root / captions] if captions else [])], factors)


def _labels(category: dict[str, Any], factor: str) -> dict[str, str]:
    above = category.get("supercategory")
    return {factor: category["name"]} | ({"supercategory": above} if above else {})


def draw_instances(
    instances: list[dict[str, Any]], labels: dict[int, dict[str, str]], told_hw: tuple[int, int], hw: tuple[int, int]
) -> Regions:
    """Regions of one image of `hw`, whose annotations refer to `told_hw`."""
    regions = np.zeros(hw, dtype=np.int64)
    boxes = np.zeros((len(instances), 4), dtype=np.float32)
    scale = np.array([hw[1] / told_hw[1], hw[0] / told_hw[0]])
    for j, one in enumerate(instances):
        x, y, width, height = one["bbox"]
        boxes[j] = np.array([x, y, x + width, y + height]) * np.tile(scale, 2)
        regions[_instance(one["segmentation"], told_hw, hw, scale)] = j + 1
    return Regions(regions, tuple(dict(labels[one["category_id"]]) for one in instances), boxes)


def _instance(shape: Any, told_hw: tuple[int, int], hw: tuple[int, int], scale: np.ndarray) -> np.ndarray:
    """Pixels `[H, W]` (bool) of one instance."""
    if isinstance(shape, dict):
        mask = Image.fromarray(run_lengths(shape["counts"], told_hw).astype(np.uint8) * 255)
        return np.asarray(mask.resize((hw[1], hw[0]), Image.Resampling.NEAREST)) > 0
    return np.any([fill_polygon(np.asarray(one, dtype=np.float64).reshape(-1, 2) * scale, hw) for one in shape], axis=0)


def fill_polygon(points: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Pixels `[H, W]` (bool) whose centres lie inside a polygon `[n, 2]` of x, y corners (even-odd rule)."""
    flips = np.zeros((hw[0], hw[1] + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = np.ceil(np.clip(sorted((y0, y1)), 0, hw[0]) - 0.5).astype(int)
        rows = np.arange(max(low, 0), min(high, hw[0]))
        if rows.size:  # where the edge crosses the middle of a row, all pixels to its right change sides
            crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(flips, (rows, np.ceil(crossing - 0.5).clip(0, hw[1]).astype(int)), 1)
    return (flips.cumsum(axis=1)[:, :-1] % 2).astype(bool)


def run_lengths(counts: list[int] | str, hw: tuple[int, int]) -> np.ndarray:
    """Mask `[H, W]` (bool) from COCO's run lengths: off, on, off, ... down the columns, as numbers or as its text form.

    Raises:
        ValueError: if the runs do not fill the image.
    """
    runs = _decode(counts) if isinstance(counts, str) else list(counts)
    if sum(runs) != hw[0] * hw[1]:
        raise ValueError(f"the run lengths cover {sum(runs)} pixels but the image has {hw[0]} x {hw[1]}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(hw[1], hw[0]).T


def _decode(text: str) -> list[int]:
    """COCO's text form: 5 bits a character from `0`, the sixth says that more follow; from the third on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
