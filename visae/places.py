"""Small steps from a reading to a site: which tensor is meant, how it is named, where its tokens lie."""

from dataclasses import replace

from torch import nn

from visae.naming import HEADS, Naming
from visae.readings import Call, Reading
from visae.sites import Site, SiteKind


def is_text(reading: Reading) -> bool:
    """Whether a tensor holds the tokens of a text and nothing else."""
    return bool(reading.kinds) and set(reading.kinds) == {"text"}


def pick(readings: list[Reading], call: Call, kind: SiteKind, index: int | str | None, text: bool) -> Reading | None:
    """The tensor that a site means, of those that a module takes or gives."""
    if index is not None:
        return next((one for one in readings if one.index == index and one.layout), None)
    if text:
        return next((one for one in readings if is_text(one)), None)
    return call.taken if kind == "input" else call.output


def without_text(name: str) -> tuple[str, bool]:
    """A name without the part `text`, which asks for the text's tokens, and whether it was there."""
    parts = name.split(".")
    place = max((i for i, part in enumerate(parts) if part == "text"), default=None)
    return (name, False) if place is None else (".".join(parts[:place] + parts[place + 1 :]), True)


def continues(last: Call, call: Call) -> bool:
    """Whether a module gives the patches of the last block again, as a norm does (a map may change its width)."""
    a, b = last.output, call.output
    if a is None or b is None or a.map is None or b.map is None or a.layout != b.layout or HEADS.search(call.path):
        return False
    return a.map.grid == b.map.grid and (a.d == b.d or a.layout not in ("NLC", "LNC"))


def place_of(site: Site) -> tuple[object, ...]:
    """What tells a tensor from all others: kinds that are some module's output are one kind here."""
    side = site.kind if site.kind in ("input", "delta", "heads", "head") else "output"
    return site.path, side, site.head, site.index


def n_heads(module: nn.Module, naming: Naming) -> int | None:
    """How many heads an attention module has, by itself or by its configuration."""
    for owner in (module, getattr(module, "config", None), getattr(module, "attention", None)):
        for attribute in naming.heads:
            if isinstance(count := getattr(owner, attribute, None), int):
                return count
    return None


def one_head(heads: Site, name: str, j: int) -> Site:
    """The site of one head out of that of all.

    Raises:
        ValueError: if there are fewer heads.
    """
    if heads.n_heads is None or not 0 <= j < heads.n_heads:
        raise ValueError(f"{heads.path!r} has heads 0 to {(heads.n_heads or 0) - 1}, got {j}")
    return replace(heads, name=name, kind="head", head=j, d=heads.d // heads.n_heads)


def make_site(name: str, path: str, kind: SiteKind, reading: Reading) -> Site:
    """The site of a tensor that was read as tokens."""
    assert reading.layout is not None
    place = dict(grid=None, stride=None) if reading.map is None else _place(reading)
    return Site(
        name=name,
        path=path,
        kind=kind,
        layout=reading.layout,
        d=reading.d,
        token_kinds=reading.kinds,
        index=reading.index,
        overwritten=reading.overwritten,
        **place,
    )  # type: ignore[arg-type]


def _place(reading: Reading) -> dict[str, object]:
    """Grid, stride, offset and reach of a reading that has patches."""
    assert reading.map is not None
    axes = (reading.map.rows, reading.map.columns)
    ends = [axis.reach(reading.map.input_hw[i]) for i, axis in enumerate(axes)]
    tiles = all(axis.begin == low and axis.begin + axis.size * axis.spacing == high
                for axis, (low, high) in zip(axes, ends, strict=True))  # fmt: skip
    return {
        "grid": reading.map.grid,
        "stride": (axes[0].spacing, axes[1].spacing),
        "offset": (axes[0].begin, axes[1].begin),
        "reach": None if tiles else (ends[0][0], ends[1][0], ends[0][1], ends[1][1]),
    }


def unread(path: str, kind: SiteKind, call: Call) -> str:
    """Why a module's tensors cannot be tapped: what they are, and what to do."""
    shapes = [call.taken.shape] if kind == "input" and call.taken else [given.shape for given in call.given]
    what = f"module {path!r}" if path else "the model"
    return (
        f"{what} {'takes' if kind == 'input' else 'gives'} tensors of shape "
        f"{', '.join(map(str, shapes)) or 'none'} for a batch of 2, which hold neither tokens on a grid, nor a "
        "feature map, nor one vector per image; tap the module around it"
    )
