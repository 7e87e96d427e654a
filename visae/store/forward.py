"""The forward pass that fills a store or a stream: tap, pick, cast, check, copy; nothing in it waits for the device."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from visae.model import AdaptedModel
from visae.sites import Site
from visae.store.batches import Batch
from visae.store.errors import Overflow
from visae.store.meta import DTYPES
from visae.taps import tap


@dataclass(frozen=True)
class Pending:
    """Rows on their way from the device.

    Attributes:
        rows: `[n, t, d]` on the CPU, in the storage dtype; not to be read before `wait`.
        extremes: `[2]` float32 on the CPU, smallest and largest activation before the cast.
        ready: event after the copies; None on the CPU.
        keys: first and last sample, for messages.
    """

    rows: Tensor
    extremes: Tensor
    ready: torch.cuda.Event | None
    keys: tuple[str, str]

    @classmethod
    def done(cls, rows: np.ndarray) -> "Pending":
        """Float16 rows `[n, t, d]` that are there already."""
        return cls(torch.from_numpy(rows), torch.zeros(2), None, ("", ""))

    def wait(self) -> np.ndarray:
        """The rows `[n, t, d]` (bfloat16 as uint16), once they are there; meant for another thread than the forward's.

        Raises:
            Overflow: if the storage dtype cannot hold them.
        """
        if self.ready is not None:
            self.ready.synchronize()
        self._check()
        return as_numpy(self.rows)

    def _check(self) -> None:
        low, high = self.extremes.tolist()
        where = f"between {self.keys[0]} and {self.keys[1]}"
        if not np.isfinite([low, high]).all():
            raise Overflow(
                f"the model itself computes {low:g} to {high:g} {where}: its activations are not finite. Run the model "
                "in float32 or bfloat16"
            )
        worst = low if -low > high else high
        if not torch.tensor(worst).to(self.rows.dtype).isfinite():
            name = str(self.rows.dtype).removeprefix("torch.")
            raise Overflow(
                f"an activation of {worst:.6g} ({where}) does not fit into {name}, which ends at "
                f"{torch.finfo(self.rows.dtype).max:g}. Store with dtype='bfloat16' (same size, wider range) or float32"
            )


def as_numpy(rows: Tensor) -> np.ndarray:
    """A CPU tensor as an array over the same memory; bfloat16 as uint16."""
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


def as_torch(rows: np.ndarray, dtype: str) -> Tensor:
    """An array from `as_numpy` or from disk as a tensor over the same memory."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


class Forward:
    """Runs batches through a model under a tap, which stands from the first batch until `close`.

    Args:
        model: the model.
        sites: where to read; of several, which have the same tokens, the rows come side by side.
        dtype: storage dtype.
    """

    def __init__(self, model: AdaptedModel, sites: Sequence[Site], dtype: str):
        self._model, self._sites, self._dtype = model, sites, DTYPES[dtype]
        self._tap = ExitStack()
        self._latest: dict[str, Tensor] | None = None

    def __call__(self, batch: Batch) -> Pending:
        """Sends a batch through the model and its rows on their way to the CPU."""
        if self._latest is None:
            self._latest = self._tap.enter_context(tap(self._model, *self._sites))
        with torch.no_grad():
            self._model.forward(batch.pixels)
            parts = [pick(self._latest[site.name], batch.places) for site in self._sites]
            picked = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            extremes = torch.stack(torch.aminmax(picked)).float()
            rows = picked.to(self._dtype)
        return sent(rows, extremes, (batch.notes[0].key, batch.notes[-1].key))

    def seconds(self, batch: Batch) -> float:
        """Duration of a batch: the quicker of two after a first one to warm up."""
        times = []
        for _ in range(3):
            started = perf_counter()
            self(batch).wait()
            times.append(perf_counter() - started)
        return min(times[1:])

    def close(self) -> None:
        """Removes the tap."""
        self._latest = None
        self._tap.close()


def sent(rows: Tensor, extremes: Tensor, keys: tuple[str, str]) -> Pending:
    """Rows `[n, t, d]` and their extremes `[m]` on their way to the CPU; see `Pending`."""
    extremes = torch.stack(torch.aminmax(extremes))
    if not rows.is_cuda:
        return Pending(rows.cpu().contiguous(), extremes.cpu(), None, keys)
    host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (rows, extremes)]
    for here, there in zip(host, (rows, extremes), strict=True):
        here.copy_(there, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return Pending(host[0], host[1], ready, keys)


@contextmanager
def forward_pass(model: AdaptedModel, site: Site | Sequence[Site], dtype: str) -> Iterator[Forward]:
    """A `Forward` whose tap is removed on exit."""
    forward = Forward(model, [site] if isinstance(site, Site) else site, dtype)
    try:
        yield forward
    finally:
        forward.close()


def pick(activations: Tensor, places: np.ndarray) -> Tensor:
    """Tokens `[n, m, d]` at `places [n, m]` of activations `[n, t, d]`; a view if all samples keep the same run."""
    first, count = int(places[0, 0]), places.shape[1]
    if (places == np.arange(first, first + count)).all():
        return activations[:, first : first + count]
    index = torch.from_numpy(np.ascontiguousarray(places, dtype=np.int64)).to(activations.device, non_blocking=True)
    return activations.gather(1, index[..., None].expand(*places.shape, activations.shape[2]))
