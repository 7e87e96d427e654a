"""What a run writes down: `metrics.jsonl`, the progress bar, accelerate's trackers."""

import json
import math
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

METRICS = "metrics.jsonl"
SHOWN = {
    "fvu": ("FVU", "{:.3g}"),
    "l0": ("L0", "{:.3g}"),
    "dead": ("dead", "{:.1%}"),
    "val_fvu": ("held-out FVU", "{:.3g}"),
    "rows_per_second": ("rows/s", "{:,.0f}"),
}
"""What the bar shows of a line, and how."""


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`; a last line cut short by a crash is left out."""
    lines = []
    for line in (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Recorder:
    """Context that writes one JSON line per `log`, on the main process only.

    Args:
        folder: of the run; None keeps lines in `history` only.
        start: steps done before; later lines left by a run that was cut short are dropped, so that the file reads as
            if there had been no interruption.
        steps: of the whole run, for the progress bar.
        progress: whether to show one.
        accelerator: for the main process and the trackers.
        kernels: which are in use, for the bar.
    """

    def __init__(self, folder: Path | None, start: int, steps: int, progress: bool, accelerator: Any, kernels: str):
        from tqdm.auto import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        self.accelerator, self.history = accelerator, []  # type: ignore[var-annotated]
        self._main = accelerator.is_main_process
        self._file = None
        if folder is not None and self._main:
            folder.mkdir(parents=True, exist_ok=True)
            self.history = _truncate(folder / METRICS, start)
            self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc=f"train [{kernels}]",
            disable=not (progress and self._main),
            dynamic_ncols=True,
        )
        # warnings stay off the bar's line
        quiet: AbstractContextManager[None] = nullcontext()
        self._logs = quiet if self._bar.disable else logging_redirect_tqdm()
        self._clock, self._rows = time.perf_counter(), 0
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Recorder":
        self._logs.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._logs.__exit__(kind, value, trace)
        if self._file is not None:
            self._file.close()

    def tick(self, rows: int) -> None:
        """Counts one step of so many rows."""
        self._rows += rows
        self._bar.update(1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line; values that are not finite become null, which JSON has and NaN it has not."""
        now = time.perf_counter()
        speed = self._rows / max(now - self._clock, 1e-9)
        self._clock, self._rows = now, 0
        line = {"step": step, **values}
        if speed > 0:
            line["rows_per_second"] = round(speed, 1)
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.history.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._shown |= {SHOWN[k][0]: SHOWN[k][1].format(line[k]) for k in SHOWN if line.get(k) is not None}
        self._bar.set_postfix(self._shown)
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=step)


def _truncate(file: Path, step: int) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = read_metrics(file.parent) if step else []
    kept = [line for line in lines if line["step"] <= step and not line.get("final")]  # the end will be written anew
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, file)
    return kept
