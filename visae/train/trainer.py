"""`Trainer`: makes a dictionary from a stream of tokens."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visae.ops import Adam, Fused, fast_precision, make_ops, sharing
from visae.sae import Dictionary, Rows
from visae.sae.dictionary import Losses
from visae.train import checkpoint, resuming
from visae.train.annealing import anneal, prepare
from visae.train.callbacks import Callback, gather
from visae.train.config import TrainConfig, default_lr, schedule
from visae.train.ends import begin, finish
from visae.train.feed import Batches, Feed, LoaderEnded
from visae.train.measures import check_loss, step_metrics
from visae.train.processes import Processes, on_cpu
from visae.train.randomness import Randomness
from visae.train.record import Recorder
from visae.train.sharding import Shards
from visae.train.trouble import told
from visae.train.validate import validate

DEAD_EVERY = 32
"""Steps between looks at which latents are dead, on devices where looking stalls them; each step on a CPU."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps in all.
        samples: rows trained on in all, over all processes.
        metrics: last line of the metrics, with `val_fvu` and `val_l0` where validation batches were given.
        history: all lines.
        warnings: raised on the way, see `visae.train.trouble`: `name`, `stage`, `found`, and the `step`.
    """

    steps: int
    samples: int
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    warnings: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains one dictionary.

    A step has four pieces: `_take` a batch, `grade` it (forward, loss, backward), `update` the weights, `_record`.

    Args:
        sae: the dictionary; changed in place. With `shard_latents` the main process's gets the result at the end, and
            each process trains a slice of it, `trainer.sae`.
        config: settings.
        out: folder for `metrics.jsonl` and `checkpoints/`; None writes nothing.
        log_with: accelerate's trackers (`tensorboard`, `wandb`, ...), beside `metrics.jsonl`.
        progress: whether to show a bar.
        callbacks: beside those that the settings ask for.

    Attributes:
        step: optimiser steps done.
        samples: rows trained on, over all processes.
        stopped: set it to end the run after the step at hand.
        last: the batch trained on last.
        pass_rows: rows of one pass of the loader, where it tells.
    """

    def __init__(
        self,
        sae: Dictionary,
        config: TrainConfig,
        out: Path | str | None = None,
        *,
        log_with: str | list[str] | None = None,
        progress: bool = True,
        callbacks: Iterable[Callback] = (),
    ):
        from accelerate import Accelerator

        self.config, self.out, self.progress = config, Path(out) if out is not None else None, progress
        self.processes = Processes(config.device, config.shard_latents)
        self.accelerator = Accelerator(
            cpu=on_cpu(config.device), log_with=log_with, project_dir=str(out) if out is not None else None
        )
        self.device = self.accelerator.device if config.device == "auto" else torch.device(config.device)
        self.shards = Shards(sae, self.processes)
        self.sae = self.shards.own(self.device).requires_grad_(True).train()
        self.precision = self._precision()
        kernels = make_ops(config.ops, self.precision, self.device)
        self.ops = self.shards.kernels(kernels)
        self.set_rows_per_step(config.batch * self.processes.share.rows.size)
        self.optimiser = Adam(
            dict(self.sae.named_parameters()),
            self.sae.unit_parameters(),
            config.betas,
            fused=config.ops != "reference" and self.device.type in ("cpu", "cuda"),
            # gradients that processes average must exist as tensors
            ops=kernels if isinstance(kernels, Fused) and self.processes.share.rows.size == 1 else None,
        )
        self.randomness = Randomness(config.seed, self.device)
        prepare(self.sae, config)
        self.step = self.samples = 0
        self.history: list[dict[str, Any]] = []
        self._dead: Tensor | None = None
        self._any_dead = False
        self.last: Tensor | Rows | None = None
        self.stopped = False
        self.pass_rows: int | None = None
        self._log_with = log_with
        self.callbacks = gather(self, callbacks)
        self.shards.check(self.callbacks)

    def _precision(self) -> str:
        if self.config.precision != "auto":
            return self.config.precision
        launched = {"bf16": "bf16", "fp16": "bf16"}.get(self.accelerator.mixed_precision)
        return launched or fast_precision(self.device)

    def set_rows_per_step(self, rows: int) -> None:
        """Sets how many rows a step is on, over all processes, and what follows from it."""
        self.rows_per_step, self.steps = rows, self.config.total_steps(rows)
        self.lr = self.config.lr or default_lr(self.sae.n_latents, self.steps)

    @property
    def kernels(self) -> str:
        """Tier of kernels and precision of the encoder's product, for the log."""
        n = self.processes.share.rows.size  # then gradients are dense, and stock torch updates
        return f"{self.ops.name} {self.precision}" + (f", gradients averaged over {n} processes" if n > 1 else "")

    @property
    def dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead."""
        budget = self.steps * self.rows_per_step
        return self.config.dead_window or min(10_000_000, max(1, budget // 20))

    @property
    def folder(self) -> Path | None:
        """Where checkpoints go."""
        return self.out / "checkpoints" if self.out is not None else None

    def fit(
        self, loader: Iterable[Any], validation: Iterable[Tensor | Rows] | None = None, *, resume: bool = False
    ) -> TrainResult:
        """Trains until the budget is spent.

        Args:
            loader: see `visae.train.feed.Feed`; each of several processes needs its own share of the rows, in batches
                of the same size.
            validation: batches `[b, d]` that can be iterated again; for thresholds and the last FVU. Without them
                thresholds are calibrated on the next batches of `loader`.
            resume: go on from the newest checkpoint in `out`; starts anew if there is none.

        Raises:
            ValueError: for unusable inputs, a loader that ends early, a folder that holds another run.
            FloatingPointError: if the loss is no longer finite.
            ProcessFailed: if another process of the run failed.
        """
        run = self.run(self.feed(loader), validation, resume=resume)
        while True:
            try:
                with self.randomness:
                    next(run)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def feed(self, loader: Iterable[Any], needs: Iterable[str] = ()) -> Feed:
        """Batches of a loader as this run wants them, with what else others need who read along."""
        batch = self.config.batch if self.config.tokens is not None else None
        return Feed(loader, self.sae.d, self.device, batch, tuple(dict.fromkeys([*self.sae.needs, *needs])))

    def run(
        self, feed: Batches, validation: Iterable[Tensor | Rows] | None = None, *, resume: bool = False
    ) -> Generator[None, None, TrainResult]:
        """The run of `fit` piece by piece, for those who drive several at once: each `next` makes one step.

        The first `next` restores or begins, the last one finishes; every one belongs into `with trainer.randomness`.
        """
        if validation is None and (self.config.best or self.config.patience is not None):
            raise ValueError("best and patience look at held-out batches: give fit its validation batches")
        with self.processes.together():
            return (yield from self._run(feed, validation, resume))

    def _run(
        self, feed: Batches, validation: Iterable[Tensor | Rows] | None, resume: bool
    ) -> Generator[None, None, TrainResult]:
        with sharing(self.processes.share):
            self._start(feed, resume)
        if self._log_with:
            settings = self.config.to_dict() | {"betas": str(self.config.betas)}
            self.accelerator.init_trackers("visae", config=settings)
        with Recorder(self.out, self.step, self.steps, self.progress, self.accelerator, self.kernels) as recorder:
            self.history = recorder.history
            yield
            while self.step < self.steps and not self.stopped:
                with sharing(self.processes.share):  # not over a yield: the caller would be in it, too
                    x = self._take(feed)
                    losses = self.grade(x)
                    lr = self.update()
                    self._record(recorder, feed, losses, x, lr, validation)
                yield
            with sharing(self.processes.share):
                metrics = finish(self, feed, recorder, validation)
        if self._log_with:
            self.accelerator.end_training()
        return TrainResult(self.step, self.samples, metrics, recorder.history, told(recorder.history))

    def _start(self, feed: Batches, resume: bool) -> None:
        """Restores or begins."""
        self.pass_rows = feed.n_rows
        found = resuming.newest(self, resume)
        if found is not None:
            resuming.restore(self, checkpoint.load(found, self.shards.part), feed)
        elif self.step == 0:
            begin(self, feed)

    # -- the four pieces of a step

    def _take(self, feed: Batches) -> Tensor | Rows:
        """Draws a batch."""
        try:
            x = next(feed)
            if self.last is None:
                self.processes.check_batch(x)
            self.last = x
            return x
        except LoaderEnded as ended:
            alone = self.processes.size == 1  # else the others are in the middle of their step
            if alone:
                resuming.save(self, feed)
            raise LoaderEnded(
                f"the loader ended after {self.step} of {self.steps} steps"
                + (f"; a checkpoint of them is in {self.folder}" if self.folder and alone else "")
                + ". Give an endless or re-iterable loader, or a smaller budget"
            ) from ended

    def grade(self, x: Tensor | Rows) -> Losses:
        """Forward, loss, backward; gradients are averaged over processes."""
        if self._dead is None or self.device.type == "cpu" or self.step % DEAD_EVERY == 0:
            self._dead = (self.sae.samples_since_fired >= self.dead_window).nonzero()[:, 0]
            self._any_dead = self.processes.share.latents.total(self._dead.numel()) > 0
        anneal(self.sae, self.config, self.step, self.steps)
        losses = self.sae.losses(
            x,
            self.ops,
            dead=self._dead if self._any_dead else None,
            progress=self.step / self.steps,
            tilt=self.config.tilt,
        )
        total = losses.total
        if self.device.type == "cpu":
            check_loss(self, losses)
        total.backward()
        self.shards.sum_gradients(self.optimiser.items())
        self.processes.average_gradients(self.optimiser.parameters.values())
        return losses

    def update(self) -> float:
        """One optimiser step; returns the learning rate used."""
        lr = self.lr * schedule(self.step, self.steps, self.config.warmup, self.config.decay)
        self.optimiser.step(lr)
        self.sae.decoder.project()
        return lr

    def _record(
        self,
        recorder: Recorder,
        feed: Batches,
        losses: Losses,
        x: Tensor | Rows,
        lr: float,
        validation: Iterable[Tensor | Rows] | None,
    ) -> None:
        """Counters, metrics, checkpoint."""
        rows = x.shape[0] * self.processes.share.rows.size
        self.sae.activation.observe(losses.codes)
        self.sae.count(losses.codes)
        self.step += 1
        self.samples += rows
        recorder.tick(rows)
        for callback in self.callbacks:
            callback.after_step(self, losses)
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            feed.check()
            check_loss(self, losses)
            metrics = step_metrics(self, losses, x, lr)
            for callback in self.callbacks:
                callback.logged(self, losses, metrics)
            recorder.log(self.step, metrics)
        if validation is not None and self.config.validate_every and self.step % self.config.validate_every == 0:
            self._validate(recorder, validation)
        if self.step % self.config.checkpoint_every == 0 or self.step == self.steps or self.stopped:
            resuming.save(self, feed)

    def _validate(self, recorder: Recorder, validation: Iterable[Tensor | Rows]) -> None:
        with self.evaluating():
            metrics: dict[str, Any] = {**validate(self.sae, validation, self.ops)}
            for callback in self.callbacks:
                callback.validated(self, metrics)
        recorder.log(self.step, metrics)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which the dictionary is as it would be exported now (e.g. with averaged weights)."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.evaluating(self))
            yield

    def look_for_dead(self) -> None:
        """Makes the next step look anew at which latents are dead."""
        self._dead = None
