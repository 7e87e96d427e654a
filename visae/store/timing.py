"""Timing jobs that take turns, so that a busy machine slows all of them alike."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

Seconds = dict[str, list[float]]
"""Name of a job -> its durations, one per turn."""


def take_turns(
    seconds: Seconds,
    turn: int,
    jobs: Mapping[str, Callable[[], object]],
    clear: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Times every job, in another order each turn, each after what was written before has reached the disk.

    What a job wrote the turn before, at `clear[name]`, is removed just before it runs, so that each finds as much free
    memory and disk as the others.
    """
    names = list(jobs)
    shift = turn % len(names)
    for name in names[shift:] + names[:shift]:
        if name in clear:
            _remove(clear[name])
        if hasattr(os, "sync"):
            os.sync()
        started = time.perf_counter()
        jobs[name]()
        seconds.setdefault(name, []).append(time.perf_counter() - started)


def ratio(seconds: Seconds, floor: str, ours: str) -> float:
    """How many times as fast as the floor a job is, from medians."""
    return round(statistics.median(seconds[floor]) / statistics.median(seconds[ours]), 3)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
