"""The tokenizer of the shipped pipelines: a `CLIPTokenizer` whose byte pairs make every word of the world one token."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from visae.world.lexicon import words

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CONTEXT = 40
"""Tokens per text: room for the longest caption, its start and its end, as in `tiny-clip`."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;=?_"


def pieces() -> list[str]:
    """What captions are made of once split at spaces and punctuation, sorted."""
    return sorted({piece for word in words() for piece in re.findall(r"[a-z]+|[^a-z\s]", word)})


def merges(known: list[str]) -> list[tuple[str, str]]:
    """Byte pairs in the order in which they are merged, until each of the given words is a single token.

    Source:
        Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016, algorithm 1, on a list in
        which every word occurs once; the alphabetically first of the most frequent pairs is merged.
    """
    spelt = [(*word[:-1], word[-1] + WORD_END) for word in known]
    found: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelt for pair in pairwise(word))
        if not pairs:
            return found
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        spelt = [_merged(word, best) for word in spelt]


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    at = 0
    while at < len(word):
        if word[at : at + 2] == pair:
            out.append(pair[0] + pair[1])
            at += 2
        else:
            out.append(word[at])
            at += 1
    return tuple(out)


def vocabulary() -> list[str]:
    """All tokens by id: single characters, the same at the end of a word, the merges, start and end."""
    return [
        *_ALPHABET,
        *(letter + WORD_END for letter in _ALPHABET),
        *("".join(pair) for pair in merges(pieces())),
        START,
        END,
    ]


def write_clip_tokenizer(target: Path) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json`, which `CLIPTokenizer.from_pretrained` reads."""
    target.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary())}
    (target / "vocab.json").write_text(json.dumps(ids, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges(pieces()))]
    (target / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
