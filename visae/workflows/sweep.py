"""Which dictionaries a sweep makes: settings crossed with one another."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from visae.registry import UnknownName
from visae.sae import kind_options
from visae.workflows.options import Schemes


@dataclass(frozen=True)
class Setting:
    """One dictionary of a sweep.

    Attributes:
        site: where it reads.
        kind: kind of dictionary.
        latents: width; None takes `expansion` times the token's length.
        expansion: width as a multiple of the token's length.
        k: codes per token; None for kinds that have no such number.
        lr: peak learning rate; None takes the rule of width and budget.
        normaliser: of the inputs.
        mfr: coefficient that draws it towards the same with other seeds, see `TrainConfig.mfr`.
        seed: of the weights.
        options: further options of the kind.
        schemes: how its training departs from that of the sweep, see `Schemes`.
    """

    site: str
    kind: str
    latents: int | None = None
    expansion: float = 8
    k: float | None = None
    lr: float | None = None
    normaliser: str = "scale"
    mfr: float = 0.0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    schemes: dict[str, Any] = field(default_factory=dict)

    def width(self, d: int) -> int:
        """Latents for tokens of length d."""
        return self.latents or round(self.expansion * d)

    def name(self, d: int) -> str:
        """Name of its folder; what is not left to a rule is in it, so that a longer sweep keeps the names."""
        parts = [self.site, self.kind, *([] if self.k is None else [f"k{self.k:g}"]), f"f{self.width(d)}"]
        parts += [] if self.lr is None else [f"lr{self.lr:g}"]
        parts += [] if self.normaliser == "scale" else [self.normaliser]
        parts += [f"mfr{self.mfr:g}"] if self.mfr else []
        parts += [f"{key}{_text(value)}" for own in (self.options, self.schemes) for key, value in sorted(own.items())]
        return "-".join([*parts, f"s{self.seed}"])

    def without_seed(self) -> "Setting":
        """The same with seed 0: equal for dictionaries that differ in nothing but the seed."""
        return replace(self, seed=0)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "".join(c if c.isalnum() or c in "._" else "_" for c in str(value))
    return f"{value:g}"


KEYS = tuple(one.name for one in fields(Setting))
TABLES = ("options", "schemes")
"""Those that map names to values, each crossed by itself."""


def expand(base: Mapping[str, Any], cases: Sequence[Mapping[str, Any]] = ()) -> list[Setting]:
    """Settings of a sweep: every value of every list with every value of every other.

    Args:
        base: `Setting` keys to a value or a list of values; `options` and `schemes` map names to values or lists.
        cases: each overrides the base for a sweep of its own (its `options` and `schemes` are laid over those of the
            base); the results come one after the other. None means the base alone.

    Returns:
        Each setting once; a list of k counts for kinds that have it, others take part once.

    Raises:
        UnknownName: for a key that no setting has, an option that a kind does not have, or an unknown scheme.
        ValueError: for an empty list, or a value that a scheme cannot have.
    """
    found: dict[str, Setting] = {}
    for case in cases or [{}]:
        for key in case:
            if key not in KEYS:
                raise UnknownName("setting of a case", key, KEYS)
        merged = {**base, **case}
        lists = [key for key in KEYS if key in merged and key not in TABLES]
        axes = [[(key, value) for value in _values(key, merged[key])] for key in lists]
        for table in TABLES:
            own = {**base.get(table, {}), **case.get(table, {})}
            axes += [[(table, (key, value)) for value in _values(f"{table} {key}", own[key])] for key in own]
        for picked in itertools.product(*axes):
            setting = _setting(picked)
            found.setdefault(repr(setting), setting)
    return list(found.values())


def _values(key: str, given: Any) -> list[Any]:
    """A value, or several."""
    if not isinstance(given, list | tuple):
        return [given]
    if not given:
        raise ValueError(f"{key} has an empty list of values: leave it out, or name one")
    return list(given)


def _setting(picked: Sequence[tuple[str, Any]]) -> Setting:
    plain = {key: value for key, value in picked if key not in TABLES}
    options, schemes = (dict(value for key, value in picked if key == table) for table in TABLES)
    known = kind_options(plain["kind"])
    for key in options:
        if key not in known:
            raise UnknownName(f"option of kind {plain['kind']!r}:", key, known)
    k = plain.get("k")
    k = None if "k" not in known or k is None else int(k) if k == int(k) else k
    if plain.get("latents") is not None:
        plain.pop("expansion", None)
    return Setting(**{**plain, "k": k, "options": options, "schemes": _schemes(schemes)})


def _schemes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with values of the types that they have in `Schemes`."""
    import pydantic

    known = [one.name for one in fields(Schemes)]
    for key in given:
        if key not in known:
            raise UnknownName("scheme", key, known)
    try:
        read = asdict(pydantic.TypeAdapter(Schemes).validate_python(dict(given)))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ValueError(f"scheme {key} cannot be {given[key]!r}: {first['msg']}") from error
    return {key: read[key] for key in given}
