"""Rows of several sites of one model: to train on, and to measure on."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from visae.data.sample import ImageData
from visae.model import AdaptedModel
from visae.store import ActivationSource, StoreMeta, WideStream
from visae.store.store import Chunk
from visae.tokens import TokenPolicy
from visae.train import split_columns
from visae.workflows.held_out import held_out_rows
from visae.workflows.prepare import open_source


class SiteRows:
    """Rows of several sites.

    Args:
        adapted: the model.
        sites: names of sites.
        images: to train on.
        policy: which tokens are kept.
        out: stores lie in `activations/SITE` of this folder.
        dtype: of the rows.
        stream: compute rows when they are asked for, those of sites with the same tokens in one forward pass.
        image_batch: images per forward pass.
        workers: threads that read images.

    Attributes:
        metas: what makes the rows of each site, by name.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        sites: Iterable[str],
        images: ImageData,
        policy: TokenPolicy,
        out: Path,
        *,
        dtype: str,
        stream: bool,
        image_batch: int,
        workers: int,
    ):
        self._adapted, self._images, self._policy, self._out = adapted, images, policy, out
        self._dtype, self._stream, self._batch, self._workers = dtype, stream, image_batch, workers
        self.metas = {name: StoreMeta.describe(adapted, adapted.site(name), images, policy, dtype) for name in sites}

    @property
    def n_rows(self) -> int:
        """Rows in one pass if every image can be read, of the site that has most."""
        return max(meta.n_items * meta.tokens_per_item for meta in self.metas.values())

    @cached_property
    def sources(self) -> dict[str, ActivationSource]:
        """By site; the first look at them extracts what is to be stored."""
        return {
            name: open_source(
                self._adapted, name, self._images, self._out / "activations" / name, self._policy, self._dtype,
                None, self._stream, self._batch, self._workers,
            )
            for name in self.metas
        }  # fmt: skip

    def loaders(self, batch: int, seed: int) -> dict[str, Iterable[Any]]:
        """Shuffled batches by site."""
        if not self._stream:
            return {name: source.loader(batch, seed=seed) for name, source in self.sources.items()}
        found: dict[str, Iterable[Any]] = {}
        for wide in self._wide(self._images, self._dtype):
            found |= split_columns(wide.loader(batch, seed=seed), wide.widths)
        return found

    def held_out(self, images: ImageData) -> Iterator[dict[str, Chunk]]:
        """Every row of other images once, by site; sites with the same tokens come together."""
        from tqdm.auto import tqdm

        for wide in self._wide(images, "float32"):
            with tqdm(total=len(images), unit="image", desc="measure", dynamic_ncols=True) as bar:
                for parts in wide.parts():
                    yield parts
                    bar.update(len(next(iter(parts.values())).item.unique()))

    def first(self, images: ImageData, site: str) -> list[Tensor]:
        """The first rows of other images at a site, to look at while training."""
        rows = held_out_rows(self._adapted, site, images, self._policy, self._batch, self._workers)
        return [batch for batch in rows if isinstance(batch, Tensor)]

    def _wide(self, images: ImageData, dtype: str) -> list[WideStream]:
        """One stream for all sites with the same tokens."""
        alike: dict[Any, list[str]] = defaultdict(list)
        for name in self.metas:
            site = self._adapted.site(name)
            alike[site.token_kinds, site.grid].append(name)
        return [
            WideStream(
                self._adapted, names, images, self._policy, dtype=dtype, batch=self._batch, workers=self._workers
            )
            for names in alike.values()
        ]
