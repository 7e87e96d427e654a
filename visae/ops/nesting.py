"""Nested reconstructions: from the first part of the codes, from the first two, ...; plain ones have one level."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from visae.ops.sparse import Coded, Ragged


@dataclass(frozen=True)
class Nesting:
    """Which codes each of several nested reconstructions may use, and how much each counts.

    Attributes:
        by: `latent`: prefixes of the dictionary; `rank`: the largest codes of a token.
        ends: rising; level i uses latents (or ranks) below `ends[i]`. The last one takes in every code.
        weights: one per level.
    """

    by: Literal["latent", "rank"]
    ends: tuple[int, ...]
    weights: tuple[float, ...]

    def shares(self) -> list[float]:
        """The weights, with sum 1."""
        return [weight / sum(self.weights) for weight in self.weights]

    def parts(self, codes: Coded) -> Iterator[Coded]:
        """What each level adds to the one before."""
        pick, all_codes = (codes.among if self.by == "latent" else codes.ranked), 2**31
        return itertools.starmap(pick, itertools.pairwise((0, *self.ends[:-1], all_codes)))

    def levels(self, codes: Ragged) -> Tensor:
        """`[m]` int64: the first level that uses each entry."""
        place = codes.pattern.columns if self.by == "latent" else codes.ranks
        return torch.bucketize(place, constant(self.ends[:-1], torch.int64, place.device), right=True)


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values, made once: to bring numbers to a GPU at every step makes the host wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


class Decodes(Protocol):
    """The one kernel that `add_up` needs."""

    def decode(self, codes: Coded, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `visae.ops.base.Ops`."""
        ...


def add_up(
    ops: Decodes, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None
) -> tuple[Tensor, Tensor]:
    """`Ops.reconstruct` in terms of `Ops.decode`; every code is decoded once, whatever the number of levels."""
    if nesting is None:
        recon = ops.decode(codes, weight, bias)
        return recon.detach(), (recon - u).square().mean(1)
    recon, losses = bias.expand_as(u), u.new_zeros(u.shape[0])
    for part, share in zip(nesting.parts(codes), nesting.shares(), strict=True):
        recon = recon + ops.decode(part, weight, None)
        losses = losses + share * (recon - u).square().mean(1)
    return recon.detach(), losses
