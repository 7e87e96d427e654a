"""The word-level tokenizer of `tiny-clip`: small, shipped as JSON, readable by `tokenizers` and `transformers`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from visae.world.lexicon import words

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
_PUNCTUATION = (",", ".", "-", "!", "?", "'")


class WorldTokenizer:
    """Texts to token ids, called the way open_clip calls its tokenizers.

    Args:
        path: a `tokenizer.json`.
        context_length: tokens per text, padded or cut to.
    """

    def __init__(self, path: Path, context_length: int) -> None:
        self.inner = Tokenizer.from_file(str(path))
        self.context_length = context_length
        self.vocab_size = self.inner.get_vocab_size()

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids `[n, context]` (int64); a text that is too long loses its last words, never its end token."""
        length = context_length or self.context_length
        self.inner.enable_truncation(length)
        self.inner.enable_padding(length=length, pad_id=0, pad_token=PAD)
        batch = self.inner.encode_batch([texts] if isinstance(texts, str) else list(texts))
        return torch.tensor([entry.ids for entry in batch])

    def unknown(self, text: str) -> list[str]:
        """Words of `text` outside the vocabulary."""
        pieces = re.findall(r"\w+|[^\w\s]+", text.lower())
        return [piece for piece in pieces if self.inner.token_to_id(piece) is None]


def vocabulary() -> list[str]:
    """All tokens by id. The end token comes last: open_clip pools the text tower at the highest id."""
    pieces = {piece for word in words() for piece in re.findall(r"\w+|[^\w\s]+", word)}
    return [PAD, UNKNOWN, START, *sorted(pieces | set(_PUNCTUATION)), END]


def write_tokenizer(target: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` with which transformers reads it."""
    tokens = vocabulary()
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokens.index(START)), (END, tokens.index(END))]
    )
    target.mkdir(parents=True, exist_ok=True)
    inner.save(str(target / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "bos_token": START,
        "eos_token": END,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
