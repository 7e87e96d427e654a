"""Attacks on erasures, by prompts, seeds, pictures and gradients: every attack is one entry of `ATTACKS`."""

from visae.evaluate.attacks.base import ATTACKS, Arena, Attack, Attacked, attack_table
from visae.evaluate.attacks.starts import ImageStart, Seeds, started
from visae.evaluate.attacks.texts import Texts, synonyms, typos
from visae.evaluate.attacks.tokens import PromptWords, TextualInversion

__all__ = [
    "ATTACKS", "Arena", "Attack", "Attacked", "ImageStart", "PromptWords", "Seeds", "TextualInversion", "Texts",
    "attack_table", "started", "synonyms", "typos",
]  # fmt: skip
