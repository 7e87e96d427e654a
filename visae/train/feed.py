"""`Feed`: draws checked batches from any iterable of tokens, and knows how to rewind and resume it."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from visae.sae import Moments, Rows
from visae.sae.side import join, unpack

START_BYTES = 2**27
"""At most so many bytes of rows are held for the first atoms; all rows read count for mean and scale."""


class LoaderEnded(ValueError):
    """The loader brought fewer batches than the budget needs."""


class Batches(Protocol):
    """What a run asks of its batches: `Feed`, or a share in one."""

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


class Feed:
    """Batches `[b, d]` float32 on a device; `Rows` where the dictionary needs side information (`visae.sae.side`).

    A loader with `state_dict` and `load_state_dict` is rewound and resumed by them. Another iterable that can be
    iterated again (a list, a torch `DataLoader`) starts anew when it ends; an iterator ends when it ends. Both are
    resumed by drawing and dropping what was used, which is exact if they bring the same batches again.

    Args:
        loader: tensors `[b, d]` of any float dtype, or things with such `rows` and what `needs` names.
        d: expected length of a row.
        device: where batches go.
        batch: expected rows per batch; None allows any.
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

    def peek(self, rows: int) -> Iterator[Tensor | Rows]:
        """Yields the next batches until they hold `rows` rows, then forgets having drawn them.

        A loader that cannot be rewound is replayed from memory.
        """
        state = self.loader.state_dict() if self.stateful else None  # type: ignore[attr-defined]
        kept: list[Any] = []
        seen = 0
        while seen < rows:
            try:
                raw = self._draw()
            except LoaderEnded:
                if not kept and not seen:
                    raise
                break
            if not self.stateful:
                kept.append(raw)
            x = self._checked(raw)
            seen += x.shape[0]
            yield x
        if self.stateful:
            self.loader.load_state_dict(state)  # type: ignore[attr-defined]
            self._iterator = None
        self._replay = kept + self._replay

    def first(self, rows: int, covariance: bool = False) -> tuple[Moments, Tensor | Rows]:
        """See `Batches.first`."""
        first = FirstRows(self.d, covariance)
        for x in self.peek(rows):
            self.check()
            first.add(x)
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
                f"batch {self.drawn} has {x.shape[0]} rows but the budget in tokens counts on batch="
                f"{self.batch}: set TrainConfig.batch to what the loader brings, or budget in steps"
            )
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
