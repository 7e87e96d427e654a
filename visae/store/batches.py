"""Images and prompts on their way to the model: read, framed and described in threads ahead of the forward pass."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from visae.data.images import UnreadableImage
from visae.data.sample import ImageData, Labels, Prompt, PromptData, Sample
from visae.geometry import Geometry
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.index import Skipped
from visae.store.sampling import Collection
from visae.tokens import TokenPolicy


@dataclass(frozen=True)
class Note:
    """What a store remembers of a sample beside its rows.

    Attributes:
        key: its name.
        hw: height and width of the image in pixels; (0, 0) for a sample that could not be read.
        labels: factor -> values present.
        regions: entry j - 1 tells factor -> value of region j.
        captions: sentences that are true of the image.
        boxes: `[n][4]` as x0, y0, x1, y1 in pixels, or None.
        group: what must not be split over train and test, or None.
        seed: of the noise that the image was made from, or None.
    """

    key: str
    hw: tuple[int, int]
    labels: Labels
    regions: tuple[dict[str, str], ...] = ()
    captions: tuple[str, ...] = ()
    boxes: list[list[float]] | None = None
    group: str | None = None
    seed: int | None = None

    @classmethod
    def of(cls, sample: Sample) -> "Note":
        """The note about a sample."""
        boxes = None if sample.boxes is None else np.asarray(sample.boxes, dtype=np.float64).round(2).tolist()
        width, height = sample.image.size
        return cls(
            sample.key,
            (height, width),
            dict(sample.labels),
            tuple(sample.region_labels),
            tuple(sample.captions),
            boxes,
            sample.group,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is empty is left out."""
        return {
            "key": self.key,
            "hw": list(self.hw),
            **{k: v for k, v in vars(self).items() if (v or k == "seed") and v is not None and k not in ("key", "hw")},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Note":
        """Reverse of `to_dict`."""
        labels = {factor: tuple(values) for factor, values in data.get("labels", {}).items()}
        tuples = {key: tuple(data.get(key, ())) for key in ("hw", "regions", "captions")}
        return cls(**{**data, **tuples, "labels": labels})


@dataclass(frozen=True)
class Loaded:
    """One sample, ready for the model.

    Attributes:
        item: its place in the data set.
        pixels: `[3, H, W]` input; empty where an image is made from the prompt.
        note: what is known of it.
        places: `[t]` kept places in the site's sequence.
        regions: `[t]` region under each kept token, None where the data set has no masks.
        prompt: of a pipeline, None for models that see images.
    """

    item: int
    pixels: Tensor
    note: Note
    places: np.ndarray
    regions: np.ndarray | None
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        pixels: `[n, 3, H, W]`.
        items: `[n]` places in the data set.
        places: `[n, t]` kept places in the site's sequence.
        regions: `[n, t]`, or None where no sample has masks.
        notes: one per item.
        skipped: samples that should have been here but could not be read.
        prompts: of a pipeline, one per item.
    """

    pixels: Tensor
    items: np.ndarray
    places: np.ndarray
    regions: np.ndarray | None
    notes: tuple[Note, ...]
    skipped: tuple[Skipped, ...]
    prompts: tuple[Prompt, ...] = ()


class Reader:
    """Reads samples of a data set for one site of a model.

    Args:
        model: whose preprocessing is used.
        site: where rows will be read.
        data: the samples.
        policy: which tokens are kept.
    """

    def __init__(self, model: AdaptedModel, site: Site, data: ImageData, policy: TokenPolicy):
        self._model, self._site, self._data, self._policy = model, site, data, policy
        self._geometry: Geometry | None = model.geometry(site) if site.grid else None

    def load(self, item: int) -> Loaded | Skipped:
        """One sample by its place, or why it could not be read."""
        try:
            sample = self._data[item]
        except UnreadableImage as error:
            return Skipped(item, error.key, error.reason)
        places = self._policy.select(self._site.token_kinds, np.array([item]))[0]
        return Loaded(
            item, self._model.preprocess([sample.image])[0], Note.of(sample), places, self._under(sample, places)
        )

    def note(self, item: int) -> Note:
        """What is known of a sample, without the model.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        return Note.of(self._data[item])

    def _under(self, sample: Sample, places: np.ndarray) -> np.ndarray | None:
        """Region under each kept token; 0 for tokens without a place in the image."""
        if sample.regions is None or self._geometry is None:
            return None
        on_grid = self._geometry.regions(sample.regions).reshape(-1)
        patch = places.astype(np.int64) - len(self._site.prefix)
        return np.where(patch >= 0, on_grid[np.maximum(patch, 0)], 0)

    def batches(self, parts: Iterable[Sequence[int]], workers: int) -> Iterator[Batch]:
        """One batch per part, in order, read `workers` threads ahead (0 reads in this thread)."""
        if workers < 1:
            for part in parts:
                yield collate([self.load(item) for item in part])
            return
        waiting: deque[list[Future[Loaded | Skipped]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="visae-read")
        try:
            for part in parts:
                waiting.append([pool.submit(self.load, item) for item in part])
                if len(waiting) > 2:
                    yield collate([future.result() for future in waiting.popleft()])
            while waiting:
                yield collate([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class PromptReader(Reader):
    """Brings prompts, and images with noise to be added, to a pipeline.

    Args:
        model: the pipeline.
        site: where rows will be read.
        data: prompts; images where noise is added to them.
        policy: which tokens of each step and branch are kept.
        collected: from which steps and branches.
    """

    def __init__(
        self,
        model: AdaptedPipeline,
        site: Site,
        data: PromptData | ImageData,
        policy: TokenPolicy,
        collected: Collection,
    ):
        self._site, self._policy, self._collected = site, policy, collected
        self._prompts: Any = data
        self._geometry = model.geometry(site) if site.grid else None

    def load(self, item: int) -> Loaded | Skipped:
        """One prompt or image by its place, or why it could not be read."""
        n, (height, width) = len(self._collected.slots), self._collected.image_hw
        places = self._policy.select(self._site.token_kinds, item * n + np.arange(n)).reshape(-1)
        if self._collected.mode != "noise":
            prompt: Prompt = self._prompts[item]
            return Loaded(item, torch.empty(0), self.note(item), places, None, prompt)
        try:
            sample: Sample = self._prompts[item]
        except UnreadableImage as error:
            return Skipped(item, error.key, error.reason)
        image = ImageOps.fit(sample.image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)
        prompt = Prompt(next(iter(sample.captions), ""), item, sample.key, sample.labels, sample.group)
        return Loaded(item, pixels, Note.of(sample), places, self._under(sample, places), prompt)

    def note(self, item: int) -> Note:
        """See `Reader.note`."""
        one = self._prompts[item]
        if isinstance(one, Sample):
            return Note.of(one)
        return Note(one.key, self._collected.image_hw, dict(one.labels), (), (one.text,), None, one.group, one.seed)


def collate(loaded: Sequence[Loaded | Skipped]) -> Batch:
    """Puts samples together; those that could not be read are listed."""
    good = [one for one in loaded if isinstance(one, Loaded)]
    regions = None
    if any(one.regions is not None for one in good):
        regions = np.stack(
            [np.zeros(len(one.places), np.int64) if one.regions is None else one.regions for one in good]
        )
    return Batch(
        pixels=torch.stack([one.pixels for one in good]) if good else torch.empty(0),
        items=np.array([one.item for one in good], dtype=np.int64),
        places=np.stack([one.places for one in good]) if good else np.empty((0, 0), np.int32),
        regions=regions,
        notes=tuple(one.note for one in good),
        skipped=tuple(one for one in loaded if isinstance(one, Skipped)),
        prompts=tuple(one.prompt for one in good if one.prompt is not None),
    )


def split_into(items: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of at most `batch` items."""
    return (items[start : start + batch] for start in range(0, len(items), batch))
