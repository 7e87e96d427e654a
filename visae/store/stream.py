"""Rows straight from the model, never stored: the same interface as a store."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from visae.data.images import UnreadableImage
from visae.data.sample import FactorTable, ImageData, Labels, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.batches import Batch, Note, split_into
from visae.store.forward import as_torch
from visae.store.index import Skipped
from visae.store.loader import Loader
from visae.store.making import making
from visae.store.sampling import Collection, Sampling
from visae.store.store import Chunk, Places
from visae.store.stream_loader import StreamLoader
from visae.tokens import TokenPolicy


class Stream:
    """Rows of a site, computed when they are asked for.

    Args:
        model: the model, or a pipeline.
        site: alias, module path or `Site`.
        data: the samples, or prompts; unreadable ones are skipped and listed.
        policy: which tokens are kept (of every step and branch of a pipeline); the patches by default.
        dtype: of the rows, as in a store.
        batch: images per forward pass, or made at a time.
        workers: threads that read and frame images; 0 reads in the calling thread.
        sampling: how a pipeline runs, and what of it is collected.

    Attributes:
        meta: what makes the rows.
        sites: where they are read.
        n_rows: rows of one pass if every image can be read.
        d: length of a row.
        n_items: samples.
    """

    def __init__(
        self,
        model: AdaptedModel | AdaptedPipeline,
        site: str | Site,
        data: ImageData | PromptData,
        policy: TokenPolicy | None = None,
        *,
        dtype: str | torch.dtype = "float16",
        batch: int = 32,
        workers: int = 2,
        sampling: Sampling | Collection | None = None,
    ):
        self.model, self.data = model, data
        self.making = making(model, [site], data, policy, dtype, sampling)
        self.meta, self.sites, self.site = self.making.meta, self.making.sites, self.making.sites[0]
        self.batch, self.workers = batch, workers
        self.n_items, self.d = self.meta.n_items, self.meta.d
        self.n_rows = self.n_items * self.meta.tokens_per_item
        self._skipped: dict[int, Skipped] = {}

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"Stream({self.meta.model} {self.site.name}, {self.meta.data}: {self.n_rows:,} rows of {self.d} values)"

    def loader(
        self,
        batch: int,
        *,
        seed: int = 0,
        passes: int | None = None,
        pin: bool = False,
        buffer_bytes: int | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> Loader:
        """Shuffled `[batch, d]` tensors; see `Store.loader`. A mixing buffer is filled, half of it served, and so on.

        Of several processes each sends its own share of the images through the model, every `processes`-th of a pass;
        so the order of rows depends on their number, unlike a store's.

        Raises:
            ValueError: if the batch is not positive, the rank not below `processes`, or there are fewer images.
        """
        return StreamLoader(self, batch, seed, passes, pin, buffer_bytes, rank, processes)

    def chunks(self, rows: int = 65536) -> Iterator[Chunk]:
        """Every row once, in order, whole items together, one forward pass at a time (`rows` is but a wish)."""
        size = max(1, min(self.batch, rows // self.meta.tokens_per_item))
        places = Places(self.meta)
        for batch, rows_in in self.extracted(split_into(range(self.n_items), size)):
            if batch.notes:
                regions = batch.regions
                if regions is None and self.has_regions:
                    regions = np.zeros(batch.places.shape, np.int64)
                yield places.chunk(as_torch(rows_in, self.meta.dtype), batch.items, batch.places, regions)

    def extracted(self, parts: Iterator[Any]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches of the data set's places in `parts` with their rows `[n, t, d]` (bfloat16 as uint16)."""
        for batch in self.making.reader.batches(parts, self.workers):
            self._skipped |= {one.item: one for one in batch.skipped}
            rows = np.empty((0, self.meta.tokens_per_item, self.d), np.float32)
            if batch.notes:
                with self.making.start() as forward:  # no hook stays while others train
                    rows = forward(batch).wait()
            yield batch, rows

    @property
    def skipped(self) -> list[Skipped]:
        """Samples that could not be read, as far as they have been met."""
        return [self._skipped[item] for item in sorted(self._skipped)]

    @property
    def factors(self) -> FactorTable:
        """Factor -> values, in the data set's order."""
        return self.meta.factors

    @cached_property
    def has_regions(self) -> bool:
        """Whether rows know the region under them; told by the first sample that can be read."""
        if self.site.grid is None:
            return False
        for item in range(self.n_items):
            try:
                return getattr(self.data[item], "regions", None) is not None
            except UnreadableImage:
                continue
        return False

    @cached_property
    def notes(self) -> list[Note]:
        """What is known of every sample, by place; reads the whole data set once, without the model."""
        found = []
        for item in range(self.n_items):
            try:
                found.append(self.making.reader.note(item))
            except UnreadableImage as error:
                found.append(Note(error.key, (0, 0), {}))
                self._skipped[item] = Skipped(item, error.key, error.reason)
        return found

    @property
    def stored(self) -> np.ndarray:
        """Samples that have rows: `[n_items]` bool."""
        return np.array([note.hw != (0, 0) for note in self.notes])

    @property
    def keys(self) -> list[str]:
        """Name of every sample, by place."""
        return [note.key for note in self.notes]

    @property
    def item_labels(self) -> list[Labels]:
        """Factor -> values present, of every sample by place; empty for those that cannot be read."""
        return [note.labels for note in self.notes]

    @property
    def region_labels(self) -> list[tuple[dict[str, str], ...]]:
        """Labels of every sample's regions by place; entry j - 1 belongs to region j."""
        return [note.regions for note in self.notes]

    @property
    def groups(self) -> list[str | None]:
        """What must not be split over train and test, of every sample by place."""
        return [note.group for note in self.notes]
