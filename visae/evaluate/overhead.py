"""What an erasure costs: seconds and memory of the same run with it and without, taking turns."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from visae.train.bench import peak_of, settle


@dataclass(frozen=True)
class Overhead:
    """Medians of turns.

    Attributes:
        seconds_plain: of a run without the erasure.
        seconds_erased: of a run inside its context.
        seconds_entering: of entering and leaving the context.
        peak_plain: MB that a run takes at most, above what is held before; NaN where that cannot be told.
        peak_erased: the same with entering the context; what the erasure had loaded before is not in it.
        turns: runs of each kind behind the medians.
    """

    seconds_plain: float
    seconds_erased: float
    seconds_entering: float
    peak_plain: float
    peak_erased: float
    turns: int

    @property
    def time(self) -> float:
        """Share of the plain run's time that the erasure adds: 0.05 is 5 % more."""
        return self.seconds_erased / self.seconds_plain - 1

    @property
    def memory(self) -> float:
        """MB that it adds to the peak."""
        return self.peak_erased - self.peak_plain

    def to_dict(self) -> dict[str, Any]:
        """JSON form; None for what cannot be told."""
        told = {**asdict(self), "time": self.time, "memory": self.memory}
        return {name: value if value == value else None for name, value in told.items()}


def overhead(
    run: Callable[[], object],
    erasure: Callable[[], AbstractContextManager[Any]],
    *,
    turns: int = 7,
    device: str = "cpu",
) -> Overhead:
    """Times a run with an erasure and without, in turns, after one of each that does not count.

    Args:
        run: what is timed, e.g. `lambda: pipeline.generate(texts, seeds, steps=20, output_type="latent")`.
        erasure: makes the context.
        turns: runs of each kind; the kind that comes first alternates, so that a busy machine slows both alike.
        device: where the run computes.

    Raises:
        ValueError: for fewer than one turn.
    """
    if turns < 1:
        raise ValueError(f"medians need at least one turn, got {turns}")
    plain: list[float] = []
    erased: list[float] = []
    entering: list[float] = []

    def timed(job: Callable[[], object]) -> float:
        settle(device)
        begun = time.perf_counter()
        job()
        settle(device)
        return time.perf_counter() - begun

    def inside() -> None:
        begun = time.perf_counter()
        with erasure():
            erased.append(timed(run))
        entering.append(time.perf_counter() - begun - erased[-1])

    kinds = [lambda: plain.append(timed(run)), inside]
    for turn in range(turns + 1):
        for kind in kinds[:: -1 if turn % 2 else 1]:
            kind()

    def under() -> None:
        with erasure():
            run()

    peaks = [peak_of(job, device, times=1) for job in (run, under)]
    medians = [statistics.median(times[1:]) for times in (plain, erased, entering)]
    return Overhead(medians[0], medians[1], medians[2], peaks[0], peaks[1], turns)
