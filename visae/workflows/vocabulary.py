"""Prompts that say every word a tokenizer knows: what dictionaries at the inputs of text encoders are trained on."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from visae.pipelines import AdaptedPipeline
from visae.select.collecting import tokenizer_of

TOKENS = 60_000
"""Tokens to train on, at least; words are said again, at other places, until there are so many."""


def vocabulary_prompts(pipeline: AdaptedPipeline, site: str, seed: int = 0, tokens: int = TOKENS) -> list[str]:
    """Prompts of all words in the vocabulary of a site's tokenizer, in random order, each half as long as fits.

    Args:
        pipeline: with the tokenizer.
        site: of the text encoder.
        seed: of the order.
        tokens: how many they have together, at least; padding counts.
    """
    known = pipeline.site(site)
    tokenizer = tokenizer_of(pipeline.pipe, known.path)
    special = set(tokenizer.all_special_ids)
    spoken = (tokenizer.decode([i]).strip() for i in range(len(tokenizer)) if i not in special)
    words = list(dict.fromkeys(word for word in spoken if word.isalpha()))
    if not words:
        return []
    generator, length = np.random.default_rng(seed), max(1, (known.n_tokens - 2) // 2)
    prompts: list[str] = []
    while len(prompts) * known.n_tokens < tokens:
        order = generator.permutation(len(words))
        prompts += [" ".join(words[i] for i in order[k : k + length]) for k in range(0, len(words), length)]
    return prompts


def write_prompts(file: Path, texts: Iterable[str]) -> str:
    """Writes a file with a prompt a line, each once; returns its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(dict.fromkeys(texts)), encoding="utf8")
    return str(file)
