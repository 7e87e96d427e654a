"""One stream of batches read by several runs: every batch is drawn, moved and checked once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visae.sae import Dictionary, Moments, Rows
from visae.train.feed import Feed, FirstRows


@torch.no_grad()
def left_over(x: Any, dictionaries: Sequence[Dictionary]) -> Any:
    """Tokens less what dictionaries make of them, each reading what those before it left; see `Ensemble`, boost."""
    if not dictionaries:
        return x
    rows = getattr(x, "rows", x).to(dictionaries[0].mean.device, torch.float32)
    for one in dictionaries:
        rows = rows - one(rows)
    return Rows(rows, x.side) if isinstance(x, Rows) else rows


class LeftOver:
    """What dictionaries leave of batches that can be iterated again.

    Args:
        batches: the batches.
        dictionaries: see `left_over`.
    """

    def __init__(self, batches: Iterable[Any], dictionaries: Sequence[Dictionary]):
        self.batches, self.dictionaries = batches, dictionaries

    def __iter__(self) -> Iterator[Any]:
        """The batches, less what is taken away."""
        return (left_over(x, self.dictionaries) for x in self.batches)


class Tee:
    """Batches of one source for several readers, each held until the last reader has it.

    Args:
        draw: brings the next batch.
        state: JSON state of the source, after the batches drawn so far.
    """

    def __init__(self, draw: Callable[[], Any], state: Callable[[], Any]):
        self._draw, self._state = draw, state
        self._held: dict[int, Any] = {}
        self._states: dict[int, Any] = {}
        self.drawn = 0
        self.readers: list[Reader] = []

    def at(self, position: int) -> Any:
        """The batch at a position, 0 being the first."""
        while self.drawn <= position:
            if any(reader.position < self.drawn for reader in self.readers):
                self.mark()  # somebody may come by here and want it
            self._held[self.drawn] = self._draw()
            self.drawn += 1
        return self._held[position]

    def state(self, position: int) -> Any:
        """State of the source after `position` batches."""
        return self._state() if position == self.drawn else self._states[position]

    def mark(self) -> None:
        """Keeps the state of the source as it is now, for readers that have yet to come here."""
        self._states[self.drawn] = self._state()

    def forget(self) -> None:
        """Drops what every reader has passed."""
        first = min((reader.position for reader in self.readers), default=self.drawn)
        for kept in (self._held, self._states):
            for position in [p for p in kept if p < first]:
                del kept[position]

    def jump(self, position: int) -> None:
        """Follows a source that was set to another position."""
        self._held.clear()
        self._states.clear()
        self.drawn = position


class Reader:
    """A place in a `Tee`."""

    def __init__(self, tee: Tee):
        self.tee, self.position = tee, 0
        tee.readers.append(self)

    def __next__(self) -> Any:
        """The next batch."""
        batch = self.tee.at(self.position)
        self.position += 1
        self.tee.forget()
        return batch

    def close(self) -> None:
        """Reads no more."""
        self.tee.readers.remove(self)
        self.tee.forget()


class Shared:
    """A feed for several runs.

    Args:
        feed: what they share.
    """

    def __init__(self, feed: Feed):
        self.feed = feed
        self.tee = Tee(lambda: next(feed), feed.state)
        self.first: tuple[Moments, Tensor | Rows] | None = None
        self._resumed: dict[Branch, dict[str, Any]] = {}

    def resume(self, branch: "Branch", state: dict[str, Any]) -> None:
        """Notes where a run wants to go on."""
        branch.reader.position = state["drawn"]
        self._resumed[branch] = state

    def settle(self) -> None:
        """Once all runs stand where they begin: drops the first rows, goes to the one that is furthest behind."""
        self.first = None
        if not self.tee.readers:
            return
        last = min(reader.position for reader in self.tee.readers)
        states = [state for state in self._resumed.values() if state["drawn"] == last]
        if last and states:
            self.feed.restore(states[0])
            self.tee.jump(last)
        self._resumed.clear()


class Branch:
    """The batches of one of the runs, see `visae.train.feed.Batches`.

    Args:
        shared: the feed they come from.
        after: dictionaries whose reconstructions are taken away from them.
    """

    def __init__(self, shared: Shared, after: Sequence[Dictionary] = ()):
        self.shared, self.after, self.reader = shared, after, Reader(shared.tee)
        self._coming: tuple[int, Tensor | Rows] | None = None

    @property
    def n_rows(self) -> int | None:
        """See `Feed.n_rows`."""
        return self.shared.feed.n_rows

    def __next__(self) -> Tensor | Rows:
        """The next batch; the shared feed has checked it."""
        batch = self.coming()
        next(self.reader)
        self._coming = None
        return batch

    def coming(self) -> Tensor | Rows:
        """The next batch, which stays to be drawn."""
        position = self.reader.position
        if self._coming is None or self._coming[0] != position:
            self._coming = position, left_over(self.reader.tee.at(position), self.after)
        return self._coming[1]

    def close(self) -> None:
        """Draws no more."""
        self.reader.close()

    def first(self, rows: int, covariance: bool = False) -> tuple[Moments, Tensor | Rows]:
        """See `Batches.first`; read once for all, by `read_first`."""
        if self.shared.first is None:
            self.shared.first = self.shared.feed.first(rows, covariance)
        moments, held = self.shared.first
        if self.after:  # what is left has moments of its own, taken from the rows that are at hand
            held = left_over(held, self.after)
            moments = Moments(self.shared.feed.d, covariance)
            moments.add(held.rows if isinstance(held, Rows) else held)
        return moments, held

    def check(self) -> None:
        """See `Batches.check`."""
        self.shared.feed.check()

    def state(self) -> dict[str, Any]:
        """See `Batches.state`: what the run would have seen alone."""
        return self.shared.tee.state(self.reader.position)  # type: ignore[no-any-return]

    def restore(self, state: dict[str, Any]) -> None:
        """See `Batches.restore`; carried out by `Shared.settle`."""
        self.shared.resume(self, state)

    def convert(self, states: list[dict[str, Any]], batch: int) -> str:
        """See `Batches.convert`.

        Raises:
            ValueError: always.
        """
        del batch
        raise ValueError(f"a suite goes on with as many processes as it began with, {len(states)}")


def read_first(shared: Mapping[Shared, bool], rows: int) -> None:
    """Reads the first rows of several shared feeds, with their covariance where that is asked.

    It goes batch by batch, so that a source which the feeds have in common need not hold many.
    """
    waiting = {one: (FirstRows(one.feed.d, wide), one.feed.peek(rows)) for one, wide in shared.items()}
    while waiting:
        for one, (first, batches) in list(waiting.items()):
            if (x := next(batches, None)) is None:
                one.first = first.moments, first.rows
                del waiting[one]
            else:
                one.feed.check()
                first.add(x)


class _Wide:
    """A loader of rows side by side."""

    def __init__(self, loader: Any):
        self.loader, self._source = loader, iter(loader)
        self.tee = Tee(self._draw, loader.state_dict)
        self.tee.mark()

    def _draw(self) -> Any:
        return next(self._source)

    def go(self, state: dict[str, Any]) -> None:
        """Stands where a part's state was taken; moved by the first part that asks."""
        if self.tee.drawn != state["drawn"]:
            self.loader.load_state_dict(state["loader"])
            self._source = iter(self.loader)
            self.tee.jump(state["drawn"])
            self.tee.mark()


