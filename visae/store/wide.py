"""Rows of several sites from one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from visae.data.sample import ImageData, PromptData
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site, tokens_text
from visae.store.making import making
from visae.store.meta import StoreMeta
from visae.store.sampling import Collection, Sampling
from visae.store.store import Chunk
from visae.store.stream import Stream
from visae.tokens import TokenPolicy


def alike(site: Site, sampling: Sampling | Collection | None = None) -> tuple[Any, ...]:
    """Equal for sites whose tokens one run brings side by side: the same tokens, and of text the same encoder."""
    text = sampling is not None and sampling.mode == "text"
    return site.token_kinds, site.grid, site.path.partition(".")[0] if text else None


class WideStream(Stream):
    """Rows of several sites side by side, `[n, sum of d]`, computed in one forward pass when they are asked for.

    Of a pipeline, one generation brings the rows of all sites. A loader serves them in the order in which a `Stream` of
    the first site would.

    Args:
        model: the model.
        sites: aliases, module paths or `Site`s, which must have the same tokens.
        data: see `Stream`.
        policy: see `Stream`.
        **options: see `Stream`.

    Attributes:
        metas: what makes the rows of each site, by name.
        widths: columns of each site, by name, in their order.

    Raises:
        ValueError: for no site, one named twice, or sites whose tokens differ.
    """

    def __init__(
        self,
        model: AdaptedModel | AdaptedPipeline,
        sites: Sequence[str | Site],
        data: ImageData | PromptData,
        policy: TokenPolicy | None = None,
        **options: Any,
    ):
        found = [model.site(site) for site in sites]
        if not found or len({site.name for site in found}) < len(found):
            raise ValueError(f"name at least one site, each once; got {[site.name for site in found]}")
        super().__init__(model, found[0], data, policy, **options)
        for site in found[1:]:
            if alike(site, self.meta.collected) != alike(self.site, self.meta.collected):
                raise ValueError(
                    f"one forward pass serves sites with the same tokens; {self.site.name} has "
                    f"{tokens_text(self.site)}, {site.name} has {tokens_text(site)}: store them, or take one at a time"
                )
        own = self.meta
        self.making = making(model, found, data, own.policy, own.dtype, own.collected)
        self.sites = found
        self.metas = {
            site.name: StoreMeta.describe(model, site, data, own.policy, own.dtype, own.collected) for site in found
        }
        self.widths = {site.name: site.d for site in found}
        self.d = sum(self.widths.values())

    def __repr__(self) -> str:
        return f"WideStream({self.meta.model} {', '.join(self.widths)}, {self.meta.data}: {self.n_rows:,} rows)"

    def parts(self, rows: int = 65536) -> Iterator[dict[str, Chunk]]:
        """`chunks` by site."""
        for chunk in self.chunks(rows):
            columns = torch.split(chunk.rows, list(self.widths.values()), dim=1)
            yield {name: replace(chunk, rows=own) for name, own in zip(self.widths, columns, strict=True)}
