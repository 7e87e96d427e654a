"""Batches made of rows of several loaders."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from visae.sae import Rows
from visae.sae.side import join


class Mixed:
    """Equal shares of the batches of several loaders, each less its mean and times its scale; resumes exactly.

    A loader may bring just its share of a batch, or whole batches, of which it then gives a share that moves from batch
    to batch (where several loaders have one pass over the data in common).

    Args:
        loaders: with `state_dict` and `load_state_dict`.
        means: `[d]` of each.
        scales: a scalar of each.
        batch: rows of a mixed batch.

    Raises:
        ValueError: if there are more loaders than rows.
    """

    def __init__(self, loaders: Sequence[Any], means: Sequence[Tensor], scales: Sequence[Tensor], batch: int):
        self.loaders, self.means, self.scales, self.drawn = list(loaders), list(means), list(scales), 0
        self.shares = shares(batch, len(loaders))

    def __iter__(self) -> Iterator[Tensor | Rows]:
        """Batches `[batch, d]` float32 from where it stands, with the side information that all loaders bring."""
        sources = [iter(loader) for loader in self.loaders]
        while True:
            try:
                raw = [next(source) for source in sources]
            except StopIteration:
                return
            parts = [self._share(i, x) for i, x in enumerate(raw)]
            self.drawn += 1
            yield join(parts)

    def _share(self, i: int, x: Any) -> Tensor | Rows:
        rows, share = getattr(x, "rows", x), self.shares[i]
        start = 0 if len(rows) == share else sum(self.shares[: (i + self.drawn) % len(self.shares)])
        start = min(start, len(rows) - share)
        picked = rows[start : start + share].float()
        scaled = (picked - self.means[i].to(picked)) * self.scales[i].to(picked)
        if not isinstance(x, Rows):
            return scaled
        return Rows(scaled, {name: value[start : start + share] for name, value in x.side.items()})

    def state_dict(self) -> dict[str, Any]:
        """Where all loaders stand."""
        return {"drawn": self.drawn, "loaders": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there."""
        self.drawn = state["drawn"]
        for loader, own in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(own)


def shares(batch: int, loaders: int) -> list[int]:
    """Rows that each of several loaders gives to a batch; they differ by one at most.

    Raises:
        ValueError: if there are more loaders than rows.
    """
    if batch < loaders:
        raise ValueError(f"a batch of {batch} rows cannot be shared by {loaders} loaders: take larger batches")
    return [batch // loaders + (i < batch % loaders) for i in range(loaders)]
