"""Activations on disk or streamed from the model, behind one interface."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from visae.data.sample import FactorTable, Labels
from visae.store.batches import Note
from visae.store.errors import DamagedShard, DiskFull, Overflow, StoreError
from visae.store.estimate import Estimate, estimate
from visae.store.extract import extract
from visae.store.index import Skipped
from visae.store.loader import Loader
from visae.store.meta import StoreMeta
from visae.store.sampling import Collection, Sampling
from visae.store.store import Chunk, Store, open_store
from visae.store.stream import Stream
from visae.store.wide import WideStream


class ActivationSource(Protocol):
    """What `Store` and `Stream` have in common: all that a trainer or a code table asks of its rows.

    Attributes:
        meta: what made the rows.
        n_rows: rows in one pass (an upper bound for a stream, which has not met its unreadable images yet).
        d: length of a row.
        n_items: samples of the data set; `item` of any row is below it.
    """

    meta: StoreMeta
    n_rows: int
    d: int
    n_items: int

    def loader(
        self,
        batch: int,
        *,
        seed: int = 0,
        passes: int | None = None,
        pin: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> Loader:
        """Shuffled `[b, d]` rows, see `Loader`; of several processes each brings its own share of the rows."""
        ...

    def chunks(self, rows: int = 65536) -> Iterator[Chunk]:
        """Every row once, in order, whole items together."""
        ...

    @property
    def factors(self) -> FactorTable:
        """Factor -> values, in the data set's order."""
        ...

    @property
    def has_regions(self) -> bool:
        """Whether rows know the region under them."""
        ...

    @property
    def notes(self) -> list[Note]:
        """What is known of every sample, by place."""
        ...

    @property
    def stored(self) -> np.ndarray:
        """Samples that have rows: `[n_items]` bool."""
        ...

    @property
    def keys(self) -> list[str]:
        """Name of every sample, by place."""
        ...

    @property
    def item_labels(self) -> list[Labels]:
        """Factor -> values present, of every sample by place."""
        ...

    @property
    def region_labels(self) -> list[tuple[dict[str, str], ...]]:
        """Labels of every sample's regions by place; entry j - 1 belongs to region j."""
        ...


__all__ = [
    "ActivationSource",
    "Chunk",
    "Collection",
    "DamagedShard",
    "DiskFull",
    "Estimate",
    "Loader",
    "Note",
    "Overflow",
    "Sampling",
    "Skipped",
    "Store",
    "StoreError",
    "StoreMeta",
    "Stream",
    "WideStream",
    "estimate",
    "extract",
    "open_store",
]
