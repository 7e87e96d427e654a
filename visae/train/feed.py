"""`Feed`: draws checked batches from any iterable of tokens, and knows how to rewind and resume it."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from visae.ops import share
from visae.sae import Moments, Rows
from visae.sae.side import gather, join, unpack

START_BYTES = 2**27
"""At most so many bytes of rows are held for the first atoms; all rows read count for mean and scale."""


class LoaderEnded(ValueError):
    """The loader brought fewer batches than the budget needs."""


class Batches(Protocol):
    """What a run asks of its batches: `Feed`, or a share in one."""

    @property
    def n_rows(self) -> int | None:
        """Rows of one pass, over all processes, where they are known."""
        ...

    def __next__(self) -> Tensor | Rows:
        """The next batch `[b, d]`."""
        ...

    def first(self, rows: int, covariance: bool = False) -> tuple[Moments, Tensor | Rows]:
        """Moments of the next `rows` rows, with their covariance if asked, and those of them that may be held `[m, d]`.

        All stay to be drawn.
        """
        ...

    def check(self) -> None:
        """Raises for bad values seen since the last check."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON state."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        ...

    def convert(self, states: list[dict[str, Any]], batch: int) -> str:
        """Goes on after another number of processes, in batches of so many rows; returns what is not exact about it."""
        ...


class FirstRows:
    """What a run learns from the first rows of its data.

    Args:
        d: length of a row.
        covariance: see `Moments`.

    Attributes:
        moments: of all rows.
    """

    def __init__(self, d: int, covariance: bool = False):
        self.moments = Moments(d, covariance)
        self._held: list[Tensor | Rows] = []
        self._bytes = 0

    def add(self, x: Tensor | Rows) -> None:
        """Takes in rows `[n, d]`."""
        tokens = x.rows if isinstance(x, Rows) else x
        self.moments.add(tokens)
        if self._bytes < START_BYTES:
            self._held.append(x)
            self._bytes += tokens.nbytes

    @property
    def rows(self) -> Tensor | Rows:
        """`[m, d]`: as many of them as may be held."""
        return join(self._held)


def same_length(own: Tensor | Rows | None) -> Tensor | Rows | None:
    """A batch, if every process that splits the rows has one; all stop together with the first that has no more.

    Raises:
        ValueError: on every process, if the batches are not equally long.
    """
    group = share().rows
    if group.size == 1:
        return own
    lengths = group.gather(torch.tensor([0 if own is None else own.shape[0]], device=group.device)).flatten().tolist()
    if 0 in lengths:
        return None
    if len(found := sorted(set(lengths))) > 1:
        raise ValueError(
            f"the processes bring batches of {' and '.join(map(str, found))} rows: each must bring as many"
        )
    return own


