"""Images that a pipeline made of prompts, as a data set: what a report shows beside the codes of their making."""

import os
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import FactorTable, PromptData, Sample
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.store import Collection


class Drawn:
    """Images of prompts, each from its own seed, made when the first is looked at and kept as PNG.

    Args:
        pipeline: that makes them.
        prompts: of which.
        collected: how the pipeline runs.
        folder: where they are kept; images that lie there are not made again.
        batch: images made at a time.

    Attributes:
        name: of the prompts.
        fingerprint: of the prompts.
        factors: labels of the prompts, which hold for the images as far as the pipeline does what it is told.
    """

    def __init__(
        self, pipeline: AdaptedPipeline, prompts: PromptData, collected: Collection, folder: Path, batch: int = 8
    ):
        self.prompts, self.folder = prompts, Path(folder)
        self.name, self.fingerprint = prompts.name, prompts.fingerprint
        self.factors: FactorTable = prompts.factors
        self._pipeline, self._collected, self._batch = pipeline, collected, batch

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Sample:
        one = self.prompts[index]
        if not self._file(index).is_file():
            self._make()
        with Image.open(self._file(index)) as kept:
            image = kept.convert("RGB")
        return Sample(image, one.key, labels=one.labels, captions=(one.text,), group=one.group)

    def group_of(self, index: int) -> str | None:
        """Group of a prompt."""
        return self.prompts[index].group

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.png"

    def _make(self) -> None:
        """All images that are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(len(self)) if not self._file(i).is_file()]
        parts = [missing[i : i + self._batch] for i in range(0, len(missing), self._batch)]
        given: dict[str, Any] = self._collected.arguments() | {"output_type": "pil"}
        for part in tqdm(parts, desc="images", unit="batch"):
            mine = [self.prompts[i] for i in part]
            with quiet(self._pipeline.pipe):
                made = self._pipeline.generate([one.text for one in mine], [one.seed for one in mine], **given)
            for index, image in zip(part, made, strict=True):
                partial = self._file(index).with_suffix(".tmp")
                image.save(partial, "PNG")
                os.replace(partial, self._file(index))
