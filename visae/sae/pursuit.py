"""Codes by pursuit: any trained dictionary, searched greedily for each token instead of read by its encoder.

With unit directions D, y the token less what is decoded from no code (in the space that the dictionary is brought to
where something comes beside tokens), r = y - z D and h = r D^T, each of k rounds
takes the latent with the largest |h_j| (largest h_j where codes may not be negative) and then

- `matching`: `z_j += h_j` (Mallat and Zhang 1993); a latent may be taken again.
- `gradient`: one step along the gradient `g = h` on the latents taken so far, `z += p` with `p = g |g|^2 / |g D|^2`
  (Blumensath and Davies 2008; Smith et al. 2024 search SAEs so). Where codes may not be negative, `z + p` is cut at 0
  and the way there is gone as far as the error falls; cutting alone, as published, may raise it.
- `orthogonal`: least squares on the latents taken so far (Pati et al. 1993), by coordinate descent where codes may not
  be negative.

The error of a token never rises from one round to the next, and none of it is computed from other tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from visae.ops import Eager
from visae.sae.codes import Codes
from visae.sae.dictionary import CELLS, Dictionary
from visae.sae.side import Rows

Method = Literal["matching", "gradient", "orthogonal"]
SWEEPS = 20
"""Passes of coordinate descent over the latents of a token, in each round of non-negative `orthogonal`."""
RIDGE = 1e-6
"""Added to the diagonal of the least squares: two latents may share a direction."""


@torch.no_grad()
def pursue(
    sae: Dictionary,
    x: Tensor | Rows,
    k: int,
    method: Method = "gradient",
    *,
    nonnegative: bool | None = None,
    gram: bool = False,
    **side: Tensor,
) -> Codes:
    """Codes of raw tokens by pursuit; see the module.

    Args:
        sae: a dictionary or baseline; only its directions and its bias are used.
        x: `[n, d]` tokens, with the side information that encoding needs, if any.
        k: latents per token, at most.
        method: `matching`, `gradient` or `orthogonal`.
        nonnegative: whether codes may not be negative; None means so unless the dictionary is signed.
        gram: keep all `F x F` products of directions, `4 F^2` bytes, and update h by them: faster where k is well below
            d, and needs no product with the whole dictionary in each round.
        **side: side information by name, where x does not carry it.

    Returns:
        Codes of capacity k, in the units of the dictionary's own.

    Raises:
        ValueError: for another method, a k out of range, or tokens of another length.
    """
    if method not in ROUNDS:
        raise ValueError(f"method is {', '.join(ROUNDS)}; got {method!r}")
    if not 1 <= k <= sae.n_latents:
        raise ValueError(f"k is the number of latents per token, between 1 and {sae.n_latents}; got {k}")
    directions = sae.directions()
    lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    atoms = directions / lengths
    products = atoms @ atoms.T if gram else None
    positive = not sae.signed if nonnegative is None else nonnegative
    parts = []
    tokens, its = sae.unpack(x, **side)
    for rows in torch.arange(len(tokens)).split(max(1, CELLS // (sae.n_latents + k * sae.d))):
        target, empty = _begin(sae, tokens[rows], {name: value[rows] for name, value in its.items()})
        state = _State.begin(target, atoms, products, k, positive)
        for step in range(k):
            ROUNDS[method](state, step)
        values = state.values / lengths[state.indices, 0]
        indices = torch.where(values == 0, -1, state.indices)
        parts.append(replace(empty, indices=indices, values=values, signed=not positive))
    return Codes.cat(parts) if len(parts) > 1 else parts[0]


def _begin(sae: Dictionary, x: Tensor, side: dict[str, Tensor]) -> tuple[Tensor, Codes]:
    """What codes times directions shall come near `[n, d]`, and codes of these tokens with nothing in them."""
    u, scale, shift = sae.read(x)
    target = sae.normaliser.back(sae.modulation(u, side) - sae.decoder.bias)
    nothing = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    return target, Codes(nothing, target[:, :0], sae.n_latents, scale, shift, side)


@dataclass
class _State:
    """A pursuit on its way: what is left of the targets, and the latents taken so far.

    Attributes:
        target: `[n, d]` y.
        atoms: `[F, d]` unit directions.
        gram: `[F, F]` their products, or None.
        positive: whether codes may not be negative.
        rest: `[n, d]` r.
        h: `[n, F]` products of rest and atoms.
        indices: `[n, k]` latents, round by round; 0 with value 0 where none was taken.
        values: `[n, k]` their codes.
    """

    target: Tensor
    atoms: Tensor
    gram: Tensor | None
    positive: bool
    rest: Tensor
    h: Tensor
    indices: Tensor
    values: Tensor

    @classmethod
    def begin(cls, target: Tensor, atoms: Tensor, gram: Tensor | None, k: int, positive: bool) -> "_State":
        indices = torch.zeros(len(target), k, dtype=torch.int64, device=target.device)
        return cls(
            target, atoms, gram, positive, target.clone(), target @ atoms.T, indices, target.new_zeros(indices.shape)
        )

    def best(self, taken: int) -> Tensor:
        """`[n, 1]` latents to take now; the first `taken` ones are out of the question."""
        key = self.h.clone() if self.positive else self.h.abs()
        return key.scatter_(1, self.indices[:, :taken], -torch.inf).argmax(1, keepdim=True)

    def sum(self, table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """`[n, m]`: weighted sums of rows of a table `[F, m]`."""
        codes = Codes(indices, weights, len(self.atoms)).ragged()
        return Eager().decode(codes, table, None)

    def move(self, indices: Tensor, change: Tensor, moved: Tensor | None = None) -> None:
        """Takes `change` `[n, s]` of codes into rest and h; `moved` is their sum over atoms, where it is known."""
        self.rest -= self.sum(self.atoms, indices, change) if moved is None else moved
        if self.gram is None:
            torch.mm(self.rest, self.atoms.T, out=self.h)
        else:
            self.h -= self.sum(self.gram, indices, change)


def _matching(state: _State, step: int) -> None:
    chosen = state.best(0)
    size = state.h.gather(1, chosen)
    size = size.relu() if state.positive else size
    again = (state.indices[:, :step] == chosen) & (state.values[:, :step] != 0)
    place = torch.where(again.any(1), again.int().argmax(1) if step else 0, step)[:, None]
    state.indices.scatter_(1, place, chosen)
    state.values.scatter_add_(1, place, size)
    state.move(chosen, size)


def _gradient(state: _State, step: int) -> None:
    state.indices[:, step : step + 1] = state.best(step)
    taken, values = state.indices[:, : step + 1], state.values[:, : step + 1]
    slope = state.h.gather(1, taken)
    way = torch.where((values == 0) & (slope < 0), 0.0, slope) if state.positive else slope
    tiny = torch.finfo(way.dtype).tiny
    along = state.sum(state.atoms, taken, way)
    way = way * (way.square().sum(1) / along.square().sum(1).clamp_min(tiny))[:, None]
    if state.positive:
        way = (values + way).relu() - values
    along = state.sum(state.atoms, taken, way)
    share = (way * slope).sum(1) / along.square().sum(1).clamp_min(tiny)
    share = share.clamp(0.0, 1.0)[:, None]
    values += share * way
    state.move(taken, share * way, share * along)


def _orthogonal(state: _State, step: int) -> None:
    state.indices[:, step : step + 1] = state.best(step)
    taken, before = state.indices[:, : step + 1], state.values[:, : step + 1].clone()
    own = state.atoms[taken]
    products, wanted = own @ own.mT, (own @ state.target[:, :, None])[:, :, 0]
    if state.positive:
        after = before.clone()
        for _ in range(SWEEPS):
            for j in range(step + 1):
                missing = wanted[:, j] - (products[:, j] * after).sum(1)
                after[:, j] = (after[:, j] + missing / products[:, j, j].clamp_min(RIDGE)).relu()
    else:
        ridge = RIDGE * torch.eye(step + 1, dtype=own.dtype, device=own.device)
        after = torch.linalg.solve(products + ridge, wanted)
    state.values[:, : step + 1] = after
    state.move(taken, after - before)


ROUNDS = {"matching": _matching, "gradient": _gradient, "orthogonal": _orthogonal}
"""Method -> one round: takes a latent and sets the codes anew."""
