"""Names of the kinds of dictionary, what they are, and `make_sae`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visae.registry import Registry, UnknownName
from visae.sae.dictionary import Dictionary
from visae.sae.normalisers import NORMALISERS

Builder = Callable[..., Dictionary]
KINDS: Registry[Builder] = Registry("kind of dictionary")
"""Kind to builder; a builder takes `d`, `n_latents` and its options by name."""


@dataclass(frozen=True)
class About:
    """What the registry says of a kind.

    Attributes:
        formula: the codes, or the term of the loss, that set it apart; `a` are pre-activations, `z` codes.
        paper: authors and year.
        experimental: why to think twice: negative results, in the literature or in our own runs. Empty if none.
    """

    formula: str
    paper: str
    experimental: str = ""

    @property
    def status(self) -> str:
        """`stable`, or `experimental: ` and the reason."""
        return f"experimental: {self.experimental}" if self.experimental else "stable"


ABOUT: dict[str, About] = {}
"""Kind to its description; kinds of other packages that register without one are missing."""


def register_kind(name: str, *, formula: str, paper: str, experimental: str = "") -> Callable[[Builder], Builder]:
    """Decorator that files the builder of a kind together with what `visae kinds` and its docstring say of it.

    Raises:
        ValueError: if the name is taken.
    """
    about = About(formula, paper, experimental)

    def add(builder: Builder) -> Builder:
        KINDS.register(name)(builder)
        ABOUT[name] = about
        builder.__doc__ = _told(about, inspect.getdoc(builder) or "")
        return builder

    return add


def _told(about: About, doc: str) -> str:
    """A builder's docstring with its description after the summary, for `help`."""
    summary, _, rest = doc.partition("\n\n")
    facts = f"    {about.formula}\n\nPaper: {about.paper}. Status: {about.status}."
    return "\n\n".join(part for part in (summary, facts, rest) if part)


def status(kind: str) -> str:
    """`About.status` of a kind, for cards; empty for what the registry does not describe (baselines, ensembles)."""
    return ABOUT[kind].status if kind in ABOUT else ""


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


def make_sae(kind: str, d: int, n_latents: int, *, normaliser: str = "scale", **options: Any) -> Dictionary:
    """A dictionary of a kind, with empty weights: `Trainer.fit` or `initialise` fills them from data.

    Args:
        kind: see `kinds`.
        d: length of a token vector.
        n_latents: width F.
        normaliser: of the inputs: `scale`, `none`, `unit`, `layer_norm`, `whiten`; see `visae.sae.normalisers`.
        **options: of the kind, e.g. `k`; see `kind_options`.

    Raises:
        UnknownName: for an unknown kind, normaliser or option.
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
    sae.normaliser = NORMALISERS[normaliser](d)
    whole = {**known, **options}
    sae.options = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}  # as JSON
    return sae