class Part:
    """Some columns of a loader's batches; made by `split_columns`."""

    def __init__(self, wide: _Wide, columns: slice):
        self._wide, self._reader, self._columns = wide, Reader(wide.tee), columns

    def __iter__(self) -> Iterator[Tensor | Rows]:
        """Batches `[b, columns]` from where it stands, with the side information of their rows."""
        while True:
            try:
                raw = next(self._reader)
            except StopIteration:
                return
            rows = getattr(raw, "rows", raw)[:, self._columns]
            yield Rows(rows, raw.side) if isinstance(raw, Rows) else rows

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        position = self._reader.position
        return {"drawn": position, "loader": self._wide.tee.state(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there."""
        self._wide.go(state)
        self._reader.position = state["drawn"]


def split_columns(loader: Any, widths: Mapping[str, int]) -> dict[str, Part]:
    """One loader per name from a loader that brings their rows side by side, `[b, sum of widths]`.

    A wide batch is drawn once; the parts are meant to be read in step, as a `Suite` does.

    Args:
        loader: with `state_dict` and `load_state_dict`, as stores and streams make them.
        widths: columns of each name, in their order.
    """
    wide, parts, start = _Wide(loader), {}, 0
    for name, width in widths.items():
        parts[name] = Part(wide, slice(start, start + width))
        start += width
    return parts
