"""One dictionary for all steps of a diffusion run, one per window of steps, or one modulated by the noise level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visae.evaluate.noise import bin_name, bin_of
from visae.json_files import write_json
from visae.store import Collection, extract
from visae.text_table import text_table
from visae.tokens import TokenPolicy
from visae.workflows.collecting import Branch, ground
from visae.workflows.extract import announce
from visae.workflows.train import train


@dataclass(frozen=True)
class Way:
    """One way across the timesteps.

    Attributes:
        name: `all steps`, `3 windows` or `temporal`.
        folders: of its dictionaries.
        metrics: of each, on held-out prompts.
    """

    name: str
    folders: list[Path]
    metrics: list[Mapping[str, Any]]

    def row(self, bins: Sequence[str]) -> dict[str, Any]:
        """FVU of every bin, their mean and worst, L0, and the share of latents that are dead."""
        tokens = np.array([one["n"] for one in self.metrics], float)
        found = {name: one["fvu"] for metrics in self.metrics for name, one in metrics["by_sigma"].items()}
        return {
            "way": self.name,
            "fvu": {name: found.get(name) for name in bins},
            "fvu_mean": float(np.mean(list(found.values()))),
            "fvu_worst_bin": max(found.values()),
            "l0": float(np.average([one["l0"] for one in self.metrics], weights=tokens)),
            "dead": float(np.mean([one["dead"] for one in self.metrics])),
            "n": int(tokens.sum()),
        }


@dataclass(frozen=True)
class Timesteps:
    """What was compared; prints as a table.

    Attributes:
        ways: one row each.
        bins: names of the bins of noise levels, rising.
        file: the numbers.
    """

    ways: list[Way]
    bins: list[str]
    file: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per way."""
        return [way.row(self.bins) for way in self.ways]

    def __str__(self) -> str:
        head = ["dictionary", *(f"FVU {name}" for name in self.bins), "mean", "worst", "L0", "dead"]
        rows = [
            [row["way"], *row["fvu"].values(), row["fvu_mean"], row["fvu_worst_bin"], row["l0"], row["dead"]]
            for row in self.rows
        ]
        return text_table(head, rows) + f"\nbins are noise levels; {self.rows[0]['n']:,} held-out tokens; {self.file}"


def timesteps(
    out: Path,
    *,
    model: str,
    site: str,
    data: str | None = None,
    validation: str | None = None,
    windows: int = 3,
    kind: str = "batch_topk",
    latents: int | None = None,
    expansion: float = 8,
    k: float = 32,
    passes: float = 8,
    batch: int = 4096,
    seed: int = 0,
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    steps: int | None = None,
    guidance: float | None = None,
    branch: Branch = "cond",
    image_batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> Timesteps:
    """Compare one dictionary for all steps of a pipeline, one per window, and one that follows the noise level.

    All see the same tokens equally often and are as wide; windows end where bins of noise levels end. Stopped at any
    moment, the same command goes on where it was.

    Example:
        visae timesteps runs/steps --model visae:tiny-sd --site unet.mid_block.attentions.0 --steps 20

    Args:
        out: folder of the runs.
        model: name of a pipeline, see `visae models`.
        site: where to read, see `visae sites MODEL`.
        data: prompts, see `visae extract --help`.
        validation: prompts to measure on, see `visae train --help`.
        windows: how many windows of steps.
        kind: of dictionary, for all steps and for windows; beside them stands `temporal`.
        latents: width of every dictionary; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token.
        passes: passes over the data.
        batch: rows per step.
        seed: of weights and order.
        per_image: keep this many tokens of each image at each step; all if not given.
        dtype: of the rows.
        steps: denoising steps; the pipeline's own number if not given.
        guidance: guidance scale; the pipeline's own if not given.
        branch: of guidance: tokens of the prompt (`cond`), of the negative one (`uncond`), or `both`.
        image_batch: images made at a time; 8 if not given.
        image_size: height and width of the images in pixels; the pipeline's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    folder = Path(out)
    how: dict[str, Any] = {
        "steps": steps, "guidance": guidance, "branch": branch, "image_batch": image_batch, "image_size": image_size,
        "device": device,
    }  # fmt: skip
    on = ground(model, site, data, **how)
    if on.collected is None:
        raise ValueError(f"{model} sees images and has no timesteps; name a pipeline, see `visae models`")
    parts = windows_of(on.collected, windows)
    policy = TokenPolicy(per_image=per_image) if per_image else None
    extract(on.model, site, on.data, folder / "activations", policy=policy, dtype=dtype, batch=on.batch,
            sampling=on.collected)  # fmt: skip
    common: dict[str, Any] = {
        "model": model, "site": site, "data": data, "validation": validation, "latents": latents,
        "expansion": expansion, "k": k, "passes": passes, "batch": batch, "seed": seed, "per_image": per_image,
        "dtype": dtype, **how,
    }  # fmt: skip
    runs: dict[str, list[tuple[Path, dict[str, Any]]]] = {
        "all steps": [(folder / "all", {"kind": kind, "activations": folder / "activations"})],
        f"{len(parts)} windows": [
            (folder / f"steps-{part[0]}-{part[-1]}", {"kind": kind, "collect_steps": part, "shards": True})
            for part in parts
        ],
        "temporal": [(folder / "temporal", {"kind": "temporal", "activations": folder / "activations"})],
    }
    ways = []
    for name, jobs in runs.items():
        announce(f"timesteps: {name}")
        ways.append(
            Way(name, [where for where, _ in jobs], [train(where, **common, **own).metrics for where, own in jobs])
        )
    bins = sorted({int(b) for b in bin_of([slot.sigma for slot in on.collected.slots], on.collected.scale)})
    done = Timesteps(ways, [bin_name(number, on.collected.scale) for number in bins], folder / "timesteps.json")
    write_json(done.file, {"model": model, "site": site, "rows": done.rows})
    return done


def windows_of(collected: Collection, count: int) -> list[tuple[int, ...]]:
    """Steps of each of so many windows, in their order; no bin of noise levels is in two.

    Raises:
        ValueError: if there are fewer bins than windows.
    """
    slots = {slot.step: slot.sigma for slot in collected.slots}
    steps = list(slots)
    bins = bin_of([slots[step] for step in steps], collected.scale)
    known = list(dict.fromkeys(bins.tolist()))
    if not 1 <= count <= len(known):
        raise ValueError(f"{len(steps)} steps lie in {len(known)} bins of noise levels; asked for {count} windows")
    before = np.array([np.flatnonzero(bins == b)[0] for b in known])  # steps before each bin
    starts = [0]
    for number in range(1, count):
        free = range(starts[-1] + 1, len(known) - (count - number) + 1)
        starts.append(min(free, key=lambda b: abs(before[b] - number * len(steps) / count)))
    ends = [*(int(before[b]) for b in starts[1:]), len(steps)]
    return [tuple(steps[int(before[b]) : end]) for b, end in zip(starts, ends, strict=True)]
