"""Planted dictionaries: data whose true features are known, for tests and quality benchmarks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visae.sae import Dictionary


@dataclass(frozen=True)
class PlantedConfig:
    """A sparse linear world `x = offset + sum of c_i f_i + noise`.

    Attributes:
        d: length of a sample.
        n_features: true unit features, drawn from the sphere.
        active: mean number of features in a sample (exactly so many where `zipf` is 0).
        zipf: probability of feature i is `rank^-zipf`, scaled to `active` and at most 1/2; 0 draws uniformly.
        mean: of the coefficients, which are normal, ...
        spread: ... with this deviation, at least 0.1.
        offset: length per dimension of the constant added to every sample.
        noise: standard deviation of the noise per dimension.
        seed: of the features and samples; must differ from the dictionary's, or the start could hold the answer.
    """

    d: int = 32
    n_features: int = 64
    active: int = 4
    zipf: float = 0.0
    mean: float = 1.0
    spread: float = 0.5
    offset: float = 0.3
    noise: float = 0.02
    seed: int = 1234


class Planted:
    """Endless batches of a planted world; a loader with exact resume.

    Args:
        config: the world.
        batch: rows per batch.
        part: another part gives other samples of the same world (held-out data).
        sae_seed: seed of the dictionary that will be trained on it.

    Raises:
        ValueError: if data and dictionary share a seed: both draw unit vectors, and the start would hold the truth.
    """

    def __init__(self, config: PlantedConfig, batch: int = 512, part: int = 0, sae_seed: int = 0):
        if config.seed == sae_seed:
            raise ValueError(
                f"the planted features and the dictionary's start share seed {sae_seed}: choose another, "
                "or recovery means nothing"
            )
        self.config, self.batch, self.part, self.drawn = config, batch, part, 0
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(config.n_features, config.d, generator=generator)
        self.features = torch.nn.functional.normalize(rows, dim=1)
        self.offset = config.offset * torch.randn(config.d, generator=generator)
        ranks = torch.arange(1, config.n_features + 1, dtype=torch.float64) ** -config.zipf
        self.probability = (ranks * config.active / ranks.sum()).clamp(max=0.5).float()

    def __iter__(self) -> Iterator[Tensor]:
        """Batches from where the loader stands."""
        while True:
            self.drawn += 1
            yield self.sample(self.batch, self.drawn - 1)[0]

    def sample(self, n: int, index: int = 0) -> tuple[Tensor, Tensor]:
        """Samples `[n, d]` and their true codes `[n, n_features]` of the index-th batch."""
        c = self.config
        generator = torch.Generator().manual_seed((c.seed * 1_000_003 + self.part) * 1_000_003 + index + 1)
        draws = torch.rand(n, c.n_features, generator=generator)
        if c.zipf:
            active = draws < self.probability
        else:
            active = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, draws.topk(c.active, dim=1).indices, True)
        sizes = (c.mean + c.spread * torch.randn(n, c.n_features, generator=generator)).clamp_min(0.1)
        codes = active * sizes
        noise = c.noise * torch.randn(n, c.d, generator=generator)
        return codes @ self.features + self.offset + noise, codes

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
    directions = torch.nn.functional.normalize(sae.directions().float().cpu(), dim=1)
    cosines = torch.nn.functional.normalize(features, dim=1) @ directions.T
    best = cosines.amax(1)
    return {
        "mmcs": float(best.mean()),
        "recovered": float((best > 0.9).float().mean()),
        "precision": float(cosines.amax(0).mean()),
    }
