"""Words that every text encoder of a pipeline reads as one token each, and vectors in their place, with gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visae.pipelines import AdaptedPipeline


@dataclass(frozen=True)
class Reader:
    """A text encoder.

    Attributes:
        tokenizer: its tokenizer.
        tables: modules that look tokens up; more than one only if they share their weights.
    """

    tokenizer: Any
    tables: tuple[nn.Module, ...]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, without those that mark beginning and end."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return found


class Words:
    """The words of a pipeline's text encoders.

    Only words of letters are among them that every tokenizer reads as one token, alone and beside one another: a row of
    them, with spaces between, is a prompt that anybody can type.

    Attributes:
        words: V of them, sorted.
        vectors: of each text encoder, `[V, d]` float32 what it looks up for each word.

    Args:
        pipeline: the pipeline.

    Raises:
        ValueError: if it takes no texts, or if its text encoders share no words.
    """

    def __init__(self, pipeline: AdaptedPipeline):
        self.readers = _readers(pipeline)
        shared = sorted(set.intersection(*(_single(reader) for reader in self.readers)))
        if not shared:
            raise ValueError(f"the text encoders of {type(pipeline.pipe).__name__} share no word that is one token")
        self.words = shared
        self._ids = [torch.tensor([ids[0] for ids in reader.ids(shared)]) for reader in self.readers]
        self.vectors = [_looked_up(reader, ids) for reader, ids in zip(self.readers, self._ids, strict=True)]

    def unused(self, texts: Sequence[str]) -> str:
        """A word that stands in none of some texts.

        Raises:
            ValueError: if there is none.
        """
        taken = [{i for ids in reader.ids(texts) for i in ids} for reader in self.readers]
        for number in reversed(range(len(self.words))):
            if all(int(ids[number]) not in its for ids, its in zip(self._ids, taken, strict=True)):
                return self.words[number]
        raise ValueError("every word of the text encoders is in the prompts, so none can mark a place; shorten them")

    @contextmanager
    def embedded(self, word: str, vectors: Sequence[Tensor]) -> Iterator[None]:
        """Inside the `with`, text encoders look up given vectors where a word stands.

        Where the vectors require gradients, these are enabled from then on until the pipeline's own `no_grad` ends.

        Args:
            word: that marks the places.
            vectors: of each text encoder, `[k, d]`; every prompt in which the word is has it k times.
        """
        number, handles = self.words.index(word), list[Any]()
        for reader, ids, its in zip(self.readers, self._ids, vectors, strict=True):
            hook = partial(_exchange, int(ids[number]), its)
            handles += [table.register_forward_hook(hook, with_kwargs=True) for table in reader.tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _exchange(mark: int, vectors: Tensor, _module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor | None:
    ids: Tensor = args[0] if args else next(iter(kwargs.values()))
    at = ids == mark
    counts = set(at.sum(-1).tolist()) - {0}
    if not counts:
        return None
    if counts != {len(vectors)}:
        raise ValueError(
            f"a prompt has {sorted(counts)} of {len(vectors)} places for vectors: it is longer than the text encoder "
            "reads; shorten it, or attack with fewer tokens"
        )
    if vectors.requires_grad:
        torch.set_grad_enabled(True)
    changed = out.clone()
    changed[at] = vectors.to(out).repeat(int(at.sum()) // len(vectors), 1)
    return changed


def _readers(pipeline: AdaptedPipeline) -> list[Reader]:
    found = []
    for part in pipeline.texts:
        encoder = getattr(pipeline.pipe, part.name)
        tokenizer = getattr(pipeline.pipe, part.name.replace("text_encoder", "tokenizer"), None)
        if encoder is None or tokenizer is None:
            continue
        table = encoder.get_input_embeddings()
        same = [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight]
        found.append(Reader(tokenizer, tuple(same)))
    if not found:
        raise ValueError(f"{type(pipeline.pipe).__name__} takes no texts, so there are no tokens to attack with")
    return found


def _single(reader: Reader) -> set[str]:
    """Words that a tokenizer reads as one token, the same alone and after another word."""
    known = reader.tokenizer
    decoded = known.batch_decode([[i] for i in sorted(known.get_vocab().values())])
    texts = sorted({text.strip() for text in decoded if text.strip().isalpha() and text.strip().islower()})
    alone, twice = reader.ids(texts), reader.ids([f"{text} {text}" for text in texts])
    return {t for t, one, two in zip(texts, alone, twice, strict=True) if len(one) == 1 and two == one * 2}


@torch.no_grad()
def _looked_up(reader: Reader, ids: Tensor) -> Tensor:
    table = reader.tables[0]
    found: Tensor = table(ids.to(next(table.parameters()).device))
    return found.float()
