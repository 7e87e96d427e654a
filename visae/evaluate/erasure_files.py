"""Outcomes of erasures as JSON, without their pictures, so that what was measured once need not be again."""

from dataclasses import fields
from typing import Any

import numpy as np

from visae.evaluate.erasure import Outcome
from visae.evaluate.harm import Harm
from visae.evaluate.overhead import Overhead
from visae.evaluate.rates import Tally

FORMAT = 1
"""Goes up whenever a measure means something else."""


def to_json(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome but its pictures, image by image."""
    return {
        "method": outcome.method,
        "concepts": [list(one) for one in outcome.concepts],
        "erased": {judge: _tallies(told) for judge, told in outcome.erased.items()},
        "plain": {judge: _tallies(told) for judge, told in outcome.plain.items()},
        "harm": {"tallies": _tallies(outcome.harm.tallies), "frechet": outcome.harm.frechet},
        "gate": _tallies(outcome.gate),
        "overhead": None if outcome.overhead is None else outcome.overhead.to_dict(),
    }


def from_json(told: dict[str, Any]) -> Outcome:
    """Reverse of `to_json`."""
    costs = told["overhead"]
    return Outcome(
        told["method"],
        tuple((factor, value) for factor, value in told["concepts"]),
        {judge: _read(one) for judge, one in told["erased"].items()},
        {judge: _read(one) for judge, one in told["plain"].items()},
        Harm(_read(told["harm"]["tallies"]), told["harm"]["frechet"]),
        _read(told["gate"]),
        None if costs is None else _overhead(costs),
    )


def _overhead(told: dict[str, Any]) -> Overhead:
    costs: dict[str, Any] = {
        one.name: float("nan") if told[one.name] is None else told[one.name] for one in fields(Overhead)
    }
    return Overhead(**costs)


def _tallies(found: dict[str, Tally]) -> dict[str, list[list[float]]]:
    return {name: [one.total.tolist(), one.trials.tolist()] for name, one in found.items()}


def _read(told: dict[str, list[list[float]]]) -> dict[str, Tally]:
    return {name: Tally(*(np.array(numbers, np.float64) for numbers in pair)) for name, pair in told.items()}
