"""How rows come about: of images, by one forward pass each; of prompts, by a pipeline that makes images of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from visae.data.sample import Data
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.batches import Batch, PromptReader, Reader
from visae.store.forward import Pending, forward_pass
from visae.store.generating import Collecting, Generations, Texts
from visae.store.meta import StoreMeta
from visae.store.noising import Noised
from visae.store.probing import collection
from visae.store.sampling import Collection, Sampling
from visae.tokens import TokenPolicy

_PASSES: dict[str, type[Collecting]] = {"generate": Generations, "noise": Noised, "text": Texts}


class Pass(Protocol):
    """Runs batches through a model."""

    def __call__(self, batch: Batch) -> Pending:
        """Sends a batch through the model and its rows on their way to the CPU."""
        ...

    def seconds(self, batch: Batch) -> float:
        """Duration of a batch."""
        ...


@dataclass(frozen=True)
class Making:
    """What is needed to make rows.

    Attributes:
        meta: what decides them; of several sites, of the first.
        reader: brings samples or prompts.
        sites: where they are read; of several, which have the same tokens, rows come side by side.
        start: begins passes through the model, in a context that removes every hook.
    """

    meta: StoreMeta
    reader: Reader
    sites: list[Site]
    start: Callable[[], AbstractContextManager[Pass]]


def making(
    model: AdaptedModel | AdaptedPipeline,
    sites: Sequence[str | Site],
    data: Any,
    policy: TokenPolicy | None,
    dtype: str | torch.dtype,
    sampling: Sampling | Collection | None = None,
) -> Making:
    """How rows of a data set come about.

    Args:
        model: one that sees images, or a pipeline.
        sites: where to read.
        data: images, or prompts where a pipeline makes images of them.
        policy: which tokens are kept (of every step and branch of a pipeline); by default patches, of a site of text
            its text.
        dtype: of the rows.
        sampling: how a pipeline runs; what is known of an earlier run saves a start of the pipeline.

    Raises:
        ValueError: if model, data and sampling do not fit together.
    """
    found = [model.site(site) for site in sites]
    if isinstance(model, AdaptedModel):
        if sampling is not None:
            raise ValueError(f"{model.id} sees images and makes none: it takes no steps, guidance or branch")
        vision: AdaptedModel = model
        policy = policy or TokenPolicy()
        meta = StoreMeta.describe(vision, found[0], data, policy, dtype)
        reader = Reader(vision, found[0], data, policy)
        return Making(meta, reader, found, lambda: forward_pass(vision, found, meta.dtype))
    pipeline: AdaptedPipeline = model
    policy = policy or TokenPolicy(("text",) if found[0].stream == "text" else ("patch",))
    known = sampling if isinstance(sampling, Collection) else collection(pipeline, found[0], sampling or Sampling())
    _check_data(pipeline, data, known)
    meta = StoreMeta.describe(pipeline, found[0], data, policy, dtype, known)
    kind = _PASSES[known.mode]
    prompts = PromptReader(pipeline, found[0], data, policy, known)
    return Making(meta, prompts, found, lambda: kind(pipeline, found, meta.dtype, known))


def _check_data(model: AdaptedPipeline, data: Data, known: Collection) -> None:
    """Refuses images where prompts are wanted, and the reverse."""
    if len(data) == 0:
        return
    images = not hasattr(data[0], "seed")
    if images != (known.mode == "noise"):
        wanted, came = ("images", "prompts") if known.mode == "noise" else ("prompts", "images")
        raise ValueError(
            f"{model.id} collects in the mode {known.mode!r}, which takes {wanted}, but {data.name} holds {came}: "
            + ("noise is added to given images" if known.mode == "noise" else "see `visae.data.load_prompts`")
        )
