"""Tokens of prompts at a site of a text encoder, with the numbers that the tokenizer gave their words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visae.data.prompts import load_prompts
from visae.pipelines import AdaptedPipeline
from visae.select.collecting import content_tokens, token_ids
from visae.sites import Site
from visae.store.batches import split_into
from visae.store.forward import as_torch
from visae.store.sampling import Sampling
from visae.store.stream import Stream


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """Tokens of n prompts, each padded to T places.

    Attributes:
        ids: `[n, T]` numbers in the tokenizer's vocabulary.
        content: `[n, T]` bool, which tokens belong to the prompts: not the first special one, nothing after the end.
        x: `[n, T, d]` float32, what flows through the site.
    """

    ids: Tensor
    content: Tensor
    x: Tensor


@torch.no_grad()
def prompt_tokens(pipeline: AdaptedPipeline, site: str | Site, texts: Sequence[str], batch: int = 32) -> PromptTokens:
    """Runs the text encoder of a site on texts.

    Args:
        pipeline: with the text encoder.
        site: of the text encoder.
        texts: the prompts.
        batch: prompts at a time.

    Raises:
        ValueError: if the site is none of a text encoder.
    """
    stream = Stream(pipeline, site, load_prompts(list(texts)), dtype="float32", batch=batch, sampling=Sampling("text"))
    ids, content, rows = [], [], []
    with token_ids(stream, True) as seen:
        for part, found in stream.extracted(split_into(list(range(len(texts))), batch)):
            n = len(part.notes)
            ids.append(seen[-1][:n])
            content.append(content_tokens(seen[-1][:n], stream))
            rows.append(as_torch(found, stream.meta.dtype).float())
    return PromptTokens(torch.cat(ids), torch.cat(content), torch.cat(rows))
