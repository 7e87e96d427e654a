"""Dictionary parts: the atoms that codes are summed over, and the bias."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from visae.ops import unit_rows


class Decoder(nn.Module, ABC):
    """Base of the dictionary parts.

    Attributes:
        unit: names of `[F, d]` parameters whose rows the optimiser keeps at length 1.
        bias: `[d]`; it starts at the mean of the normalised data, which is 0 where the normaliser centres.
        shards: see `visae.sae.slices`.
    """

    unit: tuple[str, ...] = ()
    shards: bool = False
    bias: Tensor

    @abstractmethod
    def atoms(self) -> Tensor:
        """`[F, d]` rows in the space of normalised inputs, differentiable."""

    @abstractmethod
    def initialise(self, atoms: Tensor) -> None:
        """Starts from these unit rows `[F, d]`."""

    def start(self, points: Tensor) -> None:
        """Sees normalised, centred data points `[n, d]`, shuffled, after `initialise`: for parts built on data."""

    @property
    def starts(self) -> bool:
        """Whether `start` does something."""
        return type(self).start is not Decoder.start

    def project(self) -> None:
        """Brings parameters back to where they are allowed, after every step of the optimiser."""


class Free(Decoder):
    """Rows of any length, for objectives that weight by it.

    Args:
        d: length of an input.
        n_latents: width F.
        bias: whether the bias is learnt; else it stays where it starts.
    """

    shards = True

    def __init__(self, d: int, n_latents: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_latents, d))
        if bias:
            self.bias = nn.Parameter(torch.zeros(d))
        else:
            self.register_buffer("bias", torch.zeros(d))

    @classmethod
    @torch.no_grad()
    def of(cls, atoms: Tensor, bias: Tensor) -> "Free":
        """A part with copies of atoms `[F, d]` and a bias `[d]`."""
        made = cls(atoms.shape[1], atoms.shape[0]).to(atoms)
        made.weight.copy_(atoms)
        made.bias.copy_(bias)
        return made

    def atoms(self) -> Tensor:
        """See `Decoder.atoms`."""
        return self.weight

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Decoder.initialise`."""
        self.weight.copy_(atoms)
        unit_rows(self.weight)
        self.bias.zero_()


class UnitNorm(Free):
    """Rows of length 1: the optimiser projects their gradient and renormalises them in every step."""

    shards = True

    unit = ("weight",)


class Archetypal(Decoder):
    """Atoms are convex mixtures of data points, give or take a little (archetypal SAEs, Fel et al. 2025).

    `D = exp(s) (W C + Lambda)`: C `[m, d]` data points, fixed; rows of W `[F, m]` not negative with sum 1;
    `|Lambda_i| <= delta` times the mean length of a data point. Atoms stay near the data, and two seeds agree more.

    What is learnt is `sqrt(m) W`: Adam moves every entry by the learning rate, whatever its gradient, and m of them in
    a row that sums to 1 would make it a mean of all points within a few steps.

    Args:
        d: length of an input.
        n_latents: width F.
        points: number of data points m.
        delta: how far an atom may leave their convex hull.
    """

    points: Tensor
    radius: Tensor

    def __init__(self, d: int, n_latents: int, points: int, delta: float):
        super().__init__()
        if points < 1 or delta < 0:
            raise ValueError(f"points must be at least 1 and delta at least 0, got {points} and {delta}")
        self.delta = delta
        self.weights = nn.Parameter(torch.zeros(n_latents, points))
        self.slack = nn.Parameter(torch.zeros(n_latents, d))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(d))
        self.register_buffer("points", torch.zeros(points, d))
        self.register_buffer("radius", torch.tensor(0.0))

    @property
    def mixture(self) -> Tensor:
        """`[F, m]` W: what share each data point has in each atom."""
        return self.weights / self.weights.shape[1] ** 0.5

    def atoms(self) -> Tensor:
        """See `Decoder.atoms`."""
        return self.log_scale.exp() * (self.mixture @ self.points + self.slack)

    @torch.no_grad()
    def initialise(self, _atoms: Tensor) -> None:
        """See `Decoder.initialise`; the start is made by `start`, from data."""
        self.bias.zero_()
        self.slack.zero_()

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """See `Decoder.start`: every atom begins as one data point."""
        width, m = self.weights.shape
        self.points.copy_(points[torch.arange(m) % points.shape[0]])
        length = torch.linalg.vector_norm(self.points, dim=1).mean()
        self.radius.copy_(self.delta * length)
        self.log_scale.copy_(-length.log())
        self.weights.zero_()
        self.weights[torch.arange(width), torch.arange(width) % m] = m**0.5

    @torch.no_grad()
    def project(self) -> None:
        """See `Decoder.project`."""
        self.weights.clamp_(min=0)
        self.weights.div_(self.mixture.sum(1, keepdim=True).clamp_min(1e-12))
        length = torch.linalg.vector_norm(self.slack, dim=1, keepdim=True)
        self.slack.mul_(torch.clamp(self.radius / length.clamp_min(1e-12), max=1.0))
