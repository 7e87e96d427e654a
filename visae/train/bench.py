"""How long a training step takes, tier by tier, beside the one matrix product that it cannot do without."""

import ctypes
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae.ops import fast_precision, usable_kernels
from visae.sae import Rows, initialise, kind_options, make_sae
from visae.sae.side import join
from visae.train.config import TrainConfig
from visae.train.planted import Planted, PlantedConfig
from visae.train.trainer import Trainer

WARM = 3
"""Steps before the clock starts."""


def tiers(device: str) -> list[tuple[str, str]]:
    """Tiers of kernels that this machine has for a device, each with the precision of the encoder's product."""
    fused = [(name, precision) for name in usable_kernels(device) for precision in ("fp32", "bf16")]
    return [("reference", "fp32"), ("eager", "fp32"), ("eager", "bf16"), *fused]


@dataclass(frozen=True)
class Size:
    """Of the step that is timed: tokens `[batch, d]`, F latents, k codes per token."""

    d: int
    n_latents: int
    batch: int
    k: int
    kind: str = "topk"
    device: str = "cpu"

    @property
    def options(self) -> dict[str, Any]:
        """Of the kind."""
        return {"k": self.k} if "k" in kind_options(self.kind) else {}


def batches(size: Size, n: int = 4) -> list[Tensor | Rows]:
    """Planted tokens in memory: 4 d features, 24 active, frequencies falling as rank^-0.7."""
    needs = make_sae(size.kind, size.d, size.n_latents, **size.options).needs
    world = Planted(PlantedConfig(d=size.d, n_features=4 * size.d, active=24, zipf=0.7), size.batch, needs=needs)
    return [moved(world.rows(size.batch, i), size.device) for i in range(n)]


def moved(rows: Tensor | Rows, device: str) -> Tensor | Rows:
    """Rows on a device, with what comes beside them."""
    if isinstance(rows, Tensor):
        return rows.to(device)
    return Rows(rows.rows.to(device), {name: value.to(device) for name, value in rows.side.items()})


def settle(device: str) -> None:
    """Waits until a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def tokens(data: Sequence[Tensor | Rows]) -> list[Tensor]:
    """The rows alone, of batches that may say more of each."""
    return [x.rows if isinstance(x, Rows) else x for x in data]


def bare_step(size: Size, tier: str, precision: str, data: list[Tensor | Rows]) -> tuple[Trainer, Callable[[], None]]:
    """A trainer, and a function that takes its step: forward, loss, backward, update, counts; no loader and no log."""
    sae = make_sae(size.kind, size.d, size.n_latents, **size.options)
    config = TrainConfig(steps=10_000, batch=size.batch, ops=tier, precision=precision, device=size.device)  # type: ignore[arg-type]
    trainer = Trainer(sae, config, progress=False)
    initialise(sae, join(data))

    def step() -> None:
        x = data[trainer.step % len(data)]
        losses = trainer.grade(x)
        trainer.update()
        sae.activation.observe(losses.codes)
        sae.count(losses.codes)
        trainer.step += 1

    return trainer, step


def floor(size: Size, dtype: torch.dtype, x: Tensor) -> Callable[[], None]:
    """The encoder's matrix product alone, into memory that is there already."""
    left, weight = x.to(dtype), torch.randn(size.n_latents, size.d).to(x.device, dtype)
    out = torch.empty(size.batch, size.n_latents, dtype=dtype, device=x.device)

    def product() -> None:
        torch.mm(left, weight.T, out=out)

    return product


def bench_step(size: Size, repeats: int = 10, progress: bool = False, peers: bool = False) -> dict[str, Any]:
    """Medians over repeats in which floors, tiers and peers take turns, so that a busy machine slows all alike.

    Args:
        size: of the step.
        repeats: timed turns, after three that are not.
        progress: show a bar.
        peers: whether to time other libraries too, see `visae.train.peers`.

    Returns:
        `size`; `floors`: `fp32_ms` and `bf16_ms`; `rows`: `name`, `what`, `ms`, `over_fp32_floor`, `over_bf16_floor`,
        and `peak_mb`, the memory above what the process held with weights, moments and batches, measured in a process
        of its own (None where it cannot be told); `precision`: what `auto` takes on this machine; `failed`: peer -> why
        it is not among the rows.
    """
    from visae.train.rivals import rivals

    data = batches(size)
    plain = tokens(data)
    others, failed = rivals(size, plain) if peers else ({}, {})
    jobs: dict[str, Callable[[], None]] = {
        "fp32 floor": floor(size, torch.float32, plain[0]),
        "bf16 floor": floor(size, torch.bfloat16, plain[0]),
    }
    jobs |= {f"{tier} {precision}": bare_step(size, tier, precision, data)[1] for tier, precision in tiers(size.device)}
    peaks: dict[str, Callable[[], float]] = {
        f"{tier} {precision}": partial(peak_memory, size, tier, precision) for tier, precision in tiers(size.device)
    }
    jobs |= {name: job for name, (job, _) in others.items()}
    peaks |= {name: peak for name, (_, peak) in others.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in tqdm(range(WARM + repeats), desc="bench step", disable=not progress):
        for name, job in jobs.items():
            settle(size.device)
            started = time.perf_counter()
            job()
            settle(size.device)
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - started)
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "name": name,
            "what": "peer" if name in others else "tier",
            "ms": round(ms[name], 4),
            "over_fp32_floor": round(ms[name] / ms["fp32 floor"], 2),
            "over_bf16_floor": round(ms[name] / ms["bf16 floor"], 2),
            "peak_mb": None if math.isnan(mb := peak()) else mb,
        }
        for name, peak in peaks.items()
    ]
    return {
        "bench": "step",
        "size": {"d": size.d, "n_latents": size.n_latents, "batch": size.batch, "k": size.k, "kind": size.kind},
        "device": size.device,
        "threads": torch.get_num_threads(),
        "precision": fast_precision(size.device),
        "floors": {"fp32_ms": round(ms["fp32 floor"], 4), "bf16_ms": round(ms["bf16 floor"], 4)},
        "rows": rows,
        "failed": failed,
    }


def peak_memory(size: Size, tier: str, precision: str) -> float:
    """Peak MB of five steps in a fresh process, see `added_memory`."""
    return in_fresh_process(f"visae.train.bench.added_memory(visae.train.bench.{size}, {tier!r}, {precision!r})")


def in_fresh_process(call: str) -> float:
    """The number that a call returns in a Python process of its own."""
    code = f"import visae.train.bench, visae.train.rivals; print({call})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def added_memory(size: Size, tier: str, precision: str) -> float:
    """Peak MB of five steps in this process, above what it holds with weights, moments and batches.

    Resident memory on a CPU (Linux only, else NaN), allocated memory on a GPU.
    """
    small = replace(size, d=64, n_latents=1024, batch=64, k=4)
    bare_step(small, tier, precision, batches(small))[1]()  # loads code: that is not the step's memory
    _, step = bare_step(size, tier, precision, batches(size))
    return peak_of(step, size.device)


def peak_of(step: Callable[[], object], device: str = "cpu", times: int = 5) -> float:
    """Peak MB of some steps above what is held now: on the GPU, or resident in the process (Linux only, else NaN)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        for _ in range(times):
            step()
        return round((torch.cuda.max_memory_allocated(device) - held) / 2**20, 1)
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # memory that was freed but not given back would hide ours
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _resident(status, "VmRSS")
    for _ in range(times):
        step()
    return round(_resident(status, "VmHWM") - before, 1)


def _resident(status: Path, field: str) -> float:
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
