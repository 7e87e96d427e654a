"""The tokenizer of `tiny-dit`: a `T5Tokenizer` that knows every word of the world whole."""

from pathlib import Path

from visae.world.models.clip_tokenizer import pieces

_SPACE = "\u2581"
"""What stands for the space before a word."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;=?_"


def t5_vocabulary() -> list[tuple[str, float]]:
    """(token, log probability) by id: special tokens, words after a space and within others, single letters.

    A word is likelier than its letters, so that texts fall into words wherever they can.
    """
    whole = [(space + piece, -1.0) for piece in pieces() for space in (_SPACE, "") if len(piece) > 1]
    single = [(space + letter, -10.0) for letter in _LETTERS for space in (_SPACE, "")]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -5.0), *whole, *single]


def write_t5_tokenizer(target: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `T5Tokenizer.from_pretrained` reads."""
    from transformers import T5Tokenizer

    T5Tokenizer(vocab=t5_vocabulary(), extra_ids=0).save_pretrained(target)
