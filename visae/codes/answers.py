"""What a code table answers with, and what it shares with live heat maps: the ranking, and the sides of a latent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Top:
    """Items in which a latent fires most, strongest first.

    Attributes:
        items: `[n]` numbers of the items.
        values: `[n]` the latent's value furthest from zero in each.
        y: `[n]` row on the token grid where that is, -1 for a token without a place.
        x: `[n]` column, likewise.
    """

    items: np.ndarray
    values: np.ndarray
    y: np.ndarray
    x: np.ndarray


@dataclass(frozen=True)
class ClassStatistics:
    """How one latent behaves on the items of each value of a factor.

    Attributes:
        values: the V values of the factor.
        count: `[V]` items that show it.
        active: `[V]` of those, items in which the latent fires.
        rate: `[V]` `active / count`, NaN for a value that no item shows.
        mean: `[V]` mean over those items of the latent's largest value (0 where it is silent), NaN likewise.
        token_mean: `[V]` mean over all pooled tokens of those items (the class mean of Mammo-SAE), NaN likewise.
    """

    values: list[str]
    count: np.ndarray
    active: np.ndarray
    rate: np.ndarray
    mean: np.ndarray
    token_mean: np.ndarray


def rank_latents(latent: np.ndarray, value: np.ndarray, norm: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """From entries (latent, value): the `n` latents with the largest |value| * norm, and that value of each."""
    order = np.lexsort((-np.abs(value), latent))
    latent, value = latent[order], value[order]
    first = np.ones(len(latent), bool)
    first[1:] = np.diff(latent) != 0
    latent, value = latent[first], value[first]
    best = np.argsort(-np.abs(value) * norm[latent], kind="stable")[:n]
    return latent[best], value[best]


def one_side(maps: np.ndarray, signs: Sequence[int] | None, signed: bool) -> np.ndarray:
    """The side of each latent that is asked for, pointing up.

    Args:
        maps: `[L, ...]` values of L latents.
        signs: of each, 1 or -1: values times the sign, those of the other side 0. None leaves values as they are.
        signed: whether the dictionary has negative codes at all.

    Raises:
        ValueError: for other signs, another number of them, or -1 where no code is negative.
    """
    if signs is None:
        return maps
    if len(signs) != len(maps) or any(s not in (1, -1) for s in signs) or (not signed and -1 in signs):
        raise ValueError(
            f"signs are 1 for each of the {len(maps)} latents, or -1 where the dictionary is signed; got {list(signs)} "
            f"for a{'' if signed else 'n un'}signed one"
        )
    return (maps * np.array(signs, maps.dtype).reshape(-1, *[1] * (maps.ndim - 1))).clip(0)
