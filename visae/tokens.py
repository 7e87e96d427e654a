"""Tokens: rows that flowed through a site, where each came from, and which rows are wanted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = ("patch", "cls", "reg", "text", "pooled")
"""Kinds of token; the index in this tuple is the code kept in `Tokens.kind`."""


@dataclass(frozen=True)
class Tokens:
    """Rows of activations and their origin.

    Attributes:
        rows: `[n, d]` activations.
        item: `[n]` int64 index of the sample in its data set.
        index: `[n]` int32 place in the site's token sequence.
        kind: `[n]` uint8 code into `KINDS`.
        y: `[n]` int32 row on the token grid, -1 for tokens that have no place in the image.
        x: `[n]` int32 column on the token grid, likewise.
        step: `[n]` int16 place among the timesteps of a pipeline's run, None for models that see images.
        sigma: `[n]` float32 noise level of the step (see `visae.clock`), likewise.
        branch: `[n]` int8 branch of the guidance, a number of `visae.clock.CODES`, likewise.
    """

    rows: Tensor
    item: Tensor
    index: Tensor
    kind: Tensor
    y: Tensor
    x: Tensor
    step: Tensor | None = None
    sigma: Tensor | None = None
    branch: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True)
class TokenPolicy:
    """Which rows of a site are wanted.

    Attributes:
        kinds: kinds of token to keep, a subset of `KINDS`; a site that has one token per image (pooled) keeps it.
        per_image: keep this many tokens of each image, drawn anew for every image from (seed, item); None keeps all.
        seed: of the draw.
    """

    kinds: tuple[str, ...] = ("patch",)
    per_image: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if wrong := [k for k in self.kinds if k not in KINDS]:
            raise ValueError(f"token kinds are {', '.join(KINDS)}; got {', '.join(wrong)}")
        if not self.kinds:
            raise ValueError(f"a token policy needs at least one kind of {', '.join(KINDS)}; got none")
        if self.per_image is not None and self.per_image < 1:
            raise ValueError(f"per_image counts tokens and must be at least 1, got {self.per_image}; None keeps all")

    @classmethod
    def parse(cls, text: str, per_image: int | None = None, seed: int = 0) -> "TokenPolicy":
        """Policy from words such as `patch`, `patch+cls` or `all`."""
        kinds = KINDS if text == "all" else tuple(part.strip() for part in text.split("+"))
        return cls(kinds=kinds, per_image=per_image, seed=seed)

    def candidates(self, kinds: Sequence[str]) -> np.ndarray:
        """Places in a sequence of these kinds that the policy allows.

        Raises:
            ValueError: if none is left.
        """
        keep = np.flatnonzero([kind in self.kinds or kind == "pooled" for kind in kinds])
        if keep.size == 0:
            raise ValueError(
                f"the token policy wants {' and '.join(self.kinds)} tokens but the site has only "
                f"{', '.join(sorted(set(kinds)))}: choose another policy (all) or another site"
            )
        return keep

    def count(self, kinds: Sequence[str]) -> int:
        """Rows kept of each image."""
        allowed = len(self.candidates(kinds))
        return allowed if self.per_image is None else min(self.per_image, allowed)

    def select(self, kinds: Sequence[str], items: np.ndarray) -> np.ndarray:
        """Places `[n, count]` (int32, ascending) kept of each item `[n]`; the same for an item in any batch."""
        allowed = self.candidates(kinds)
        count = self.count(kinds)
        if count == len(allowed):
            return np.broadcast_to(allowed.astype(np.int32), (len(items), count))
        keys = _hash(np.asarray(items, dtype=np.uint64)[:, None], allowed.astype(np.uint64)[None, :], self.seed)
        return np.sort(allowed[np.argsort(keys, axis=1)[:, :count]], axis=1).astype(np.int32)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for cards and content hashes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TokenPolicy":
        """Reverse of `to_dict`."""
        return cls(**{**data, "kinds": tuple(data["kinds"])})


def _hash(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """Mixes item, place and seed into 64 bits (the finaliser of splitmix64), so that a draw depends on nothing else."""
    with np.errstate(over="ignore"):
        z: np.ndarray = a * np.uint64(0x9E3779B97F4A7C15) + b * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(seed)
        z = (z ^ np.right_shift(z, np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ np.right_shift(z, np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ np.right_shift(z, np.uint64(31))


def gather(
    activations: Tensor, kinds: Sequence[str], grid: tuple[int, int] | None, items: np.ndarray, places: np.ndarray
) -> Tokens:
    """Picks rows out of `[n, t, d]` activations.

    Args:
        activations: what a tap brought, one row of tokens per item.
        kinds: kind of each of the t tokens.
        grid: rows and columns of the patches, which come last in the sequence; None where there are none.
        items: `[n]` index of each sample in its data set.
        places: `[n, m]` from `TokenPolicy.select`.
    """
    n, m = places.shape
    index = torch.from_numpy(np.ascontiguousarray(places))
    wanted = index.to(activations.device, torch.int64)[..., None].expand(n, m, activations.shape[2])
    rows = activations.gather(1, wanted)
    codes = torch.tensor([KINDS.index(kind) for kind in kinds], dtype=torch.uint8)[index.long()]
    first = len(kinds) - (grid[0] * grid[1] if grid else 0)
    width = grid[1] if grid else 1
    on_grid = codes == KINDS.index("patch")
    nowhere = torch.full_like(index, -1)
    return Tokens(
        rows=rows.reshape(n * m, -1),
        item=torch.from_numpy(np.asarray(items, dtype=np.int64)).repeat_interleave(m),
        index=index.reshape(-1),
        kind=codes.reshape(-1),
        y=torch.where(on_grid, (index - first) // width, nowhere).reshape(-1),
        x=torch.where(on_grid, (index - first) % width, nowhere).reshape(-1),
    )
