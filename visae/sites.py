"""Places in a network: `Site` says which tensor, in the order of tokens that every other part of visae expects."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from torch import Tensor

SiteKind = Literal["output", "input", "delta", "attn_out", "cross_out", "heads", "head", "mlp_out", "final", "pooled"]
Layout = Literal["NLC", "LNC", "NCHW", "NHWC", "NC"]


@dataclass(frozen=True)
class Site:
    """One tensor of a model, found by a traced forward pass.

    Attributes:
        name: short alias, e.g. `blocks.9` or `blocks.9.attn_out`.
        path: module path inside the native model, e.g. `visual.transformer.resblocks.9`.
        kind: which tensor of that module; `delta` is its output minus its input.
        layout: how the native tensor is laid out.
        d: length of a token vector.
        token_kinds: kind of every token in the sequence, e.g. `("cls", "patch", "patch", ...)`.
        grid: rows and columns of the patch tokens (they come last, row by row); None where there is none.
        stride: input pixels from one token to the next (rows, columns); None where there is no grid.
        offset: input coordinate where token (0, 0) begins.
        reach: part of the input that some token sees (see `Geometry`); None where there is no grid.
        index: which element (place or key), where the module returns several tensors; None for a plain tensor.
        argument: place or name of the argument that `input` reads and `delta` subtracts; None for the first tensor.
        head: which attention head (kind `head` only).
        n_heads: attention heads of the module (kinds `heads` and `head`).
        overwritten: a later operation of the model works in place on this tensor, so that a tap keeps a copy.
    """

    name: str
    path: str
    kind: SiteKind
    layout: Layout
    d: int
    token_kinds: tuple[str, ...]
    grid: tuple[int, int] | None = None
    stride: tuple[float, float] | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    reach: tuple[float, float, float, float] | None = None
    index: int | str | None = None
    argument: int | str | None = None
    head: int | None = None
    n_heads: int | None = None
    overwritten: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens in the sequence."""
        return len(self.token_kinds)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Kinds of the tokens before the patches."""
        patches = self.grid[0] * self.grid[1] if self.grid else 0
        return self.token_kinds[: len(self.token_kinds) - patches]

    @property
    def stream(self) -> Literal["image", "text"]:
        """Whether the tokens are those of an image or of a text alone."""
        return "text" if set(self.token_kinds) == {"text"} else "image"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for cards; runs of one kind of token are counted: `[["cls", 1], ["patch", 196]]`."""
        runs = [[kind, sum(1 for _ in run)] for kind, run in groupby(self.token_kinds)]
        return {**asdict(self), "token_kinds": runs}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Site":
        """Reverse of `to_dict`."""
        keys = ("grid", "stride", "offset", "reach")
        tuples = {key: tuple(data[key]) if data.get(key) is not None else None for key in keys}
        kinds = tuple(kind for kind, count in data["token_kinds"] for _ in range(count))
        return cls(**{**data, **tuples, "token_kinds": kinds})


def to_tokens(native: Tensor, layout: Layout) -> Tensor:
    """A view of a native tensor as `[n, t, d]`."""
    if layout == "NLC":
        return native
    if layout == "LNC":
        return native.transpose(0, 1)
    if layout == "NCHW":
        return native.flatten(2).transpose(1, 2)
    if layout == "NHWC":
        return native.flatten(1, 2)
    return native.unsqueeze(1)


def from_tokens(tokens: Tensor, native: Tensor, layout: Layout) -> Tensor:
    """Tokens `[n, t, d]` back in the layout, shape and strides of `native`."""
    if layout == "LNC":
        shaped = tokens.transpose(0, 1)
    elif layout == "NCHW":
        shaped = tokens.transpose(1, 2).reshape(native.shape)
    else:
        shaped = tokens.reshape(native.shape)
    return laid_out(shaped, native)


def laid_out(value: Tensor, native: Tensor) -> Tensor:
    """A tensor with the strides of another of its shape, also of one that is a slice of a larger tensor.

    Strides matter: the kernels behind a convolution or a product are chosen by them, and another kernel rounds
    otherwise. What was expanded (stride 0) cannot hold other numbers and comes back as it is.
    """
    expanded = any(step == 0 and size > 1 for step, size in zip(native.stride(), native.shape, strict=True))
    if value.stride() == native.stride() or expanded:
        return value
    return native.new_empty_strided(native.shape, native.stride()).copy_(value)


def tokens_text(site: Site) -> str:
    """The tokens of a site in words, e.g. `1 cls + 4 reg + 16 x 16 patch`."""
    parts = [f"{count} {kind}" for kind, count in Counter(site.prefix).items()]
    return " + ".join(parts + ([f"{site.grid[0]} x {site.grid[1]} patch"] if site.grid else []))


def rows(sites: Mapping[str, Site]) -> Iterator[dict[str, str]]:
    """Rows of the table that `visae sites` prints; heads of a block share a row.

    They hold name, path, kind, native (layout, and which element of what the module gives), shape and tokens.
    """
    for name, site in sites.items():
        if site.kind == "head" and site.head:
            continue
        shown = f"{name}-{(site.n_heads or 1) - 1}" if site.kind == "head" else name
        yield {
            "name": shown,
            "path": site.path or "(the model)",
            "kind": site.kind,
            "native": site.layout if site.index is None else f"{site.layout} [{site.index}]",
            "shape": f"[n, {site.n_tokens}, {site.d}]",
            "tokens": tokens_text(site),
        }
