"""A hand-made dictionary and a hand-made source of tokens, whose dense codes the tests know."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visae.geometry import Framing, Geometry
from visae.tokens import KINDS

GRID = (3, 4)


@dataclass(frozen=True)
class FakeCodes:
    indices: Tensor
    values: Tensor
    n_latents: int


class FakeSae(nn.Module):
    """Takes rows for dense codes and keeps those that are not zero, in a shuffled order with padding between."""

    def __init__(self, n_latents: int, signed: bool = False):
        super().__init__()
        self.n_latents, self.signed = n_latents, signed
        self.register_buffer("mean", torch.zeros(n_latents))

    def encode(self, x: Tensor) -> FakeCodes:
        order = torch.randperm(self.n_latents, generator=torch.Generator().manual_seed(len(x)))
        values = x[:, order].float()
        return FakeCodes(torch.where(values != 0, order.expand_as(values), -1), values, self.n_latents)

    def directions(self) -> Tensor:
        return torch.eye(self.n_latents) * torch.arange(1, self.n_latents + 1)[:, None]


class FakeSource:
    """Items of one class token and `GRID` patches each, in chunks of a few items."""

    def __init__(
        self,
        dense: np.ndarray,
        labels: list[dict[str, tuple[str, ...]]],
        factors: dict[str, list[str]],
        per_chunk: int = 3,
        name: str = "hand-made",
    ):
        self.dense, self.item_labels, self.factors, self.per_chunk = dense, labels, factors, per_chunk
        self.n_rows = dense.shape[0] * dense.shape[1]
        self.keys = [f"item {i}" for i in range(len(dense))]
        framing = Framing((30, 40), mode="squash")
        geometry = Geometry(framing, GRID, (10.0, 10.0), prefix=("cls",))
        self.meta = {"data": name, "fingerprint": name, "geometry": geometry.to_dict(), "model": "hand-made"}

    def chunks(self):
        t = self.dense.shape[1]
        patch = np.arange(t) - 1
        for start in range(0, len(self.dense), self.per_chunk):
            rows = self.dense[start : start + self.per_chunk]
            n = len(rows)
            yield SimpleNamespace(
                rows=torch.from_numpy(rows.reshape(n * t, -1)),
                item=np.repeat(np.arange(start, start + n), t),
                index=np.tile(np.arange(t), n),
                region=None,
                kind=np.tile(np.where(patch < 0, KINDS.index("cls"), KINDS.index("patch")), n).astype(np.uint8),
                y=np.tile(np.where(patch < 0, -1, patch // GRID[1]), n),
                x=np.tile(np.where(patch < 0, -1, patch % GRID[1]), n),
            )


def hand_made(
    n_items: int = 11, n_latents: int = 7, signed: bool = False, seed: int = 0, name: str = "hand-made"
) -> FakeSource:
    """Random sparse codes with repeated values; latent 5 is dead and latent 6 fires on class tokens only."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-6 if signed else -10, 7, (n_items, 1 + GRID[0] * GRID[1], n_latents)).astype(np.float32) / 2
    dense = dense if signed else dense.clip(0)
    dense[rng.random(dense.shape) < 0.5] = 0
    dense[..., 5] = 0
    dense[:, 1:, 6] = 0
    shapes, colours = ["circle", "square", "star"], ["red", "blue"]
    labels = [
        {"shape": tuple(s for s in shapes if rng.random() < 0.5), "colour": (colours[i % 2],)} for i in range(n_items)
    ]
    return FakeSource(dense, labels, {"shape": shapes, "colour": colours}, name=name)


@pytest.fixture
def fakes():
    return SimpleNamespace(Sae=FakeSae, Source=FakeSource, hand_made=hand_made, grid=GRID)
