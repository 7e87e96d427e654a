"""`Trainer`: makes a dictionary from a stream of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visae.ops import Adam, fast_precision, make_ops
from visae.sae import Dictionary, Moments, initialise
from visae.sae.dictionary import Losses
from visae.sae.init import check_moments
from visae.train import checkpoint
from visae.train.config import FREE, TrainConfig, default_lr, schedule
from visae.train.feed import Feed, LoaderEnded
from visae.train.record import METRICS, Recorder
from visae.train.validate import validate

START_BYTES = 2**27
"""At most so many bytes of rows are held for the first atoms; all rows read count for mean and scale."""
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
    """

    steps: int
    samples: int
    metrics: dict[str, Any]
    history: list[dict[str, Any]]


class Trainer:
    """Trains one dictionary.

    A step has four pieces: `_take` a batch, `grade` it (forward, loss, backward), `update` the weights, `_record`.

    Args:
        sae: the dictionary; changed in place.
        config: settings.
        out: folder for `metrics.jsonl` and `checkpoints/`; None writes nothing.
        log_with: accelerate's trackers (`tensorboard`, `wandb`, ...), beside `metrics.jsonl`.
        progress: whether to show a bar.
    """

    def __init__(
        self,
        sae: Dictionary,
        config: TrainConfig,
        out: Path | str | None = None,
        *,
        log_with: str | list[str] | None = None,
        progress: bool = True,
    ):
        from accelerate import Accelerator

        self.config, self.out, self.progress = config, Path(out) if out is not None else None, progress
        self.accelerator = Accelerator(
            cpu=config.device == "cpu", log_with=log_with, project_dir=str(out) if out is not None else None
        )
        self.device = self.accelerator.device if config.device == "auto" else torch.device(config.device)
        self.sae = sae.to(self.device).requires_grad_(True).train()
        self.steps = config.total_steps(self.accelerator.num_processes)
        self.precision = self._precision()
        self.ops = make_ops(config.ops, self.precision)
        self.lr = config.lr or default_lr(sae.n_latents, self.steps)
        self.optimiser = Adam(
            dict(sae.named_parameters()),
            sae.unit_parameters(),
            config.betas,
            fused=config.ops != "reference" and self.device.type in ("cpu", "cuda"),
        )
        self.step = self.samples = 0
        self._dead: Tensor | None = None
        self._last: Tensor | None = None
        self._log_with = log_with

    def _precision(self) -> str:
        if self.config.precision != "auto":
            return self.config.precision
        launched = {"bf16": "bf16", "fp16": "bf16"}.get(self.accelerator.mixed_precision)
        return launched or fast_precision(self.device)

    @property
    def dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead."""
        budget = self.steps * self.config.batch * self.accelerator.num_processes
        return self.config.dead_window or min(10_000_000, max(1, budget // 20))

    @property
    def _folder(self) -> Path | None:
        return self.out / "checkpoints" if self.out is not None else None

    def fit(
        self, loader: Iterable[Any], validation: Iterable[Tensor] | None = None, *, resume: bool = False
    ) -> TrainResult:
        """Trains until the budget is spent.

        Args:
            loader: see `visae.train.feed.Feed`; each process needs its own share.
            validation: batches `[b, d]` that can be iterated again; for thresholds and the last FVU. Without them
                thresholds are calibrated on the next batches of `loader`.
            resume: go on from the newest checkpoint in `out`; starts anew if there is none.

        Raises:
            ValueError: for unusable inputs, a loader that ends early, a folder that holds another run.
            FloatingPointError: if the loss is no longer finite.
        """
        feed = Feed(loader, self.sae.d, self.device, self.config.batch if self.config.tokens is not None else None)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            found = self._newest(resume)
            if found is not None:
                self._restore(checkpoint.load(found), feed)
            elif self.step == 0:
                self._begin(feed)
            if self._log_with:
                settings = self.config.to_dict() | {"betas": str(self.config.betas)}
                self.accelerator.init_trackers("visae", config=settings)
            with Recorder(self.out, self.step, self.steps, self.progress, self.accelerator) as recorder:
                while self.step < self.steps:
                    x = self._take(feed)
                    losses = self.grade(x)
                    lr = self.update()
                    self._record(recorder, feed, losses, x, lr, validation)
                metrics = self._finish(feed, recorder, validation)
            if self._log_with:
                self.accelerator.end_training()
        return TrainResult(self.step, self.samples, metrics, recorder.history)

    # -- the four pieces of a step

    def _take(self, feed: Feed) -> Tensor:
        """Draws a batch."""
        try:
            self._last = next(feed)
            return self._last
        except LoaderEnded as ended:
            self._save(feed)
            raise LoaderEnded(
                f"the loader ended after {self.step} of {self.steps} steps"
                + (f"; a checkpoint of them is in {self._folder}" if self._folder else "")
                + ". Give an endless or re-iterable loader, or a smaller budget"
            ) from ended

    def grade(self, x: Tensor) -> Losses:
        """Forward, loss, backward; gradients are averaged over processes."""
        if self._dead is None or self.device.type == "cpu" or self.step % DEAD_EVERY == 0:
            self._dead = (self.sae.samples_since_fired >= self.dead_window).nonzero()[:, 0]
        losses = self.sae.losses(
            x, self.ops, dead=self._dead if self._dead.numel() else None, progress=self.step / self.steps
        )
        total = losses.total
        if self.device.type == "cpu":
            self._check_loss(losses)
        total.backward()
        if self.accelerator.num_processes > 1:
            for parameter in self.optimiser.parameters.values():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return losses

    def update(self) -> float:
        """One optimiser step; returns the learning rate used."""
        lr = self.lr * schedule(self.step, self.steps, self.config.warmup, self.config.decay)
        self.optimiser.step(lr)
        self.sae.decoder.project()
        return lr

    def _record(
        self, recorder: Recorder, feed: Feed, losses: Losses, x: Tensor, lr: float, validation: Iterable[Tensor] | None
    ) -> None:
        """Counters, metrics, checkpoint."""
        rows = x.shape[0] * self.accelerator.num_processes
        self.sae.activation.observe(losses.codes)
        self.sae.count(losses.codes, rows)
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(self.sae.samples_since_fired, op=torch.distributed.ReduceOp.MIN)
        self.step += 1
        self.samples += rows
        recorder.tick(rows)
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            feed.check()
            self._check_loss(losses)
            recorder.log(self.step, self._metrics(losses, x, lr))
        if validation is not None and self.config.validate_every and self.step % self.config.validate_every == 0:
            recorder.log(self.step, validate(self.sae, validation))
        if self.step % self.config.checkpoint_every == 0 or self.step == self.steps:
            self._save(feed)

    # -- beginning and end

    def _begin(self, feed: Feed) -> None:
        """Statistics from the first rows of the loader, then weights."""
        moments, start, held = Moments(self.sae.d), [], 0
        for x in feed.peek(self.config.stat_rows):
            feed.check()
            moments.add(x)
            if held < START_BYTES:
                start.append(x)
                held += x.numel() * x.element_size()
        if self.accelerator.num_processes > 1:
            moments = self._pool(moments)
        check_moments(moments)
        initialise(self.sae, torch.cat(start), moments, self.config.seed)
        self._agree()

    def _pool(self, moments: Moments) -> Moments:
        """Moments of the rows of all processes."""
        own = torch.cat([torch.tensor([float(moments.n)], dtype=torch.float64), moments.mean, moments.squares])
        pooled = Moments(self.sae.d)
        for row in self.accelerator.gather(own[None].to(self.device)).cpu():
            pooled.merge(int(row[0]), row[1 : 1 + self.sae.d], row[1 + self.sae.d :])
        return pooled

    def _agree(self) -> None:
        """Gives every process the weights and buffers of the first."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for tensor in self.sae.state_dict().values():
                tensor.copy_(broadcast(tensor.clone()))

    def _finish(self, feed: Feed, recorder: Recorder, validation: Iterable[Tensor] | None) -> dict[str, Any]:
        """Calibrates thresholds and measures on validation batches."""
        if self.sae.activation.calibrates and (held_out := self._held_out(feed) if validation is None else validation):
            self.sae.calibrate(held_out)
        self._agree()
        self.sae.eval()
        metrics = dict(recorder.history[-1]) if recorder.history else {"step": self.step}
        if validation is not None:
            values = validate(self.sae, validation)
            recorder.log(self.step, {**values, "final": True})
            metrics |= values
        return metrics

    def _held_out(self, feed: Feed) -> list[Tensor]:
        """The next batches of the loader; the last one trained on where the loader has no more."""
        batches: list[Tensor] = []
        wanted = min(self.config.calibration_rows, self.samples)  # a short run is not worth a long calibration
        while sum(b.shape[0] for b in batches) < wanted:
            try:
                batches.append(next(feed))
            except LoaderEnded:
                break
        return batches or ([] if self._last is None else [self._last])

    def _metrics(self, losses: Losses, x: Tensor, lr: float) -> dict[str, Any]:
        with torch.no_grad():
            u = self.sae.normalise(x)
            values = {
                "loss": losses.total,
                **losses.terms,
                "fvu": (u - losses.recon).square().sum() / (u - u.mean(0)).square().sum(),
                "l0": losses.codes.l0(),
                "dead": (self.sae.samples_since_fired >= self.dead_window).double().mean(),
            }
            stacked = torch.stack([v.detach().double() for v in values.values()])
            if self.accelerator.num_processes > 1:
                stacked = self.accelerator.reduce(stacked, reduction="mean")
        return {"samples": self.samples, **dict(zip(values, stacked.tolist(), strict=True)), "lr": lr}

    def _check_loss(self, losses: Losses) -> None:
        values = {name: float(term.detach()) for name, term in losses.terms.items()}
        if wrong := [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]:
            raise FloatingPointError(
                f"the loss is no longer finite at step {self.step} ({', '.join(f'{n}={values[n]}' for n in wrong)}): "
                f"training diverged at a peak learning rate of {self.lr:.3g}. Lower TrainConfig.lr"
            )

    # -- checkpoints

    def _newest(self, resume: bool) -> Path | None:
        if self._folder is None:
            if resume:
                raise ValueError("resume needs the folder of the run: give Trainer an out")
            return None
        found = checkpoint.listing(self._folder)
        if resume:
            return found[-1] if found else None
        if (found or (self.out is not None and (self.out / METRICS).exists())) and self.step == 0:
            raise ValueError(
                f"{self.out} holds a run already: pass resume=True to go on with it, or choose another folder"
            )
        return None

    def _identity(self) -> dict[str, Any]:
        fixed = {k: v for k, v in self.config.to_dict().items() if k not in FREE}
        return {
            **fixed,
            "precision": self.precision,
            "kind": self.sae.kind,
            "d": self.sae.d,
            "n_latents": self.sae.n_latents,
            "options": self.sae.options,
            "processes": self.accelerator.num_processes,
        }

    def _save(self, feed: Feed) -> None:
        if self._folder is None or not self.accelerator.is_main_process:
            return
        feed.check()
        tensors = {f"sae.{name}": t for name, t in self.sae.state_dict().items()}
        tensors |= {f"adam.{name}": t for name, t in self.optimiser.state_dict().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        notes = {"samples": self.samples, "run": self._identity(), "feed": feed.state()}
        checkpoint.save(self._folder, checkpoint.Checkpoint(self.step, tensors, notes), self.config.keep)

    def _restore(self, saved: checkpoint.Checkpoint, feed: Feed) -> None:
        now, then = self._identity(), saved.notes["run"]
        if differing := [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in now if now[k] != then.get(k)]:
            raise ValueError(
                f"cannot resume {self.out} with other settings ({'; '.join(differing)}): use the old ones "
                "or start in another folder"
            )
        self.sae.load_state_dict({k[4:]: t for k, t in saved.tensors.items() if k.startswith("sae.")})
        self.optimiser.load_state_dict({k[5:]: t for k, t in saved.tensors.items() if k.startswith("adam.")})
        torch.set_rng_state(saved.tensors["rng.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.tensors["rng.cuda"], self.device)
        self.step, self.samples = saved.step, saved.notes["samples"]
        feed.restore(saved.notes["feed"])
