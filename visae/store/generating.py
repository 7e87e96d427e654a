"""Forward passes that bring tokens of a pipeline: while it makes images, and from its text encoders alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Self

import torch
from torch import Tensor, nn

from visae.clock import CODES, Step
from visae.first_calls import Stopped, quiet
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.batches import Batch
from visae.store.forward import Pending, pick, sent
from visae.store.meta import DTYPES
from visae.store.sampling import Collection
from visae.taps import tap

_TIMED = 4
"""Calls of the denoiser from which the duration of a generation is told."""


class Collecting(ABC):
    """Base of the forward passes of a pipeline: they fill slot after slot of a batch's rows.

    A context: what watches the pipeline stands from the first batch until it is left.

    Args:
        model: the pipeline.
        sites: where to read; of several, which have the same tokens, the rows come side by side.
        dtype: storage dtype.
        collected: from which steps and branches.
    """

    def __init__(self, model: AdaptedPipeline, sites: Sequence[Site], dtype: str, collected: Collection):
        self._model, self._sites, self._dtype, self._collected = model, sites, DTYPES[dtype], collected
        self._tap = ExitStack()
        self._latest: dict[str, Tensor] | None = None
        self._begin(None)

    def __call__(self, batch: Batch) -> Pending:
        """Runs a batch and sends its rows on their way to the CPU.

        Raises:
            RuntimeError: if the run ended without a step or branch that was to be collected.
        """
        self._run(batch)
        if missing := len(self._collected.slots) - len(self._filled):
            raise RuntimeError(
                f"the run ended without {missing} of {len(self._collected.slots)} steps and branches to collect: "
                f"{type(self._model.pipe.scheduler).__name__} left out timesteps that it had announced, or a cache "
                "leaves out blocks; give the pipeline another scheduler, or switch the cache off"
            )
        assert self._rows is not None
        return sent(self._rows, torch.stack(self._extremes), (batch.notes[0].key, batch.notes[-1].key))

    def seconds(self, batch: Batch) -> float:
        """Duration of a batch."""
        self._run(batch)
        started = perf_counter()
        self(batch).wait()
        return perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        """Removes tap and clock."""
        self._latest = None
        self._tap.__exit__(*raised)

    def _begin(self, batch: Batch | None) -> None:
        self._batch = batch
        self._rows: Tensor | None = None
        self._extremes: list[Tensor] = []
        self._filled: set[int] = set()

    def _run(self, batch: Batch) -> None:
        if self._latest is None:
            self._latest = self._tap.enter_context(tap(self._model, *self._sites))
            self._enter()
        self._begin(batch)
        with torch.no_grad(), quiet(self._model.pipe):
            self._work(batch)

    def _enter(self) -> None:  # noqa: B027 (nothing by default)
        """Puts up what watches the pipeline beside the tap."""

    @abstractmethod
    def _work(self, batch: Batch) -> None:
        """Runs the pipeline on a batch; `_keep` is called on the way."""

    def _keep(self, slot: int, samples: slice | Tensor) -> None:
        """Takes the tokens of a slot from the latest call, where each of the batch's items has a row in `samples`."""
        assert self._batch is not None
        assert self._latest is not None
        if slot in self._filled:
            return
        n, kept = self._batch.places.shape
        m = kept // len(self._collected.slots)
        where = self._batch.places[:, slot * m : (slot + 1) * m]
        tokens = [self._latest[site.name][samples] for site in self._sites]
        for site, found in zip(self._sites, tokens, strict=True):
            if found.shape[:2] != (n, site.n_tokens):
                raise ValueError(
                    f"site {site.name} brought tokens {list(found.shape)} for {n} images, expected {site.n_tokens} "
                    "of each: do the prompts have another length than the pipeline pads to, or images another size?"
                )
        parts = [pick(found, where) for found in tokens]
        picked = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        if self._rows is None:
            self._rows = torch.empty((n, kept, picked.shape[2]), dtype=self._dtype, device=picked.device)
        self._extremes += [extreme.float() for extreme in torch.aminmax(picked)]
        self._rows[:, slot * m : (slot + 1) * m] = picked.to(self._dtype)
        self._filled.add(slot)


class Generations(Collecting):
    """Makes images of prompts from noise.

    Of several calls of the denoiser at one timestep (PNDM, Heun) the first counts. A generation ends with the last
    call that brings something.
    """

    def __init__(self, model: AdaptedPipeline, sites: Sequence[Site], dtype: str, collected: Collection):
        super().__init__(model, sites, dtype, collected)
        self._steps: list[Step] = []
        self._times: list[float] = []
        self._most: int | None = None

    def seconds(self, batch: Batch) -> float:
        """Duration of a batch, from its first few calls of the denoiser."""
        self._most = _TIMED
        try:
            started = perf_counter()
            self._run(batch)
        finally:
            self._most = None
        start = self._times[0] - started
        calls = [later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False)]
        per_step = len(self._steps) / len({step.index for step in self._steps})
        last = max(slot.step for slot in self._collected.slots)
        return start + min(calls, default=0.0) * (last * per_step + per_step - 1)

    def _enter(self) -> None:
        self._tap.enter_context(self._model.clock(self._after))

    def _work(self, batch: Batch) -> None:
        self._steps, self._times = [], []
        prompts = [prompt.text for prompt in batch.prompts]
        options: dict[str, Any] = {"output_type": "latent"} | self._collected.arguments()
        self._model.generate(prompts, [prompt.seed for prompt in batch.prompts], **options)

    def _after(self, step: Step) -> None:
        assert self._batch is not None
        n = len(self._batch.prompts)
        for code in dict.fromkeys(CODES[branch] for branch in step.branch):
            if (slot := self._collected.places.get((step.index, code))) is not None:
                self._keep(slot, rows_of(step, code, n))
        if self._most is not None:
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
            self._times.append(perf_counter())
            self._steps.append(step)
        if len(self._filled) == len(self._collected.slots) or (self._most and len(self._times) >= self._most):
            raise Stopped


class Texts(Collecting):
    """Runs the text encoder of a site on the prompts, and nothing after it."""

    def _enter(self) -> None:
        encoder: nn.Module = self._model.module.get_submodule(self._sites[0].path.partition(".")[0])
        handle = encoder.register_forward_hook(self._encoded)
        self._tap.callback(handle.remove)

    def _work(self, batch: Batch) -> None:
        prompts = [prompt.text for prompt in batch.prompts]
        self._model.generate(prompts, [prompt.seed for prompt in batch.prompts], **self._collected.arguments())

    def _encoded(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        self._keep(0, slice(None))
        raise Stopped


def rows_of(step: Step, code: int, n: int) -> slice | Tensor:
    """Rows of the batch in one call of the denoiser that belong to a branch, one for each of n images."""
    rows = [row for row, branch in enumerate(step.branch) if CODES[branch] == code][:n]
    return slice(rows[0], rows[0] + n) if rows == list(range(rows[0], rows[0] + n)) else torch.tensor(rows)
