"""The processes of a run: who holds which rows and latents, waiting for one another, and ending together."""

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visae.launch import fell_short
from visae.ops import Group, Share
from visae.sae import Rows
from visae.train.feed import same_length

PATIENCE = 600
"""Seconds after which a process that another one keeps waiting in the middle of a step gives up."""
LONG = timedelta(days=30)
"""For waits that may be long, such as for the extraction of activations; a process that ends cuts them short."""
LOG = logging.getLogger("visae.train")
_FAILED, _HEARD = "visae/failed", "visae/heard"


class ProcessFailed(RuntimeError):
    """Another process of the run failed, so this one cannot go on."""


class Processes:
    """The processes that accelerate, torchrun or the caller started; one alone where nobody did.

    Args:
        device: as in `TrainConfig`; `cpu` makes them talk through gloo.
        shards: over how many processes the latents of a dictionary are split; neighbours hold shards of the same one
            and see the same rows, others hold other rows.
        patience: seconds, see `PATIENCE`; counts for the first use in a process.

    Attributes:
        share: what they share in a step.
        main: whether this process writes files and talks to the user.

    Raises:
        ValueError: if the number of processes is not a multiple of `shards`.
    """

    def __init__(self, device: str = "auto", shards: int = 1, patience: float = PATIENCE):
        from accelerate import PartialState

        if fell_short():
            _tell_of_one()
        state = PartialState(cpu=on_cpu(device), timeout=timedelta(seconds=patience))
        self.size, self.rank, self.device = state.num_processes, state.process_index, state.device
        self.main = self.rank == 0
        if self.size % shards:
            raise ValueError(
                f"{self.size} processes cannot hold a dictionary in {shards} shards: start a multiple of {shards}"
            )
        made: tuple[Share, Any] = (Share(), None)
        if self.size > 1:
            made = _groups(self.device.type, self.size, shards)
        self.share, self._mesh = made
        self._store = dist.distributed_c10d._get_default_store() if self.size > 1 else None

    @property
    def latent_mesh(self) -> Any:
        """The `DeviceMesh` of the processes that split the latents with this one.

        Raises:
            ValueError: where none do.
        """
        if self._mesh is None:
            raise ValueError("the processes of this run do not split latents: give Processes shards above 1")
        return self._mesh["latents"]

    def wait(self) -> None:
        """Until all processes are here; for as long as it takes, unless one of them ends."""
        if self.size > 1:
            dist.barrier(group=_patient())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process leaves before the others enter it."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their means over the processes that hold other rows and the same latents."""
        rows = self.share.rows
        if rows.size > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    grad = parameter.grad.contiguous()
                    dist.all_reduce(grad, group=rows.handle)
                    parameter.grad = grad.div_(rows.size)

    def notes(self, value: Any) -> list[Any]:
        """A value that JSON can hold, from every process in their order."""
        if self.size == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.share.all.device)
        length = torch.tensor([len(text)], device=text.device)
        lengths = self.share.all.gather(length)[:, 0].tolist()
        whole = bytes(self.share.all.cat(text).tolist())
        parts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        return [json.loads(whole[start:stop]) for start, stop in itertools.pairwise(parts)]

    def check_batch(self, x: Tensor | Rows) -> None:
        """Refuses batches that do not fit together, the same way on every process.

        Raises:
            ValueError: if processes bring batches of different lengths, or those that hold shards of one dictionary
                different rows.
        """
        same_length(x)
        x, latents = x.rows if isinstance(x, Rows) else x, self.share.latents
        if latents.size == 1:
            return
        every = self.share.all.gather(x.double().sum().to(self.share.all.device)[None]).view(-1, latents.size)
        if bool((every != every[:, :1]).any()):
            raise ValueError(
                f"processes that hold shards of one dictionary must see the same rows: give the loaders of "
                f"{latents.size} neighbouring processes the same share"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that no process survives alone: an error in one ends all of them, and says why.

        Raises:
            ProcessFailed: where another process failed, with its message.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1 or not dist.is_initialized():
                raise
            lost = _lost_contact(error)
            rank, reason = self._first_failure("" if lost else f"{type(error).__name__}: {error}")
            _hang_up()
            if rank == self.rank:
                if self.main:
                    self._be_heard()
                raise
            raise ProcessFailed(
                f"process {rank} of this run failed, so process {self.rank} ends, too: {reason}"
                if rank is not None
                else f"process {self.rank} lost another process of this run, or waited too long for it: {error}. It "
                "may have been killed, for example for want of memory; its own output, or the launcher's, says more"
            ) from error

    def _first_failure(self, reason: str) -> tuple[int | None, str]:
        """Which process was the first to fail, and why; this one, with its own reason, if none was before it."""
        try:
            store = self._store
            assert store is not None
            if reason:
                told = store.compare_set(_FAILED, "", json.dumps([self.rank, reason]))
            elif store.check([_FAILED]):
                told = store.get(_FAILED)
            else:
                return None, ""
            rank, reason = json.loads(told)
            if rank != self.rank:
                store.add(_HEARD, 1)
        except (RuntimeError, ValueError):  # the process that kept the store is gone
            return (self.rank, reason) if reason else (None, "")
        return rank, reason

    def _be_heard(self) -> None:
        """Waits a little until the others know: they may read why in a store that ends with the main process."""
        store, until = self._store, time.monotonic() + 5
        while store is not None and time.monotonic() < until:
            if store.add(_HEARD, 0) >= self.size - 1:
                return
            time.sleep(0.05)


def on_cpu(device: str) -> bool:
    """Whether processes work on CPUs, as accelerate wants to be told."""
    return device == "cpu" or (device == "auto" and not torch.accelerator.is_available())


@cache
def _tell_of_one() -> None:
    LOG.warning(
        "accelerate was asked for several processes but started one: on a machine without GPUs it starts more only "
        "with --multi_gpu (in spite of its name); torchrun --nproc-per-node does as well"
    )


@cache
def _patient() -> Any:
    """A group for long waits; made by all processes at once."""
    return dist.new_group(backend="gloo", timeout=LONG)


@cache
def _groups(device: str, size: int, shards: int) -> tuple[Share, Any]:
    """Groups of the processes of a run, as a mesh of rows and latents."""
    from torch.distributed.device_mesh import init_device_mesh

    _patient()
    world = Group(dist.group.WORLD)
    if shards == 1:
        return Share(rows=world, all=world), None
    mesh = init_device_mesh(device, (size // shards, shards), mesh_dim_names=("rows", "latents"))
    return Share(Group(mesh.get_group("rows")), Group(mesh.get_group("latents")), world), mesh


def _lost_contact(error: Exception) -> bool:
    """Whether an error says that another process is gone, not that this one did something wrong."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in told for word in ("gloo", "connection closed", "connection reset", "nccl", "timed out waiting")
    )


def _hang_up() -> None:
    """Closes this process's connections, which ends the waits of all others."""
    if "nccl" in dist.get_backend():
        dist.distributed_c10d._abort_process_group()  # destroying would wait for what is under way
    else:
        dist.destroy_process_group()
    _patient.cache_clear()
    _groups.cache_clear()
