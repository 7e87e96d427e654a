"""Images that a pipeline made of prompts, as a data set: what a report shows beside the codes of their making."""

from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from visae.data.sample import FactorTable, PromptData, Sample
from visae.evaluate.erasure import draw
from visae.pipelines import AdaptedPipeline
from visae.store import Collection
from visae.store.batches import split_into
from visae.workflows.results import keep_picture


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
        for part in tqdm(list(split_into(missing, self._batch)), desc="images", unit="batch"):
            made = draw(self._pipeline, [self.prompts[i] for i in part], self._batch, **self._collected.arguments())
            for index, image in zip(part, made, strict=True):
                keep_picture(image, self._file(index))
