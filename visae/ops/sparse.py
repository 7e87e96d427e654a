"""Codes inside a training step: `Dense` for the oracle and for dense objectives, `Ragged` for the sparse path."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Pattern:
    """Where a batch of sparse codes is not zero: entries row after row, as in a CSR matrix.

    Attributes:
        columns: `[m]` int64 latent of each entry.
        offsets: `[n + 1]` int64; the entries of row r are `offsets[r]:offsets[r + 1]`.
        n_latents: width F of the codes.
        per_row: entries of every row, where all have as many; None where they differ.
    """

    def __init__(self, columns: Tensor, offsets: Tensor, n_latents: int, per_row: int | None = None):
        self.columns = columns
        self.offsets = offsets
        self.n_latents = n_latents
        self.per_row = per_row

    @classmethod
    def rectangular(cls, indices: Tensor, n_latents: int) -> "Pattern":
        """Pattern of `[n, k]` latents, k in every row."""
        n, k = indices.shape
        return cls(indices.reshape(-1), torch.arange(0, n * k + 1, k, device=indices.device), n_latents, k)

    @classmethod
    def of_places(cls, flat: Tensor, n_rows: int, n_latents: int) -> "Pattern":
        """Pattern of the entries at these places `[m]`, rising, of a flattened `[n, F]`."""
        rows = torch.div(flat, max(1, n_latents), rounding_mode="floor")
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=flat.device)
        offsets[1:] = torch.zeros_like(offsets[1:]).index_add_(0, rows, torch.ones_like(rows)).cumsum(0)
        return cls(flat - rows * n_latents, offsets, n_latents)

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Pattern":
        """Pattern of the true entries of a `[n, F]` mask."""
        offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(mask.sum(1), 0, out=offsets[1:])
        return cls(mask.nonzero()[:, 1].contiguous(), offsets, mask.shape[1])

    @property
    def n_rows(self) -> int:
        """Rows of the batch."""
        return self.offsets.shape[0] - 1

    @cached_property
    def rows(self) -> Tensor:
        """`[m]` int64 row of each entry."""
        counts = self.offsets[1:] - self.offsets[:-1]
        every = torch.arange(self.n_rows, device=self.columns.device)
        return torch.repeat_interleave(every, counts, output_size=self.columns.shape[0])

    def sorted(self, keys: Tensor) -> Tensor:
        """`[m]` int64 order of the entries, row after row and by rising key `[m]` within a row; stable."""
        if self.per_row:
            order = keys.view(-1, self.per_row).argsort(dim=1, stable=True)
            return (order + self.offsets[:-1, None]).view(-1)
        order = torch.argsort(keys, stable=True)
        return order[torch.argsort(self.rows[order], stable=True)]

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed pattern: `order` `[m]` of the entries latent after latent, their rows, offsets `[F + 1]`.

        Entries of a latent stay in the order of the rows, so sums over them are the same every time.
        """
        if self.columns.device.type == "cpu":
            return self._counting_sort()
        order = torch.sort(self.columns.to(torch.int32), stable=True).indices
        offsets = torch.zeros(self.n_latents + 1, dtype=torch.int64, device=self.columns.device)
        offsets[1:] = torch.zeros_like(offsets[1:]).index_add_(0, self.columns, torch.ones_like(self.columns)).cumsum(0)
        return order, self.rows[order], offsets

    def _counting_sort(self) -> tuple[Tensor, Tensor, Tensor]:
        """CSR to CSC by scipy: linear, one thread, two to ten times faster than a sort and unmoved by load."""
        from scipy.sparse import csr_matrix

        entries = np.arange(self.columns.shape[0], dtype=np.int32)
        columns, offsets = (t.numpy().astype(np.int32) for t in (self.columns, self.offsets))
        turned = csr_matrix((entries, columns, offsets), shape=(self.n_rows, self.n_latents)).tocsc()
        return torch.from_numpy(turned.data), torch.from_numpy(turned.indices), torch.from_numpy(turned.indptr)


