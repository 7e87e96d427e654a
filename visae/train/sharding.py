"""Latents of one dictionary over several processes: slices to train, the whole to keep."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visae.ops import Ops
from visae.sae import Dictionary
from visae.sae.slices import per_latent, slice_of
from visae.train.callbacks import Callback
from visae.train.pieces import Pieces, few_rows, fill, in_order
from visae.train.processes import Processes
from visae.train.trouble import Watch


class Shards:
    """How a dictionary is split; alone, it is not.

    Args:
        whole: the dictionary as the user gave it, on the CPU: each process takes its slice to its device.
        processes: of the run.

    Raises:
        ValueError: if the latents cannot be split, or not evenly.
    """

    def __init__(self, whole: Dictionary, processes: Processes):
        self.whole, self.processes, self.group = whole, processes, processes.share.latents
        if whole.n_latents % self.group.size:
            raise ValueError(
                f"{whole.n_latents} latents cannot be split evenly over {self.group.size} processes: take a multiple"
            )
        size = whole.n_latents // self.group.size
        self.start, self.stop = self.group.rank * size, (self.group.rank + 1) * size
        self.split = per_latent(whole) if self.group.size > 1 else set()

    def own(self, device: torch.device) -> Dictionary:
        """This process's dictionary, on its device."""
        if self.group.size == 1:
            return self.whole.to(device)
        return slice_of(self.whole, self.start, self.stop, device)

    def kernels(self, ops: Ops) -> Ops:
        """Kernels that know of the other slices."""
        if self.group.size == 1:
            return ops
        from visae.ops.sharded import Sharded

        return Sharded(ops, self.processes.latent_mesh, self.start)

    def sum_gradients(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Adds up the gradients of what every process has, see `visae.ops.sharded`."""
        if self.group.size > 1:
            for name, parameter in parameters:
                if name not in self.split and parameter.grad is not None:
                    parameter.grad = self.group.sum(parameter.grad)

    def check(self, callbacks: Iterable[Callback]) -> None:
        """Refuses callbacks that keep weights.

        Raises:
            ValueError: naming them.
        """
        wrong = [callback.name for callback in callbacks if not isinstance(callback, Watch)]
        if wrong and self.group.size > 1:
            raise ValueError(
                f"{', '.join(wrong)} work on whole dictionaries: with shard_latents leave ema, best, patience, "
                "resample_every and callbacks of your own out"
            )

    def part(self, name: str) -> slice | None:
        """This process's rows of a tensor of a checkpoint; None where it has all."""
        return slice(self.start, self.stop) if self._is_split(name) else None

    def _is_split(self, name: str) -> bool:
        return any(name == own or name.endswith(f".{own}") for own in self.split)

    def collect(self, state: dict[str, Tensor]) -> dict[str, Tensor | Pieces]:
        """Tensors as the main process writes them: those that are split come from the others while it does so.

        All processes call it with the same names; on all but the main one it returns when all rows are sent.
        """
        if self.group.size == 1 or self.processes.share.rows.rank:
            return dict(state)
        if self.group.rank == 0:
            return {name: self._whole(t) if self._is_split(name) else t for name, t in state.items()}
        for name in in_order(state):
            if self._is_split(name):
                self._send(state[name])
        return dict(state)

    def _whole(self, own: Tensor) -> Pieces:
        """A tensor whose rows are on all processes of the group, in their order."""

        def rows() -> Iterator[Tensor]:
            yield from (part.cpu() for part in few_rows(own.detach()))
            for sender in range(1, self.group.size):
                for part in few_rows(own):
                    received = torch.empty_like(part, device=self.group.device)
                    dist.recv(received, self._place(sender), group=self.group.handle)
                    yield received.cpu()

        return Pieces((own.shape[0] * self.group.size, *own.shape[1:]), own.dtype, rows)

    def _send(self, own: Tensor) -> None:
        for part in few_rows(own.detach()):
            dist.send(part.contiguous(), self._place(0), group=self.group.handle)

    def _place(self, rank: int) -> int:
        return dist.get_global_rank(self.group.handle, rank)

    @torch.no_grad()
    def finish(self, own: Dictionary) -> None:
        """Puts the trained slices into the whole dictionary, on the main process."""
        if self.group.size == 1:
            return
        found, whole = self.collect(own.state_dict()), self.whole.state_dict()
        if self.processes.main:
            for name in in_order(found):
                fill(whole[name], found[name])
            self.whole.eval()
