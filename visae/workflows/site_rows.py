"""Rows of several sites of one model: to train on, and to measure on."""

from collections import defaultdict
from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from visae.data.sample import ImageData, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Rows
from visae.store import ActivationSource, Collection, StoreMeta, Stream, WideStream, estimate
from visae.store.estimate import duration
from visae.store.store import Chunk
from visae.store.wide import alike
from visae.tokens import TokenPolicy
from visae.train import split_columns
from visae.workflows.extract import announce
from visae.workflows.held_out import ROWS, first_rows
from visae.workflows.prepare import open_source


class SiteRows:
    """Rows of several sites.

    Args:
        adapted: the model, or a pipeline.
        sites: names of sites.
        data: images or prompts to train on.
        policy: which tokens are kept.
        out: stores lie in `activations/SITE` of this folder.
        dtype: of the rows.
        stream: compute rows when they are asked for, those of sites with the same tokens in one forward pass or one
            generation.
        image_batch: images per forward pass, or made at a time.
        workers: threads that read images.
        collected: how a pipeline runs.

    Attributes:
        metas: what makes the rows of each site, by name.
        n_rows: rows of each site in one pass if every image can be read, by name.
        collected: how a pipeline runs.
    """

    def __init__(
        self,
        adapted: AdaptedModel | AdaptedPipeline,
        sites: Iterable[str],
        data: ImageData | PromptData,
        policy: TokenPolicy,
        out: Path,
        *,
        dtype: str,
        stream: bool,
        image_batch: int,
        workers: int,
        collected: Collection | None = None,
    ):
        self._adapted, self._data, self._policy, self._out = adapted, data, policy, out
        self._dtype, self._stream, self._batch, self._workers = dtype, stream, image_batch, workers
        self.collected = collected
        self.metas = {
            name: StoreMeta.describe(adapted, adapted.site(name), data, policy, dtype, collected) for name in sites
        }
        self.n_rows = {name: meta.n_items * meta.tokens_per_item for name, meta in self.metas.items()}

    @property
    def scale(self) -> str:
        """What noise levels mean, see `visae.clock`."""
        return self.collected.scale if self.collected else "variance"

    @cached_property
    def sources(self) -> dict[str, ActivationSource]:
        """By site; the first look at them extracts what is to be stored."""
        return {name: self._source(name) for name in self.metas}

    def _source(self, name: str) -> ActivationSource:
        if self._stream:
            return Stream(self._adapted, name, self._data, self._policy, dtype=self._dtype, **self._how)
        return open_source(
            self._adapted, name, self._data, self._out / "activations" / name, self._policy, self._dtype, None, False,
            self._batch, self._workers, self.collected,
        )  # fmt: skip

    def loaders(self, batch: int, seed: int, sites: Several[str]) -> dict[str, Iterable[Any]]:
        """Shuffled batches of sites; of sites with the same tokens that are streamed, each is made once for all."""
        if not self._stream:
            return {name: self.sources[name].loader(batch, seed=seed) for name in sites}
        found: dict[str, Iterable[Any]] = {}
        for wide in self._wide(self._data, self._dtype, sites):
            ahead = estimate(
                self._adapted, wide.site, self._data, None, policy=self._policy, dtype=self._dtype, batch=self._batch,
                sampling=self.collected,
            )  # fmt: skip
            announce(
                f"activations of {', '.join(wide.widths)}: {ahead.rows:,} rows a pass, streamed in about "
                f"{duration(ahead.seconds or 0.0)}"
            )
            found |= split_columns(wide.loader(batch, seed=seed), wide.widths)
        return {name: found[name] for name in sites}

    def held_out(self, data: ImageData | PromptData) -> Iterator[dict[str, Chunk]]:
        """Every row of other images once, by site; sites with the same tokens come together."""
        from tqdm.auto import tqdm

        for wide in self._wide(data, "float32"):
            with tqdm(total=len(data), unit="image", desc="measure", dynamic_ncols=True) as bar:
                for parts in wide.parts():
                    yield parts
                    bar.update(len(next(iter(parts.values())).item.unique()))

    def first(self, data: ImageData | PromptData, sites: Several[str]) -> dict[str, list[Tensor | Rows]]:
        """The first rows of other images by site, to look at while training."""
        found: dict[str, list[Tensor | Rows]] = {}
        for wide in self._wide(data, "float32", sites):
            found |= first_rows(wide.parts(ROWS // 4), self.collected)
        return {name: found[name] for name in sites}

    @property
    def _how(self) -> dict[str, Any]:
        return {"batch": self._batch, "workers": self._workers, "sampling": self.collected}

    def _wide(self, data: ImageData | PromptData, dtype: str, wanted: Several[str] | None = None) -> list[WideStream]:
        """One stream for all sites with the same tokens, if any of them is wanted.

        Those that nobody wants stay in it: a run that goes on counts on the same rows in its buffer.
        """
        groups: dict[Any, list[str]] = defaultdict(list)
        for name in self.metas:
            groups[alike(self._adapted.site(name), self.collected)].append(name)
        return [
            WideStream(self._adapted, names, data, self._policy, dtype=dtype, **self._how)
            for names in groups.values()
            if wanted is None or any(name in wanted for name in names)
        ]