@dataclass
class Ragged:
    """Sparse codes of a batch that autograd can follow: a pattern and one value per entry `[m]`."""

    pattern: Pattern
    values: Tensor

    @property
    def n_rows(self) -> int:
        """Rows of the batch."""
        return self.pattern.n_rows

    def fired(self) -> Tensor:
        """`[F]` bool: which latents are not zero somewhere in the batch."""
        return self.counts() > 0

    def counts(self) -> Tensor:
        """`[F]` int32: on how many rows each latent is not zero."""
        counts = torch.zeros(self.pattern.n_latents, dtype=torch.int32, device=self.values.device)
        return counts.index_add_(0, self.pattern.columns, (self.values != 0).int())

    def l0(self) -> Tensor:
        """Mean number of non-zero codes per row, a scalar."""
        return (self.values != 0).sum() / self.n_rows

    def row_sum(self) -> Tensor:
        """Mean over rows of the sum of the values."""
        return self.values.sum() / self.n_rows

    def l1(self, weights: Tensor | None = None) -> Tensor:
        """Mean over rows of the sum of |value|, times a weight `[F]` per latent where given."""
        size = self.values.abs()
        return (size if weights is None else size * weights[self.pattern.columns]).sum() / self.n_rows

    def sums(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`[F]`: per latent the sum of its values over the batch, each changed; 0 is changed into 0."""
        sums = torch.zeros(self.pattern.n_latents, dtype=self.values.dtype, device=self.values.device)
        return sums.index_add(0, self.pattern.columns.long(), change(self.values))

    def map(self, change: Callable[[Tensor], Tensor], weights: Tensor | None = None) -> "Ragged":
        """The same entries with other values, of the values times a weight `[F]` per latent where given."""
        values = self.values if weights is None else self.values * weights[self.pattern.columns]
        return Ragged(self.pattern, change(values))

    def among(self, low: int, high: int) -> "Ragged":
        """The entries of the latents `low` to `high - 1`; differentiable in the values."""
        return self._keep((self.pattern.columns >= low) & (self.pattern.columns < high))

    def ranked(self, low: int, high: int | Tensor) -> "Ragged":
        """In each row the entries whose absolute value has rank `low` to `high - 1`, the largest being 0.

        Args:
            low: first rank.
            high: one past the last, the same for all rows or `[n]`.
        """
        ends = high[self.pattern.rows] if isinstance(high, Tensor) else high
        return self._keep((self.ranks >= low) & (self.ranks < ends))

    def padded(self, width: int) -> tuple[Tensor, Tensor]:
        """Latents and detached values `[n, width]` of each row by falling absolute value; 0 where a row has fewer."""
        shape, inside = (self.n_rows, width), self.ranks < width
        at = (self.pattern.rows[inside], self.ranks[inside])
        columns = torch.zeros(shape, dtype=torch.int64, device=self.values.device)
        values = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device)
        return (
            columns.index_put(at, self.pattern.columns[inside].long()),
            values.index_put(at, self.values.detach()[inside]),
        )

    @cached_property
    def ranks(self) -> Tensor:
        """`[m]` int64 rank of each entry in its row by falling absolute value; ties in the order of entries."""
        order = self.pattern.sorted(-self.values.detach().abs())
        place = torch.arange(order.shape[0], device=order.device) - self.pattern.offsets[:-1][self.pattern.rows]
        return torch.empty_like(order).index_put((order,), place)

    def _keep(self, keep: Tensor) -> "Ragged":
        offsets = torch.zeros_like(self.pattern.offsets)
        offsets[1:] = torch.zeros_like(offsets[1:]).index_add_(0, self.pattern.rows, keep.long()).cumsum(0)
        return Ragged(Pattern(self.pattern.columns[keep], offsets, self.pattern.n_latents), self.values[keep])

    def to_dense(self) -> Tensor:
        """`[n, F]`, differentiable in the values."""
        out = torch.zeros(self.n_rows, self.pattern.n_latents, dtype=self.values.dtype, device=self.values.device)
        return out.index_put((self.pattern.rows, self.pattern.columns), self.values)


@dataclass
class Dense:
    """Codes of a batch as a `[n, F]` tensor: what the oracle and the dense objectives use."""

    values: Tensor

    @property
    def n_rows(self) -> int:
        """Rows of the batch."""
        return self.values.shape[0]

    def fired(self) -> Tensor:
        """`[F]` bool: which latents are not zero somewhere in the batch."""
        return (self.values != 0).any(0)

    def counts(self) -> Tensor:
        """`[F]` int32: on how many rows each latent is not zero."""
        return (self.values != 0).sum(0, dtype=torch.int32)

    def l0(self) -> Tensor:
        """Mean number of non-zero codes per row, a scalar."""
        return (self.values != 0).sum() / self.n_rows

    def row_sum(self) -> Tensor:
        """Mean over rows of the sum of the values."""
        return self.values.sum() / self.n_rows

    def l1(self, weights: Tensor | None = None) -> Tensor:
        """Mean over rows of the sum of |value|, times a weight `[F]` per latent where given."""
        size = self.values.abs()
        return (size if weights is None else size * weights).sum() / self.n_rows

    def sums(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """See `Ragged.sums`."""
        return change(self.values).sum(0)

    def map(self, change: Callable[[Tensor], Tensor], weights: Tensor | None = None) -> "Dense":
        """See `Ragged.map`."""
        return Dense(change(self.values if weights is None else self.values * weights))

    def among(self, low: int, high: int) -> "Dense":
        """See `Ragged.among`."""
        inside = torch.zeros_like(self.values)
        inside[:, low:high] = 1
        return Dense(self.values * inside)

    def ranked(self, low: int, high: int | Tensor) -> "Dense":
        """See `Ragged.ranked`."""
        order = self.values.detach().abs().argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(order.shape[1], device=order.device)
        ends = high[:, None] if isinstance(high, Tensor) else high
        inside = ((ranks >= low) & (ranks < ends)).expand_as(order).to(self.values.dtype)
        return Dense(self.values * torch.zeros_like(self.values).scatter_(1, order, inside))

    def padded(self, width: int) -> tuple[Tensor, Tensor]:
        """See `Ragged.padded`."""
        columns = self.values.detach().abs().topk(width, dim=1).indices
        return columns, self.values.detach().gather(1, columns)

    def to_dense(self) -> Tensor:
        """`[n, F]`."""
        return self.values


Coded = Ragged | Dense


def overlap(one: Coded, other: Coded) -> tuple[Tensor, Tensor, Tensor]:
    """Where two batches of codes of as many rows are both not zero: values `[m]` of one and the other, and latents."""
    if isinstance(one, Dense) or isinstance(other, Dense):
        a, b = one.to_dense(), other.to_dense()
        rows, columns = ((a != 0) & (b != 0)).nonzero().unbind(1)
        return a[rows, columns], b[rows, columns], columns
    places = [codes.pattern.rows * codes.pattern.n_latents + codes.pattern.columns for codes in (one, other)]
    order = places[1].argsort()
    found = torch.searchsorted(places[1][order], places[0]).clamp(max=max(0, order.numel() - 1))
    if not order.numel():
        return one.values[:0], other.values, one.pattern.columns[:0]
    at = order[found]
    both = (places[1][at] == places[0]) & (one.values != 0) & (other.values[at] != 0)
    return one.values[both], other.values[at[both]], one.pattern.columns[both]


def gather_sum(table: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """`out[r] = sum of weights[e] * table[index[e]]` over the entries e of `offsets[r]:offsets[r + 1]`."""
    return functional.embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
