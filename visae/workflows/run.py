"""The folder of a run: what it holds, and how one is opened again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visae.data import load_data
from visae.data.sample import ImageData
from visae.model import AdaptedModel, drawing, load_model, vision
from visae.pipelines import AdaptedPipeline
from visae.sae import Card, Dictionary, load_card, load_sae
from visae.sae.files import CARD

CONFIG = "run.json"


@dataclass(frozen=True)
class Run:
    """A folder that `visae train` made.

    It holds `run.json` (the options), `sae.safetensors` and `sae.json` (the dictionary and its card), `metrics.jsonl`,
    `checkpoints/`, `activations/` unless they lie elsewhere or were streamed, and, after `visae report`, `codes/` and
    `index.html`.

    Attributes:
        folder: where it lies.
        config: the options it was trained with.
    """

    folder: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """A finished run.

        Raises:
            FileNotFoundError: if the folder holds no trained dictionary.
        """
        path = Path(folder)
        load_card(path)
        file = path / CONFIG
        return cls(path, json.loads(file.read_text(encoding="utf8")) if file.is_file() else {})

    @property
    def done(self) -> bool:
        """Whether a dictionary lies in the folder."""
        return (self.folder / CARD).is_file()

    @property
    def card(self) -> Card:
        """The card of the dictionary."""
        return load_card(self.folder)

    def model(self, device: str = "cpu") -> AdaptedModel:
        """The model it was trained on, built as it was then."""
        return vision(self.loaded(self.card.model["id"], device))

    def loaded(self, name: str, device: str) -> AdaptedModel | AdaptedPipeline:
        """A model of any sort, built as this run's options say."""
        size = self.config.get("image_size")
        return load_model(
            name,
            pretrained=self.config.get("pretrained", True),
            image_size=tuple(size) if size else None,
            device=device,
            dtype=getattr(torch, self.config.get("weights", "float32")),
        )

    def pipeline(self, device: str = "cpu") -> AdaptedPipeline:
        """The pipeline it was trained on, built as it was then.

        Raises:
            ValueError: if it was trained on a model that sees images.
        """
        return drawing(self.loaded(self.card.model["id"], device))

    def sae(self, model: AdaptedModel | AdaptedPipeline | None = None) -> Dictionary:
        """The dictionary; refuses another model than its own."""
        return load_sae(self.folder, model=model)

    def data(self) -> ImageData:
        """The images it was trained on."""
        return load_data(self.config.get("data") or self.card.data["name"])


def other_split(world: str, part: str, images: int = 2000) -> str:
    """The spec of another split of the same world, with at most `images` images."""
    _, _, query = world.partition("?")
    given = dict(pair.split("=", 1) for pair in query.split("&") if pair)
    given["n"] = str(min(int(given.get("n", images)), images))
    return f"world:{part}?" + "&".join(f"{key}={value}" for key, value in given.items())


def pick_device(device: str) -> str:
    """`auto` means the GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
