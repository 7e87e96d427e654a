"""Names of the kinds of dictionary, and `make_sae`."""

import inspect
from collections.abc import Callable
from typing import Any

from visae.registry import Registry, UnknownName
from visae.sae.dictionary import Dictionary

Builder = Callable[..., Dictionary]
KINDS: Registry[Builder] = Registry("kind of dictionary")
"""Kind to builder; a builder takes `d`, `n_latents` and its options by name."""


def kinds() -> list[str]:
    """Names that `make_sae` knows."""
    return list(KINDS)


def kind_options(kind: str) -> dict[str, Any]:
    """Options of a kind and their defaults.

    Raises:
        UnknownName: for an unknown kind.
    """
    parameters = inspect.signature(KINDS[kind]).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("d", "n_latents")}


def make_sae(kind: str, d: int, n_latents: int, **options: Any) -> Dictionary:
    """A dictionary of a kind, with empty weights: `Trainer.fit` or `initialise` fills them from data.

    Args:
        kind: see `kinds`.
        d: length of a token vector.
        n_latents: width F.
        **options: of the kind, e.g. `k`; see `kind_options`.

    Raises:
        UnknownName: for an unknown kind or option.
        ValueError: for an option out of range.
    """
    for name, number in (("d", d), ("n_latents", n_latents)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    known = kind_options(kind)
    for name in options:
        if name not in known:
            raise UnknownName(f"option of kind {kind!r}:", name, known)
    sae = KINDS[kind](d, n_latents, **options)
    sae.options = {**known, **options}
    return sae
