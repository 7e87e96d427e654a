"""Input normalisers: how raw tokens become the `u` that a dictionary works on, and how its output comes back.

All have the form `u = T (x - centre - shift) / scale`: T and centre are fixed by statistics of the data, `scale` and
`shift` are numbers of the token itself, where a normaliser has such. What belongs to the data lies in buffers; what
belongs to a token travels with its `Codes`.
"""

import copy

import torch
from torch import Tensor, nn

from visae.registry import Registry
from visae.sae.moments import Moments

EPS = 1e-3
"""Added to the eigenvalues before whitening, as a share of their mean: directions without variance stay small."""


class Normaliser(nn.Module):
    """Base of the normalisers, and the one that does nothing.

    A new one registers itself and overrides what differs: `turn` and `back` where it is a fixed linear map, `own`
    where tokens have numbers of their own.

    Attributes:
        name: in the registry.
        centred: whether `E u = 0`; if not, the decoder's bias starts at the mean of u.
        per_token: whether tokens have a scale (and shift) of their own.
        covariance: whether `fit` needs the covariance of the data, beside mean and variance.
        mean: `[d]` mean of the data, kept by all: metrics are centred by it, whether the inputs are or not.
    """

    name: str
    centred: bool = False
    per_token: bool = False
    covariance: bool = False
    mean: Tensor

    def __init__(self, d: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))

    @torch.no_grad()
    def fit(self, moments: Moments, _rows: Tensor) -> None:
        """Takes its statistics from the moments of a stretch of the data and some rows `[n, d]` of it.

        Raises:
            ValueError: if they do not suffice.
        """
        self.mean.copy_(moments.mean)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`u [n, d]` of raw rows, and the rows' own `scale [n]` and `shift [n]`, None where the part has none."""
        return self.turn(x), None, None

    def restore(self, u: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Raw rows `[n, d]` from `u`, with what `forward` told of them."""
        del scale, shift
        return self.back(u) + self.centre

    def turn(self, x: Tensor) -> Tensor:
        """Raw rows to u, for normalisers that are one fixed map."""
        return x

    def back(self, rows: Tensor) -> Tensor:
        """What a difference `[m, d]` between two u is in raw space; for a typical token where tokens differ."""
        return rows

    @property
    def centre(self) -> Tensor:
        """`[d]` raw row that becomes 0."""
        return torch.zeros_like(self.mean)

    def folded(self) -> tuple["Normaliser", Tensor, Tensor]:
        """What stays when weights take over what they can.

        Returns:
            The normaliser that stays, with outputs v, and the matrix `[d, d]` and point `[d]` with
            `u = matrix (v - point)`; `back` is the matrix's inverse.
        """
        left = Raw(len(self.mean)).to(self.mean)
        left.mean.copy_(self.mean)
        return left, self.turn(torch.eye(len(self.mean)).to(self.mean) + self.centre).T, self.centre.clone()


NORMALISERS: Registry[type[Normaliser]] = Registry("normaliser")
"""Name -> class, made with the length d of a token."""


def normalisers() -> list[str]:
    """Names that `make_sae(..., normaliser=...)` knows."""
    return list(NORMALISERS)


@NORMALISERS.register("none")
class Raw(Normaliser):
    """`u = x`, for data that have been scaled already; losses and coefficients are then in the data's own units."""

    name = "none"


@NORMALISERS.register("scale")
class Scale(Normaliser):
    """`u = s (x - mean)`, with the one scalar for which `E|u|^2 = d`: shape and directions stay what they are."""

    name = "scale"
    centred = True
    scale: Tensor

    def __init__(self, d: int):
        super().__init__(d)
        self.register_buffer("scale", torch.tensor(1.0))

    @torch.no_grad()
    def fit(self, moments: Moments, rows: Tensor) -> None:
        """See `Normaliser.fit`."""
        super().fit(moments, rows)
        self.scale.fill_((len(self.mean) * moments.n / moments.total) ** 0.5)

    def turn(self, x: Tensor) -> Tensor:
        """See `Normaliser.turn`."""
        return (x - self.mean) * self.scale

    def back(self, rows: Tensor) -> Tensor:
        """See `Normaliser.back`."""
        return rows / self.scale

    @property
    def centre(self) -> Tensor:
        """See `Normaliser.centre`."""
        return self.mean


@NORMALISERS.register("whiten")
class Whiten(Normaliser):
    """`u = W (x - mean)`, with `W = V diag(g / sqrt(l + eps mean l)) V^T` of the covariance `V diag(l) V^T` (ZCA).

    The scalar g makes `E|u|^2 = d`. Atoms live in the whitened space: `directions` brings them back, and the loss
    counts every direction of the data alike. ZCA turns nothing more than whitening needs (Bell and Sejnowski 1997).
    """

    name = "whiten"
    centred = True
    covariance = True
    matrix: Tensor
    inverse: Tensor

    def __init__(self, d: int):
        super().__init__(d)
        self.register_buffer("matrix", torch.eye(d))
        self.register_buffer("inverse", torch.eye(d))

    @torch.no_grad()
    def fit(self, moments: Moments, rows: Tensor) -> None:
        """See `Normaliser.fit`.

        Raises:
            ValueError: without a covariance, or with one of no more rows than dimensions.
        """
        super().fit(moments, rows)
        if moments.products is None:
            raise ValueError("whitening needs the covariance of the data: Moments(d, covariance=True)")
        if moments.n <= len(self.mean):
            raise ValueError(
                f"whitening {len(self.mean)} dimensions needs more rows than that, got {moments.n}: read more rows "
                "before training (stat_rows), or take normaliser='scale'"
            )
        spread, axes = torch.linalg.eigh(moments.products / moments.n)
        spread = spread.clamp_min(0)
        size = (spread + EPS * spread.mean()).sqrt()
        size = size * ((spread / size.square()).sum() / len(spread)).sqrt()
        self.matrix.copy_((axes / size) @ axes.T)
        self.inverse.copy_((axes * size) @ axes.T)

    def turn(self, x: Tensor) -> Tensor:
        """See `Normaliser.turn`."""
        return (x - self.mean) @ self.matrix.T

    def back(self, rows: Tensor) -> Tensor:
        """See `Normaliser.back`."""
        return rows @ self.inverse.T

    @property
    def centre(self) -> Tensor:
        """See `Normaliser.centre`."""
        return self.mean


class PerToken(Normaliser):
    """Base of those that bring tokens to length `sqrt(d)`, v, each by a scale of its own; `u = spread (v - middle)`.

    `typical` is the root mean square of the tokens' scales over the first rows. `Codes.scale` is in units of it, so
    that `directions()` tells what a code adds to a typical token, and `Codes.scale` times that what it adds to this
    one. The loss weights all tokens alike, whatever their length. Weights cannot take over a token's own scale: folded,
    the normaliser stays, with rows of typical length, and the rest moves into the weights; atoms are directions then.
    """

    per_token = True
    typical: Tensor
    length: Tensor
    middle: Tensor
    spread: Tensor

    def __init__(self, d: int):
        super().__init__(d)
        self.register_buffer("typical", torch.tensor(1.0))
        self.register_buffer("length", torch.tensor(1.0))  # of v, in units of sqrt(d); `typical` once it is folded
        self.register_buffer("middle", torch.zeros(d))
        self.register_buffer("spread", torch.tensor(1.0))

    def own(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows less what is taken off them, and the shift `[n]` among it that is the token's own."""
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, moments: Moments, rows: Tensor) -> None:
        """See `Normaliser.fit`."""
        super().fit(moments, rows)
        offset, _ = self.own(rows.to(self.mean))
        self.typical.copy_(torch.linalg.vector_norm(offset, dtype=torch.float64) / offset.numel() ** 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `Normaliser.forward`."""
        offset, shift = self.own(x)
        size = torch.linalg.vector_norm(offset, dim=1, keepdim=True) / x.shape[1] ** 0.5
        size = size.clamp_min(torch.finfo(x.dtype).tiny)
        u = (offset * (self.length / size) - self.middle) * self.spread
        return u, size[:, 0] / self.typical, shift

    def restore(self, u: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """See `Normaliser.restore`.

        Raises:
            ValueError: without the tokens' scales.
        """
        if scale is None:
            raise ValueError(
                f"normaliser {self.name!r} gives every token a scale of its own, and these codes carry none: keep "
                "those of `encode` (slicing, cat and to do), or pass scale and shift along to Codes"
            )
        raw = (self.back(u) + self._point) * scale[:, None] + self.centre
        return raw if shift is None else raw + shift[:, None]

    def back(self, rows: Tensor) -> Tensor:
        """See `Normaliser.back`."""
        return rows * (self.typical / (self.length * self.spread))

    @property
    def _point(self) -> Tensor:
        """`middle` in rows of typical length."""
        return self.middle * (self.typical / self.length)

    def folded(self) -> tuple[Normaliser, Tensor, Tensor]:
        """See `Normaliser.folded`."""
        left = copy.deepcopy(self)
        left.length.copy_(self.typical)
        left.middle.zero_()
        left.spread.fill_(1.0)
        matrix = torch.eye(len(self.mean)).to(self.mean) * (self.length * self.spread / self.typical)
        return left, matrix, self._point


@NORMALISERS.register("unit")
class Unit(PerToken):
    """`u = sqrt(d) (x - mean) / |x - mean|`: every token has the same length, direction alone is left."""

    name = "unit"

    def own(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `PerToken.own`."""
        return x - self.mean, None

    @property
    def centre(self) -> Tensor:
        """See `Normaliser.centre`."""
        return self.mean


@NORMALISERS.register("layer_norm")
class LayerNorm(PerToken):
    """`v = (x - m) / s`, with mean m and deviation s over the token's own d numbers; `u = spread (v - E v)`.

    Gao et al. (2024) and others stop at v. A mean of the data far from 0, as is common in vision, then leaves little
    variance in v and makes the first steps too large; so v is centred and scaled to `E|u|^2 = d`, like raw tokens.
    """

    name = "layer_norm"
    centred = True

    def own(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `PerToken.own`."""
        shift = x.mean(1)
        return x - shift[:, None], shift

    @torch.no_grad()
    def fit(self, moments: Moments, rows: Tensor) -> None:
        """See `Normaliser.fit`.

        Raises:
            ValueError: if nothing is left of the rows but their own mean and deviation.
        """
        super().fit(moments, rows)
        self.middle.zero_()
        self.spread.fill_(1.0)
        v = self(rows.to(self.mean))[0]
        self.middle.copy_(v.mean(0, dtype=torch.float64))
        left = float(torch.linalg.vector_norm(v - self.middle, dtype=torch.float64)) / v.numel() ** 0.5
        if not left > 1e-6:
            raise ValueError(
                f"layer_norm makes all {len(rows)} rows alike: they differ in nothing but mean and deviation over "
                "their dimensions; take normaliser='scale'"
            )
        self.spread.fill_(1 / left)
