"""Several dictionaries used as one: the mean of their reconstructions (bag), or each on what others left (boost)."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from visae.ops import Eager
from visae.sae.card import Card
from visae.sae.codes import Codes
from visae.sae.dictionary import Dictionary

ENSEMBLES = ("bag", "boost")


class Ensemble(nn.Module):
    """J dictionaries of one space as one dictionary of all their latents (Gadgil et al. 2025, "Ensembling SAEs").

    - `bag`: `x' = 1/J sum_j x'_j`. This is the dictionary of all atoms with codes `f_j / J`.
    - `boost`: dictionary j reads `x - sum_{l < j} x'_l`, and `x' = sum_j x'_j`; so the order matters.

    A token has the codes of all members: compare with one dictionary of the same total L0, not of the same k. It
    encodes, decodes, gives directions, saves, loads and is measured like any other; it is not trained as a whole.

    Args:
        kind: `bag` or `boost`.
        members: the dictionaries, in their order.

    Raises:
        ValueError: for no members, members of different spaces, or members whose codes need more than their values to
            be decoded (normalisers per token, modulation by side information).
    """

    folded: tuple[str, ...] = ()
    needs_to_encode: tuple[str, ...] = ()

    def __init__(self, kind: Literal["bag", "boost"], members: Sequence[Dictionary]):
        super().__init__()
        if kind not in ENSEMBLES or not members:
            raise ValueError(f"an ensemble is a bag or a boost of at least one dictionary, got {kind!r} of {members}")
        if len({member.d for member in members}) > 1:
            raise ValueError(f"members of a {kind} read one space, got tokens of {[member.d for member in members]}")
        for member in members:
            if member.normaliser.per_token or member.needs_to_encode:
                what = ", ".join(member.needs_to_encode) or f"normaliser {member.normaliser.name!r}"
                raise ValueError(
                    f"a {kind} cannot hold a {member.kind} dictionary with {what}: its codes do not add up alone"
                )
        self.kind, self.members = kind, nn.ModuleList(members)
        self.d, self.n_latents = members[0].d, sum(member.n_latents for member in members)
        self.card: Card | None = None

    @property
    def dictionaries(self) -> list[Dictionary]:
        """The members."""
        return [cast(Dictionary, member) for member in self.members]

    @property
    def options(self) -> dict[str, Any]:
        """What the members are, for the card."""
        return {
            "members": [
                {
                    "kind": one.kind,
                    "n_latents": one.n_latents,
                    "normaliser": one.normaliser.name,
                    "folded": list(one.folded),
                    "options": one.options,
                }
                for one in self.dictionaries
            ]
        }

    @property
    def normaliser(self) -> nn.Module:
        """Of the first member, for the card; each uses its own."""
        return self.dictionaries[0].normaliser

    @property
    def mean(self) -> Tensor:
        """`[d]` mean of the data."""
        return self.dictionaries[0].mean

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return any(member.signed for member in self.dictionaries)

    @property
    def share(self) -> float:
        """What a member's codes are multiplied by."""
        return 1 / len(self.members) if self.kind == "bag" else 1.0

    def unit_parameters(self) -> set[str]:
        """Names of the parameters whose rows have length 1."""
        return {f"members.{i}.{name}" for i, one in enumerate(self.dictionaries) for name in one.unit_parameters()}

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw inputs `[n, d]`: those of the members side by side, times `share`."""
        left, start, indices, values = x.to(self.mean.dtype), 0, [], []
        for member in self.dictionaries:
            codes = member.encode(left)
            if self.kind == "boost":
                left = left - member.decode(codes)
            indices.append(torch.where(codes.indices < 0, -1, codes.indices + start))
            values.append(self.share * codes.values)
            start += member.n_latents
        return Codes(torch.cat(indices, dim=1), torch.cat(values, dim=1), self.n_latents)

    def decode(self, codes: Codes) -> Tensor:
        """Raw reconstructions `[n, d]` of codes; differentiable in values and atoms."""
        silent = Codes(codes.indices.new_empty(1, 0), codes.values.new_empty(1, 0), 0)
        empty = torch.cat([member.decode(silent) for member in self.dictionaries]).sum(0) * self.share
        return Eager().decode(codes.ragged(), self.directions(), empty)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction `[n, d]` of raw inputs, in the parameters' dtype."""
        return self.decode(self.encode(x))

    def directions(self) -> Tensor:
        """`[F, d]`: what one unit of each code adds to a raw input."""
        return torch.cat([member.directions() for member in self.dictionaries])

    def extra_repr(self) -> str:
        """One line for `print`."""
        return f"kind={self.kind!r}, d={self.d}, n_latents={self.n_latents}"
