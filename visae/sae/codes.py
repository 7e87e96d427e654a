"""`Codes`: what a dictionary says about tokens. Sparse, of fixed capacity, never a dense `[n, F]` unless asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from visae.ops import Coded, Dense, Pattern, Ragged


@dataclass(frozen=True)
class Codes:
    """Sparse codes of n tokens.

    Attributes:
        indices: `[n, k]` int64 latents, -1 where a row has fewer than k.
        values: `[n, k]` float, 0 where the index is -1. Kinds without a fixed k (batch_topk, relu_l1) have as many
            columns as the row with most codes in this batch.
        n_latents: width F of the dictionary.
        scale: `[n]` what a code of each row adds, in units of `directions()`; `decode` needs it where the normaliser
            measures tokens one by one, and it is None elsewhere.
        shift: `[n]` added to all dimensions of each row's reconstruction, likewise.
        side: what the rows were encoded by beside their values, `[n, ...]` by name, where `decode` needs it again.
        signed: whether the dictionary's codes may be negative.
    """

    indices: Tensor
    values: Tensor
    n_latents: int
    scale: Tensor | None = None
    shift: Tensor | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)
    signed: bool = False

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.ndim != 2:
            raise ValueError(
                f"codes need indices and values of one shape [n, k]; got {tuple(self.indices.shape)} and "
                f"{tuple(self.values.shape)}"
            )

    def __len__(self) -> int:
        return self.indices.shape[0]

    @property
    def capacity(self) -> int:
        """Columns k: codes that fit in a row."""
        return self.indices.shape[1]

    @classmethod
    def of(cls, coded: Coded, capacity: int | None = None) -> "Codes":
        """Codes from a batch of the training kernels; entries of value 0 are dropped.

        Args:
            coded: dense or ragged codes.
            capacity: columns; None makes room for the fullest row.
        """
        if isinstance(coded, Dense):
            pattern = Pattern.of_mask(coded.values != 0)
            coded = Ragged(pattern, coded.values[pattern.rows, pattern.columns])
        keep = coded.values != 0
        rows, columns, values = coded.pattern.rows[keep], coded.pattern.columns[keep], coded.values[keep]
        n = coded.n_rows
        counts = torch.zeros(n, dtype=torch.int64, device=rows.device).index_add_(0, rows, torch.ones_like(rows))
        width = (int(counts.max()) if n else 0) if capacity is None else capacity
        place = torch.arange(rows.shape[0], device=rows.device) - (counts.cumsum(0) - counts)[rows]
        indices = torch.full((n, width), -1, dtype=torch.int64, device=rows.device)
        padded = torch.zeros((n, width), dtype=values.dtype, device=rows.device)
        return cls(
            indices.index_put((rows, place), columns), padded.index_put((rows, place), values), coded.pattern.n_latents
        )

    @classmethod
    def cat(cls, parts: Sequence["Codes"]) -> "Codes":
        """Rows of several codes, one after another, with the capacity of the widest."""
        width = max(p.capacity for p in parts)
        pad = [(0, width - p.capacity) for p in parts]
        return cls(
            torch.cat([torch.nn.functional.pad(p.indices, w, value=-1) for p, w in zip(parts, pad, strict=True)]),
            torch.cat([torch.nn.functional.pad(p.values, w) for p, w in zip(parts, pad, strict=True)]),
            parts[0].n_latents,
            _joined([p.scale for p in parts]),
            _joined([p.shift for p in parts]),
            {name: torch.cat([p.side[name] for p in parts]) for name in parts[0].side},
            any(p.signed for p in parts),
        )

    @classmethod
    def from_dense(cls, dense: Tensor) -> "Codes":
        """Codes from `[n, F]`."""
        return cls.of(Dense(dense))

    def ragged(self) -> Ragged:
        """The same as entries row after row, for the decode kernels; differentiable in the values."""
        keep = self.indices >= 0
        offsets = torch.zeros(len(self) + 1, dtype=torch.int64, device=keep.device)
        offsets[1:] = keep.sum(1).cumsum(0)
        return Ragged(Pattern(self.indices[keep], offsets, self.n_latents), self.values[keep])

    def to_dense(self) -> Tensor:
        """`[n, F]`: one column per latent. Mind the memory."""
        out = torch.zeros(len(self), self.n_latents + 1, dtype=self.values.dtype, device=self.values.device)
        padded = torch.where(self.indices < 0, self.n_latents, self.indices)
        return out.scatter(1, padded, self.values)[:, : self.n_latents]

    def l0(self) -> Tensor:
        """`[n]` int64: codes that are not zero."""
        return ((self.indices >= 0) & (self.values != 0)).sum(1)

    def latent(self, index: int) -> Tensor:
        """`[n]` values of one latent, 0 where it is silent."""
        return torch.where(self.indices == index, self.values, torch.zeros_like(self.values)).sum(1)

    def to(self, device: torch.device | str) -> "Codes":
        """The same on another device."""
        return self._each(lambda column: column.to(device))

    def __getitem__(self, rows: slice | Tensor) -> "Codes":
        """Codes of some of the rows."""
        return self._each(lambda column: column[rows])

    def with_values(self, values: Tensor) -> "Codes":
        """The same codes with other values `[n, k]`, for edits: all that belongs to the tokens stays."""
        return replace(self, values=values)

    def silent(self) -> "Codes":
        """The same rows with no code at all: `decode` gives what is left of a token then."""
        return replace(self, indices=self.indices[:, :0], values=self.values[:, :0])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Codes":
        """The codes with every tensor `[n, ...]` changed alike."""
        changed: dict[str, Any] = {name: change(t) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **changed, side={name: change(t) for name, t in self.side.items()})


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor from those of several codes, or None where none has one.

    Raises:
        ValueError: if only some have.
    """
    known = [part for part in parts if part is not None]
    if known and len(known) < len(parts):
        raise ValueError("some of these codes carry scales of their tokens and others do not: they cannot be joined")
    return torch.cat(known) if known else None