class Feed:
    """Batches `[b, d]` float32 on a device; `Rows` where the dictionary needs side information (`visae.sae.side`).

    A loader with `state_dict` and `load_state_dict` is rewound and resumed by them. Another iterable that can be
    iterated again (a list, a torch `DataLoader`) starts anew when it ends; an iterator ends when it ends. Both are
    resumed by drawing and dropping what was used, which is exact if they bring the same batches again.

    Args:
        loader: tensors `[b, d]` of any float dtype, or things with such `rows` and what `needs` names.
        d: expected length of a row.
        device: where batches go.
        batch: expected rows per batch; None allows any, but where processes split the rows always the same.
        needs: names of the side information that a batch must bring.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        d: int,
        device: torch.device,
        batch: int | None = None,
        needs: tuple[str, ...] = (),
    ):
        self.loader, self.d, self.device, self.batch, self.needs = loader, d, device, batch, needs
        self.stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self.drawn = 0
        self._replay: list[Any] = []
        self._iterator: Iterator[Any] | None = None
        self._endless = self.stateful or not isinstance(loader, Iterator)
        self._bad = torch.tensor(-1, device=device)

    @property
    def n_rows(self) -> int | None:
        """See `Batches`: of a list of batches, or of a loader with this attribute."""
        if not isinstance(self.loader, list | tuple):
            return getattr(self.loader, "n_rows", None)
        batches = (getattr(raw, "rows", raw) for raw in self.loader)
        return share().rows.size * sum(x.shape[0] for x in batches if isinstance(x, Tensor) and x.ndim)

    def __next__(self) -> Tensor | Rows:
        """The next batch.

        Raises:
            LoaderEnded: if there is none.
            ValueError: for a wrong shape, missing side information, or (on a CPU at once, elsewhere at the next
                `check`) for NaN or infinity.
        """
        raw = self._replay.pop(0) if self._replay else self._draw()
        x = self._checked(raw)
        self.drawn += 1
        return x

    def peek(self, rows: int) -> Generator[Tensor | Rows, None, None]:
        """Yields the next batches until they hold `rows` rows, then forgets having drawn them.

        A loader that cannot be rewound is replayed from memory.
        """
        state = self.loader.state_dict() if self.stateful else None  # type: ignore[attr-defined]
        kept: list[Any] = []
        seen = 0
        try:
            while seen < rows:
                try:
                    raw = self._replay.pop(0) if self._replay else self._draw()
                except LoaderEnded:
                    if not kept and not seen:
                        raise
                    break
                if not self.stateful:
                    kept.append(raw)
                x = self._checked(raw)
                seen += x.shape[0]
                yield x
        finally:
            if self.stateful:
                self.loader.load_state_dict(state)  # type: ignore[attr-defined]
                self._iterator = None
            self._replay = kept + self._replay

    def first(self, rows: int, covariance: bool = False) -> tuple[Moments, Tensor | Rows]:
        """See `Batches.first`.

        Where processes split the rows, of the rows of all of them, in the order in which one alone would draw them.
        """
        first, group = FirstRows(self.d, covariance), share().rows
        with closing(self.peek(-(-rows // group.size))) as batches:
            while (own := same_length(next(batches, None))) is not None:
                self.check()
                first.add(gather(own, group))
        return first.moments, first.rows

    def _draw(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        if self._endless:
            self._iterator = iter(self.loader)
            for raw in self._iterator:
                return raw
        raise LoaderEnded(f"the loader ended after {self.drawn} batches")

    def _checked(self, raw: Any) -> Tensor | Rows:
        x = getattr(raw, "rows", raw)
        if not isinstance(x, Tensor):
            raise TypeError(f"a loader brings tensors [b, d] (or things with such rows), got {type(x).__name__}")
        if x.ndim != 2 or x.shape[1] != self.d or not x.shape[0] or not x.is_floating_point():
            raise ValueError(
                f"batch {self.drawn} should be float tokens [b, {self.d}] for this dictionary, got "
                f"{x.dtype} {list(x.shape)}: was it made for another site?"
            )
        if self.batch is not None and x.shape[0] != self.batch:
            raise ValueError(
                f"batch {self.drawn} has {x.shape[0]} rows but the run counts on {self.batch} (its budget in tokens or "
                "its other processes do): let the loader bring as many, set TrainConfig.batch to it, or budget in steps"
            )
        if self.batch is None and share().rows.size > 1:
            self.batch = x.shape[0]
        x = x.to(self.device, torch.float32, non_blocking=True)
        finite = torch.isfinite(x.sum())
        if x.device.type != "cpu":  # asking would stall the device: remember, and tell at the next check
            self._bad = torch.where((self._bad < 0) & ~finite, self.drawn, self._bad)
        elif not finite:
            self._refuse(x)
        if not self.needs:
            return x
        _, side = unpack(raw, self.needs, who=f"batch {self.drawn}")
        return Rows(x, {name: value.to(self.device, non_blocking=True) for name, value in side.items()})

    def _refuse(self, x: Tensor) -> None:
        if bad := int((~torch.isfinite(x)).sum()):  # a sum may also overflow on finite values
            rows = int((~torch.isfinite(x)).any(1).sum())
            raise ValueError(
                f"batch {self.drawn} (training step {self.drawn}) holds {bad} values that are NaN or infinite, in "
                f"{rows} of {x.shape[0]} rows; nothing was learnt from it. Look at the model's output at this site; "
                "float16 overflows above 65504, so extract in bfloat16 or float32"
            )

    def check(self) -> None:
        """Raises for NaN or infinity seen since the last check, where batches are not checked at once."""
        if self.device.type != "cpu" and (first := int(self._bad)) >= 0:
            raise ValueError(
                f"batch {first} (training step {first}) holds values that are NaN or infinite. Look at "
                "the model's output at this site; float16 overflows above 65504: extract in bfloat16"
            )

    def state(self) -> dict[str, Any]:
        """JSON state: batches drawn, and the loader's own state where it has one."""
        state = self.loader.state_dict() if self.stateful else None  # type: ignore[attr-defined]
        return {"drawn": self.drawn, "loader": state}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            LoaderEnded: if the loader is shorter than what was used.
        """
        if self.stateful and state["loader"] is not None:
            self.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
            self._iterator = None
            self.drawn = state["drawn"]
            return
        while self.drawn < state["drawn"]:
            self._draw()
            self.drawn += 1

    def convert(self, states: list[dict[str, Any]], batch: int) -> str:
        """Goes on where another number of processes, whose states these are, stood with the same rows per step.

        A loader that can knows how (`load_states`, see `visae.store.Loader`). Another one that stood at the same place
        on every process is taken to count batches of all of them.

        Args:
            states: one per process of then.
            batch: expected rows per batch from here on.

        Returns:
            What is not exact about it, or may not be.
        """
        self.batch = batch
        loaders = [state["loader"] for state in states]
        if self.stateful and hasattr(self.loader, "load_states"):
            self._iterator, self.drawn = None, states[0]["drawn"]
            return str(self.loader.load_states(loaders))
        if self.stateful and any(loader != loaders[0] for loader in loaders):
            self.drawn = states[0]["drawn"]
            return "the loader has no load_states, so it starts anew and rows are seen again"
        self.restore(states[0])
        return "rows go on exactly only if the loader splits the same batches whatever the number of processes"
