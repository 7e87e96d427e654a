"""Modulation parts: what comes beside tokens brings them into one space, and their reconstructions back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Modulation(nn.Module):
    """Base of the modulations, and the one that changes nothing.

    Attributes:
        needs: names of the side information that it works by; see `visae.sae.side`.
    """

    needs: tuple[str, ...] = ()

    def start(self, generator: torch.Generator, side: Mapping[str, Tensor]) -> None:
        """Begins as no modulation at all, for side information like this."""

    def forward(self, u: Tensor, _side: Mapping[str, Tensor]) -> Tensor:
        """`v [n, d]`, what the encoder takes, of normalised tokens `[n, d]`."""
        return u

    def undo(self, v: Tensor, _side: Mapping[str, Tensor]) -> Tensor:
        """Reverse of `forward`."""
        return v

    def turn(self, atoms: Tensor, _side: Mapping[str, Tensor]) -> Tensor:
        """What differences `[F, d]` of v are between two u, for the side information of one token."""
        return atoms


class NoiseLevel(Modulation):
    """`v = u * exp(g(sigma)) + b(sigma)`: a scale and a shift per dimension that follow the noise level.

    The dictionary works on v; reconstructions are brought back to u before they are compared, so nothing is gained by
    making v small, and penalties leave g and b alone (through AuxK they diverge). After TIDE (Huang et al. 2025), whose
    scale and shift come from the timestep's embedding; the exponential keeps the scale positive, hence reversible.
    g and b are the outputs of one hidden layer over t and `sin` and `cos` of `2^i pi t / 2`, where t is
    `log(1 + sigma)` brought to [0, 1] by the range seen at the start. At the start both are 0, and the dictionary is
    the one without modulation.

    Args:
        d: length of a token.
        hidden: units of the hidden layer.
        waves: number of frequencies, i = 0, 1, ...
    """

    needs = ("sigma",)
    low: Tensor
    high: Tensor

    def __init__(self, d: int, hidden: int = 64, waves: int = 6):
        super().__init__()
        if hidden < 1 or waves < 1:
            raise ValueError(f"a modulation has at least one hidden unit and one wave, got {hidden} and {waves}")
        self.waves = waves
        self.first, self.second = nn.Linear(2 * waves + 1, hidden), nn.Linear(hidden, 2 * d)
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(1.0))

    @torch.no_grad()
    def start(self, generator: torch.Generator, side: Mapping[str, Tensor]) -> None:
        """See `Modulation.start`; t takes the range of these noise levels."""
        times = side["sigma"].to(self.low).log1p()
        self.low.copy_(times.min())
        self.high.copy_(times.max())
        width = self.first.weight.shape[1]
        self.first.weight.copy_(torch.randn(self.first.weight.shape, generator=generator) / width**0.5)
        for zero in (self.first.bias, self.second.weight, self.second.bias):
            zero.zero_()

    def _gain_and_shift(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        times = (sigma.to(self.low).log1p() - self.low) / (self.high - self.low).clamp_min(1e-6)
        angles = times[:, None] * (torch.pi / 2 * 2.0 ** torch.arange(self.waves, device=sigma.device)).to(times)
        features = torch.cat([times[:, None], angles.sin(), angles.cos()], dim=1)
        log_gain, shift = self.second(nn.functional.silu(self.first(features))).chunk(2, dim=1)
        return log_gain.exp(), shift

    def forward(self, u: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.forward`."""
        gain, shift = self._gain_and_shift(side["sigma"])
        return u * gain + shift

    def undo(self, v: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.undo`."""
        gain, shift = self._gain_and_shift(side["sigma"])
        return (v - shift) / gain

    def turn(self, atoms: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.turn`."""
        return atoms / self._gain_and_shift(side["sigma"])[0]


class Within(Modulation):
    """Another modulation in the space it knows: what is left of folding a normaliser before it.

    `v' = T^-1 m(T (x - point)) + point`, where m is the modulation of `u = T (x - point)`.

    Args:
        inner: the modulation of u.
        matrix: `[d, d]`, T.
        inverse: `[d, d]`, its inverse.
        point: `[d]`.
    """

    matrix: Tensor
    inverse: Tensor
    point: Tensor

    def __init__(self, inner: Modulation, matrix: Tensor, inverse: Tensor, point: Tensor):
        super().__init__()
        self.inner, self.needs = inner, inner.needs
        for name, value in (("matrix", matrix), ("inverse", inverse), ("point", point)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, u: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.forward`."""
        return self.inner((u - self.point) @ self.matrix.T, side) @ self.inverse.T + self.point

    def undo(self, v: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.undo`."""
        return self.inner.undo((v - self.point) @ self.matrix.T, side) @ self.inverse.T + self.point

    def turn(self, atoms: Tensor, side: Mapping[str, Tensor]) -> Tensor:
        """See `Modulation.turn`."""
        return self.inner.turn(atoms @ self.matrix.T, side) @ self.inverse.T
