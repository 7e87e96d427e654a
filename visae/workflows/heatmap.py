"""Heat maps of a dictionary's latents on images."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from tqdm.auto import tqdm

from visae.codes.heat import ImageCodes, encode_images
from visae.data import UnreadableImage, load_data
from visae.data.sample import ImageData
from visae.model import AdaptedModel
from visae.registry import UnknownName
from visae.sae import Dictionary
from visae.select import Selection
from visae.show import strongest_figure
from visae.workflows.extract import announce
from visae.workflows.run import Run, pick_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONCEPTS = "concepts.json"
"""File of a run that holds what `visae report` found for every label."""


@dataclass(frozen=True)
class HeatMaps:
    """Pictures that were written; prints as a list.

    Attributes:
        files: one PNG per image.
        skipped: images that could not be read, with the reason.
    """

    files: list[Path]
    skipped: list[str]

    def __str__(self) -> str:
        lines = [str(path) for path in self.files]
        lines += [f"skipped: {reason}" for reason in self.skipped]
        return "\n".join([*lines, f"{len(self.files)} heat maps, {len(self.skipped)} images skipped"])


def heatmap(
    run: Path,
    images: tuple[str, ...] = (),
    *,
    out: Path | None = None,
    latents: tuple[int, ...] = (),
    label: str | None = None,
    strongest: int = 5,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    limit: int | None = None,
    device: str = "auto",
) -> HeatMaps:
    """Draw where in an image the latents of a dictionary fire.

    For latents you name, for the latents that mean a label, or for the strongest latents of each image. Images of any
    size and mode; files that cannot be read are named and skipped.

    Example:
        visae heatmap runs/first photos/*.jpg --latents 17 204

    Args:
        run: folder of a run, see `visae train`.
        images: files, folders, globs or a data set such as `world:test?n=8`; 8 images of the run's data if not given.
        out: folder for the pictures; `heatmaps` in the run's folder if not given.
        latents: numbers of latents to draw.
        label: a label such as `shape=circle`, whose latents `visae report` has found.
        strongest: how many of each image's strongest latents to draw, where neither latents nor label are given.
        mode: how values between tokens are filled in.
        limit: at most so many images.
        device: `auto`, `cpu`, `cuda`, ...
    """
    if latents and label:
        raise ValueError(f"give latents or a label, not both; got latents {latents} and label {label!r}")
    opened = Run.open(run)
    selection = _selection(opened, label) if label else None
    wanted, signs = (selection.latents, selection.signs) if selection else (latents, None)
    data = _data(opened, images)
    count = len(data) if limit is None else min(limit, len(data))
    if not images:
        count = min(count, 8)
    folder = Path(out) if out else opened.folder / "heatmaps"
    folder.mkdir(parents=True, exist_ok=True)
    model = opened.model(pick_device(device))
    sae = opened.sae(model).to(model.device)
    skipped: list[str] = []
    read = _read(data, count, skipped)
    files: list[Path] = []
    for key, image, codes in tqdm(_encoded(model, sae, read), total=count, unit="img", desc="heat maps"):
        figure = draw(image, codes, wanted, strongest, mode, f"{key}{f' ({label})' if label else ''}", signs)
        path = folder / f"{len(files):04d}-{_file_name(key)}.png"
        figure.savefig(path, dpi=130)
        files.append(path)
    if not files:
        raise ValueError(f"none of the {count} images could be read: {'; '.join(skipped[:5])}")
    return HeatMaps(files, skipped)


def draw(
    image: Image.Image,
    codes: ImageCodes,
    latents: Sequence[int],
    strongest: int = 5,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    title: str = "",
    signs: Sequence[int] | None = None,
) -> "Figure":
    """One image beside the maps of some latents, or of its strongest ones, each with its colour bar.

    Args:
        image: the picture.
        codes: of its patches.
        latents: which to draw; empty means the strongest.
        strongest: how many of those.
        mode: how values between tokens are filled in.
        title: of the figure.
        signs: of the latents, 1 or -1: only values of that side are drawn; None draws both, in colours of their own.
    """
    chosen = list(latents) or [int(j) for j in codes.strongest(strongest)[0]]
    seen = codes.geometry.seen(codes.image_hw)
    names = [f"latent {'-' if sign < 0 else ''}{j}" for j, sign in zip(chosen, signs or [1] * len(chosen), strict=True)]
    return strongest_figure(
        image, codes.heat(chosen, mode, signs), names, title=title, seen=seen, columns=min(6, len(names) + 1)
    )


def _data(run: Run, images: Sequence[str]) -> ImageData:
    if not images:
        return run.data()
    return load_data(images[0] if len(images) == 1 else list(images))


def _read(data: ImageData, count: int, skipped: list[str]) -> Iterator[tuple[str, Image.Image]]:
    for i in range(count):
        try:
            sample = data[i]
        except UnreadableImage as error:
            announce(f"skipped: {error}")
            skipped.append(str(error))
            continue
        yield sample.key, sample.image


def _encoded(
    model: AdaptedModel, sae: Dictionary, read: Iterator[tuple[str, Image.Image]]
) -> Iterator[tuple[str, Image.Image, ImageCodes]]:
    """Keys and images side by side with their codes, without holding all images at once."""
    waiting: list[tuple[str, Image.Image]] = []

    def images() -> Iterator[Image.Image]:
        for key, image in read:
            waiting.append((key, image))
            yield image

    for codes in encode_images(model, sae, images(), batch=8):
        key, image = waiting.pop(0)
        yield key, image, codes


def _selection(run: Run, label: str) -> Selection:
    """Latents of a label and their signs, as `visae report` found them.

    Raises:
        FileNotFoundError: before a report was made.
        UnknownName: for a label that was not looked for.
    """
    file = run.folder / CONCEPTS
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: `visae report {run.folder}` finds the latents of labels, run it first"
        )
    found = {s.name: s for s in map(Selection.from_dict, json.loads(file.read_text(encoding="utf8")))}
    if label not in found:
        raise UnknownName("label", label, found, "A label reads factor=value.")
    return found[label]


def _file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-")[-80:]
