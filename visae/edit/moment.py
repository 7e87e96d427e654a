"""A site's tokens in one call of a network, and what an edit may ask about them."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from visae.clock import Branch
from visae.sae import Codes, Dictionary
from visae.sae.chosen import chosen_directions, chosen_values
from visae.sae.side import at_sigma


@dataclass(eq=False)
class Moment:
    """Tokens of some rows of a batch; all that is computed of them is computed once.

    Attributes:
        sae: the dictionary of the site.
        x: `[R, T, d]` float32 raw tokens, without those before the grid.
        branch: of guidance, of every row.
        samples: `[R]` int64 on the CPU, which image of the batch a row belongs to.
        sigma: noise level; None where nothing is denoised (text encoders).
        index: place of the step among those of the run.
        call: number of the call in the run; 0 begins a new one.
        grid: rows and columns of the tokens, or None where they have no place.
    """

    sae: Dictionary
    x: Tensor
    branch: tuple[Branch, ...]
    samples: Tensor
    sigma: float | None = None
    index: int = 0
    call: int = 0
    grid: tuple[int, int] | None = None
    _known: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def flat(self) -> Tensor:
        """`[R * T, d]` on the dictionary's device."""
        return self.x.flatten(0, 1).to(self.sae.mean.device)

    def _side(self, n: int) -> dict[str, Tensor]:
        if self.sigma is None and "sigma" in self.sae.needs_to_encode:
            raise ValueError(f"a {self.sae.kind} dictionary needs noise levels, and text encoders have none")
        return at_sigma(self.sae, n, self.sigma or 0.0)

    def level(self, levels: Tensor) -> float:
        """Where to look into a table of noise levels `[S]`; where nothing is denoised, tables have one.

        Raises:
            ValueError: for a table of several levels where there are none.
        """
        if self.sigma is not None:
            return self.sigma
        if len(levels) > 1:
            raise ValueError(f"this edit holds a table of {len(levels)} noise levels, and its site has none")
        return float(levels[0])

    def latents(self, numbers: tuple[int, ...]) -> Tensor:
        """Numbers of latents as a tensor `[m]` where the dictionary is."""
        return torch.tensor(numbers, dtype=torch.int64, device=self.sae.mean.device)

    def values(self, numbers: tuple[int, ...]) -> Tensor:
        """What the dictionary says about some latents, `[R, T, m]`; differentiable."""
        if numbers not in self._known:
            flat = self.flat
            found, _ = chosen_values(self.sae, flat, self.latents(numbers), **self._side(len(flat)))
            self._known[numbers] = found.to(self.x.device).unflatten(0, self.x.shape[:2])
        return self._known[numbers]

    @cached_property
    def codes(self) -> Codes:
        """All codes, `R * T` rows."""
        flat = self.flat
        return self.sae.encode(flat, **self._side(len(flat)))

    @cached_property
    def scale(self) -> Tensor | None:
        """`[R, T, 1]` what a unit of a code adds, where the normaliser measures tokens one by one; else None."""
        scale = self.sae.read(self.flat)[1]
        return None if scale is None else scale.to(self.x).view(*self.x.shape[:2], 1)

    def decoded(self, numbers: tuple[int, ...], change: Tensor) -> Tensor:
        """What a change of codes `[R, T, m]` adds to the tokens, `[R, T, d]`."""
        directions = chosen_directions(self.sae, self.latents(numbers), **self._side(1)).to(change)
        added = change @ directions
        return added if self.scale is None else added * self.scale

    def without(self, kept: tuple[int, ...]) -> tuple[Codes, Tensor]:
        """All codes but those of some latents, and what they add to the tokens, `[R, T, d]`."""
        codes = self.codes
        spared = torch.isin(codes.indices, self.latents(kept))
        others = codes.with_values(codes.values.masked_fill(spared, 0.0))
        added = self.sae.decode(others) - self.sae.decode(codes.silent())
        return others, added.to(self.x).view_as(self.x)
