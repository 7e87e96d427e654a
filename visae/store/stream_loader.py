"""Shuffled rows of a stream: a mixing buffer over whole forward passes, resumed by replaying it on row numbers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from visae.sae.side import Rows
from visae.store.batches import Batch, split_into
from visae.store.forward import as_numpy
from visae.store.loader import BUFFER_BYTES, check_part, sigmas, with_sigma

if TYPE_CHECKING:
    from visae.store.stream import Stream


class StreamLoader:
    """Loader over a stream; made by `Stream.loader`.

    Samples pass in an order drawn from (seed, epoch). The buffer is filled with the rows of whole forward passes and
    shuffled; its first half is served, the rest stays and is filled up. At the end of a pass all is served. The
    shuffles depend on (seed, epoch, refill) alone, so a resume replays them on row numbers and computes only the
    forward passes of which rows are still in the buffer.
    """

    def __init__(
        self,
        stream: "Stream",
        batch: int,
        seed: int,
        passes: int | None,
        pin: bool,
        buffer_bytes: int | None,
        rank: int,
        processes: int,
    ):
        check_part(batch, rank, processes)
        if processes > stream.n_items:
            raise ValueError(f"{stream.n_items} images cannot be shared by {processes} processes: start fewer")
        self._rank, self._processes = rank, processes
        self._stream, self._batch, self._passes, self._pin = stream, batch, passes, pin
        self._seed, self._epoch, self._position, self._skip = seed, 0, 0, 0
        t = stream.meta.tokens_per_item
        self._capacity = max(2 * stream.batch * t, (buffer_bytes or BUFFER_BYTES) // (stream.meta.bytes_per_item // t))
        self._served = np.empty(0, np.int64)
        self._sigmas = sigmas(stream.meta)
        self._at: int
        self._stop: int
        self._rows: np.ndarray
        self._origin: np.ndarray
        self._begin()

    @property
    def n_rows(self) -> int:
        """Rows of one pass, of all processes together."""
        return self._stream.n_rows

    @property
    def items(self) -> np.ndarray:
        """Sample `[b]` of every row of the latest batch."""
        return self._served

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is; `unreadable` lists samples met so far that gave no rows, which the replay must know."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._seed,
            "skip": self._skip,
            "unreadable": [one.item for one in self._stream.skipped],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the batch that was served last when the state was taken.

        Raises:
            ValueError: if the state belongs to another data set.
        """
        if not 0 <= state["position"] <= self._stream.n_rows:
            raise ValueError(
                f"the state stands at row {state['position']} but this stream has {self._stream.n_rows} rows in a "
                "pass: it belongs to another data set or policy"
            )
        self._seed, self._epoch, self._skip = state["seed"], state["epoch"], state["skip"]
        self._begin()
        self._replay(state["position"], set(state["unreadable"]))

    def load_states(self, states: list[dict[str, Any]]) -> str:
        """Goes on, as near as can be, where another number of processes stood with these states.

        Images pass in the same order whatever the number of processes; so this pass goes on after as many of them as
        there were rows served. What lay in mixing buffers is served again or not at all.

        Returns:
            What is not exact about it.
        """
        t, first = self._stream.meta.tokens_per_item, states[0]
        self._seed, self._epoch = first["seed"], max(state["epoch"] for state in states)
        now = [state for state in states if state["epoch"] == self._epoch]
        self._skip = first["skip"] + sum(state["position"] for state in now) // t
        if len(states) - len(now) or self._stream.n_items - self._skip < self._processes:
            self._epoch, self._skip = self._epoch + 1, 0
        self._begin()
        held = len(states) * self._capacity
        return (
            f"a stream's order depends on the number of processes: up to {held} rows of pass {self._epoch} that "
            f"{len(states)} processes held in their buffers are served again or not at all"
        )

    def __iter__(self) -> Iterator[Tensor | Rows]:
        return self

    def __next__(self) -> Tensor | Rows:
        meta = self._stream.meta
        out = torch.empty((self._batch, self._stream.d), dtype=meta.torch_dtype, pin_memory=self._pin)
        view, origin, filled, idle = as_numpy(out), [], 0, 0
        while filled < self._batch and (self._passes is None or self._epoch < self._passes):
            if self._at == self._stop and not self._refill():
                idle = idle + 1 if self._position == 0 else 0
                if idle > 1:
                    raise ValueError(f"none of the images of {meta.data} can be read: there are no rows to serve")
                self._epoch, self._skip = self._epoch + 1, 0
                self._begin()
                continue
            take = min(self._batch - filled, self._stop - self._at)
            view[filled : filled + take] = self._rows[self._at : self._at + take]
            origin.append(self._origin[self._at : self._at + take])
            filled, self._at, self._position = filled + take, self._at + take, self._position + take
        if not filled:
            raise StopIteration
        served = np.concatenate(origin)
        self._served = served[:, 0]
        return with_sigma(out[:filled], served[:, 2], self._sigmas)

    def _begin(self) -> None:
        """Stands at the start of a pass."""
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._stream.n_items)
        mine = order[self._skip + self._rank :: self._processes]
        self._parts = list(split_into(mine.tolist(), self._stream.batch))
        self._source: Iterator[tuple[Batch, np.ndarray]] | None = None
        self._next, self._refills, self._position = 0, 0, 0
        self._at, self._stop = 0, 0
        meta = self._stream.meta
        self._rows = np.empty((0, self._stream.d), as_numpy(torch.empty(0, dtype=meta.torch_dtype)).dtype)
        self._origin = np.empty((0, 3), np.int64)

    def _refill(self) -> bool:
        """Fills the buffer up and shuffles it; False at the end of a pass."""
        if self._source is None:
            self._source = self._stream.extracted(iter(self._parts[self._next :]))
        rows, origin = [self._rows[self._stop :]], [self._origin[self._stop :]]
        held = len(rows[0])
        while held < self._capacity and self._next < len(self._parts):
            batch, fresh = next(self._source)
            rows.append(fresh.reshape(-1, fresh.shape[-1]))
            origin.append(self._origin_of(self._next, batch.items))
            self._next, held = self._next + 1, held + len(origin[-1])
        if not held:
            return False
        order = self._shuffle(held)
        self._rows = np.concatenate([part for part in rows if len(part)]).take(order, axis=0)
        self._origin = np.concatenate(origin)[order]
        return True

    def _shuffle(self, held: int) -> np.ndarray:
        """Order of a freshly filled buffer of `held` rows; sets what part of it will be served."""
        self._refills += 1
        self._at, self._stop = 0, held if self._next == len(self._parts) else -(-held // 2)
        return np.random.default_rng([self._seed, self._epoch, self._refills]).permutation(held)

    def _origin_of(self, part: int, items: np.ndarray) -> np.ndarray:
        """Sample, forward pass and row in it `[n, 3]` of the rows that a forward pass brings."""
        t = self._stream.meta.tokens_per_item
        n = len(items) * t
        return np.stack([np.repeat(items, t), np.full(n, part), np.arange(n)], axis=1)

    def _replay(self, position: int, unreadable: set[int]) -> None:
        """Repeats all refills up to `position` on row numbers, then computes the rows that the buffer holds."""
        while self._position < position:
            origin = [self._origin[self._stop :]]
            held = len(origin[0])
            while held < self._capacity and self._next < len(self._parts):
                items = np.array([item for item in self._parts[self._next] if item not in unreadable], dtype=np.int64)
                origin.append(self._origin_of(self._next, items))
                self._next, held = self._next + 1, held + len(origin[-1])
            if not held:
                raise ValueError(
                    f"the state stands at row {position} but this pass ends at row {self._position}: it belongs to "
                    "another data set or policy"
                )
            self._origin = np.concatenate(origin)[self._shuffle(held)]
            self._at = min(self._stop, position - self._position)
            self._position += self._at
        self._rows = np.empty((len(self._origin), self._stream.d), self._rows.dtype)
        wanted = np.unique(self._origin[self._at :, 1]).tolist()
        parts = (self._parts[part] for part in wanted)
        for part, (_, fresh) in zip(wanted, self._stream.extracted(parts), strict=True):
            mine = np.flatnonzero(self._origin[:, 1] == part)
            self._rows[mine] = fresh.reshape(-1, fresh.shape[-1])[self._origin[mine, 2]]
