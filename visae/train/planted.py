"""Planted dictionaries: data whose true features are known, for tests and quality benchmarks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visae.sae import Dictionary, Rows


@dataclass(frozen=True)
class PlantedConfig:
    """A sparse linear world `x = offset + sum of c_i f_i + noise`.

    Attributes:
        d: length of a sample.
        n_features: true unit features, drawn from the sphere.
        active: mean number of features in a sample (exactly so many where `zipf` is 0); a pair draws the number evenly
            from that range, ends included.
        children: 0, or how many children each feature of the first ones, the parents, has: `active` then counts
            parents, and each that is active brings one of its children with probability 1/2. Features are the parents,
            then the children of the first parent, of the second, ...
        zipf: probability of feature i is `rank^-zipf`, scaled to `active` and at most 1/2; 0 draws uniformly.
        mean: of the coefficients, which are normal, ...
        spread: ... with this deviation, at least 0.1.
        offset: length per dimension of the constant added to every sample.
        noise: standard deviation of the noise per dimension.
        drift: how much scale and offset of every dimension follow the noise level, where batches bring `sigma`.
        seed: of the features and samples; must differ from the dictionary's, or the start could hold the answer.
    """

    d: int = 32
    n_features: int = 64
    active: int | tuple[int, int] = 4
    children: int = 0
    zipf: float = 0.0
    mean: float = 1.0
    spread: float = 0.5
    offset: float = 0.3
    noise: float = 0.02
    drift: float = 0.0
    seed: int = 1234


class Planted:
    """Endless batches of a planted world; a loader with exact resume.

    Args:
        config: the world.
        batch: rows per batch.
        part: another part gives other samples of the same world (held-out data).
        sae_seed: seed of the dictionary that will be trained on it.
        needs: side information to bring (`Dictionary.needs`): `sigma`, noise levels between 0 and 10 which the tokens
            drift with; `other`, tokens with the same codes of features 0, 2, ... and codes drawn anew of 1, 3, ...

    Raises:
        ValueError: if data and dictionary share a seed: both draw unit vectors, and the start would hold the truth.
    """

    def __init__(
        self,
        config: PlantedConfig,
        batch: int = 512,
        part: int = 0,
        sae_seed: int = 0,
        needs: Sequence[str] = (),
    ):
        if config.seed == sae_seed:
            raise ValueError(
                f"the planted features and the dictionary's start share seed {sae_seed}: choose another, "
                "or recovery means nothing"
            )
        self.config, self.batch, self.part, self.drawn, self.needs = config, batch, part, 0, tuple(needs)
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(config.n_features, config.d, generator=generator)
        self.features = torch.nn.functional.normalize(rows, dim=1)
        self.offset = config.offset * torch.randn(config.d, generator=generator)
        low, high = config.active if isinstance(config.active, tuple) else (config.active, config.active)
        if config.zipf and low != high:
            raise ValueError(
                "with zipf every feature has a probability of its own: active is then one number, the mean"
            )
        self.active = low, high
        self.parents = config.n_features // (1 + config.children)
        if config.children and (config.zipf or self.parents * (1 + config.children) != config.n_features):
            raise ValueError(
                f"with children, zipf is 0 and n_features a multiple of 1 + {config.children}; got zipf {config.zipf} "
                f"and {config.n_features} features"
            )
        ranks = torch.arange(1, config.n_features + 1, dtype=torch.float64) ** -config.zipf
        self.probability = (ranks * high / ranks.sum()).clamp(max=0.5).float()
        self._waves = torch.randn(3, config.d, generator=generator)

    def __iter__(self) -> Iterator[Tensor | Rows]:
        """Batches from where the loader stands."""
        while True:
            self.drawn += 1
            yield self.rows(self.batch, self.drawn - 1)

    def rows(self, n: int, index: int = 0) -> Tensor | Rows:
        """Samples `[n, d]` of the index-th batch, with the side information that is needed."""
        x, codes = self.sample(n, index)
        side: dict[str, Tensor] = {}
        if "sigma" in self.needs:
            side["sigma"] = 10 * torch.rand(n, generator=self._generator(index, 1))
            x = self._drifted(x, side["sigma"][:, None] / 10)
        if "other" in self.needs:
            drawn = self.sample(n, -1 - index)[1]
            drawn[:, ::2] = codes[:, ::2]
            side["other"] = self._mix(drawn, self._generator(index, 2))
        return Rows(x, side) if side else x

    def _drifted(self, x: Tensor, time: Tensor) -> Tensor:
        start, speed, phase = self._waves
        gain = torch.exp(self.config.drift * torch.sin(3 * time + start))
        return x * gain + 2 * self.config.drift * torch.sin(4 * time * speed + phase)

    def _generator(self, index: int, what: int = 0) -> torch.Generator:
        seed = (self.config.seed * 1_000_003 + self.part) * 1_000_003 + index + 1
        return torch.Generator().manual_seed(seed + what * 7_368_787_291)

    def _mix(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        noise = self.config.noise * torch.randn(len(codes), self.config.d, generator=generator)
        return codes @ self.features + self.offset + noise

    def sample(self, n: int, index: int = 0) -> tuple[Tensor, Tensor]:
        """Samples `[n, d]` and their true codes `[n, n_features]` of the index-th batch."""
        c = self.config
        generator = self._generator(index)
        draws = torch.rand(n, c.n_features, generator=generator)
        active = draws < self.probability if c.zipf else self._drawn(draws[:, : self.parents], generator)
        if c.children:
            active = torch.cat([active, self._born(active, generator)], dim=1)
        sizes = (c.mean + c.spread * torch.randn(n, c.n_features, generator=generator)).clamp_min(0.1)
        codes = active * sizes
        return self._mix(codes, generator), codes

    def _drawn(self, draws: Tensor, generator: torch.Generator) -> Tensor:
        """`[n, m]` bool: the features with the largest draws, as many as a sample has."""
        low, high = self.active
        order = draws.topk(high, dim=1).indices
        wanted = torch.randint(low, high + 1, (len(draws), 1), generator=generator) if low < high else high
        inside = (torch.arange(high) < wanted).expand_as(order)
        return torch.zeros_like(draws, dtype=torch.bool).scatter_(1, order, inside)

    def _born(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        """`[n, children of all]` bool: one child of half of the active parents."""
        family = (len(parents), self.parents, self.config.children)
        first = torch.rand(family, generator=generator).argmax(2)
        born = parents & (torch.rand(family[:2], generator=generator) < 0.5)
        return (functional.one_hot(first, family[2]).bool() & born[:, :, None]).flatten(1)

    def state_dict(self) -> dict[str, Any]:
        """Batches drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after so many batches."""
        self.drawn = state["drawn"]


@torch.no_grad()
def recovery(sae: Dictionary, features: Tensor) -> dict[str, float]:
    """How well true features `[m, d]` are found among a dictionary's directions.

    Returns:
        `mmcs`: mean over true features of the largest cosine with a direction; `recovered`: share above 0.9;
        `precision`: mean over directions that fired of the largest cosine with a true feature.
    """
    return matches(sae.directions(), features)


@torch.no_grad()
def matches(directions: Tensor, features: Tensor) -> dict[str, float]:
    """`recovery` of directions `[F, d]` of any length."""
    directions = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    cosines = torch.nn.functional.normalize(features, dim=1) @ directions.T
    best = cosines.amax(1)
    return {
        "mmcs": float(best.mean()),
        "recovered": float((best > 0.9).float().mean()),
        "precision": float(cosines.amax(0).mean()),
    }


@torch.no_grad()
def absorption(sae: Dictionary, world: Planted, n: int = 8192) -> float:
    """How often a parent's latent is silent where its parent is active, because another one has taken its place.

    The latent of a parent is the one with the largest cosine. On a sample with the parent f it is absorbed if it does
    not fire and the largest of the projections `z_j |d_j| cos(d_j, f)` of those that do is at least 0.4 of
    `<x - offset, f>` (the full absorption of Chanin et al. 2024, with the planted direction in place of a probe's).

    Returns:
        Mean over parents of the share of their samples.

    Raises:
        ValueError: for a world without children.
    """
    if not world.config.children:
        raise ValueError("absorption needs a world with children: PlantedConfig(children=...)")
    x, codes = world.sample(n)
    directions = sae.directions()
    lengths = torch.linalg.vector_norm(directions, dim=1).clamp_min(torch.finfo(directions.dtype).tiny)
    sizes = sae.encode(x).to_dense() * lengths
    shares = []
    for parent in range(world.parents):
        feature, rows = world.features[parent], codes[:, parent] > 0
        cosines = directions @ feature / lengths
        largest = (sizes[rows] * cosines).amax(1)
        total = (x[rows] - world.offset) @ feature
        silent = sizes[rows][:, cosines.argmax()] == 0
        shares.append((silent & (total > 0) & (largest >= 0.4 * total)).double().mean())
    return float(torch.stack(shares).mean())
