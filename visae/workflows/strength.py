"""How strongly to erase: what erases most within a budget of harm, on prompts that nobody reports on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visae.erasers import Method
from visae.evaluate.erasure import Outcome, Plain
from visae.evaluate.erasure_counts import asked
from visae.evaluate.harm import harm
from visae.evaluate.rates import Tally
from visae.workflows.results import Results, plainly
from visae.workflows.studio import JUDGE

BUDGET = 0.02
"""Harm that is allowed where nothing is said, see `verdict`."""


@dataclass(frozen=True)
class Tried:
    """One strength on the validation prompts.

    Attributes:
        strength: the setting's value; None where there is nothing to choose.
        gain: how far the concept is gone, see `verdict`.
        harm: what of the rest is lost; name -> share.
        within: whether each is within the budget.
    """

    strength: float | None
    gain: float
    harm: dict[str, float]
    within: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def verdict(outcome: Outcome, plain: Plain) -> tuple[float, dict[str, float]]:
    """How far a concept is gone, and what of the rest is lost.

    Where a judge knows the concept: UA, and the shares of right answers within the domain (`ira`) and in the others
    (`cra`) that the plain pictures have and these have not. Elsewhere: how far the pictures of target prompts are from
    the plain ones, and those of retain prompts (`moved`), in root mean square of pixels, as a share of how far plain
    pictures of different prompts are from each other.
    """
    if JUDGE in outcome.erased:
        now, before = outcome.erased[JUDGE], outcome.plain[JUDGE]
        lost = {name: _mean(before[name]) - _mean(now[name]) for name in ("ira", "cra") if now[name].n}
        return _mean(now["ua"]), lost
    of = asked(plain.prompts, outcome.concepts, plain.domains, plain.neutral)
    others = [*plain.pictures[1:], plain.pictures[0]]
    apart = _pixels(plain.pictures, others, np.ones(len(others), bool)) or 1.0
    gain, moved = (_pixels(plain.pictures, outcome.pictures, where) / apart for where in (of.target, of.retain))
    return gain, {"moved": moved}


def _pixels(first: Sequence[Any], second: Sequence[Any], where: np.ndarray) -> float:
    return _mean(harm(first, second, where).tallies["pixels"])


def _mean(tally: Tally) -> float:
    return float(tally.total.sum() / tally.trials.sum()) if tally.n else 0.0


def best(tried: Sequence[Tried]) -> Tried:
    """The largest gain within the budget; if none is within, the least harm.

    Of equal gains that with the least harm, and of equal ones there the strongest: attacks will meet it.

    Raises:
        ValueError: if none was tried.
    """
    if not tried:
        raise ValueError("no strength was tried")

    def worst(one: Tried) -> float:
        return max(one.harm.values(), default=0.0)

    within = [one for one in reversed(tried) if one.within]
    return min(within, key=lambda one: (-one.gain, worst(one))) if within else min(tried, key=worst)


def choose(
    candidates: Mapping[float | None, Method],
    measure: Callable[[Method], tuple[float, dict[str, float]]],
    budget: float,
    results: Results | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[Tried, list[Tried]]:
    """Tries strengths from mild to strong; what was measured before is not measured again.

    A strength whose harm is beyond three times the budget ends the search, since what follows is stronger.

    Args:
        candidates: strength -> method, see `visae.erasers.strengths.variants`.
        measure: gain and harm of a method, see `verdict`.
        budget: of harm.
        results: where they are kept.
        about: what decides them beside the method.

    Returns:
        The best, and all that were tried.
    """
    tried: list[Tried] = []
    for strength, method in candidates.items():
        key = {**(about or {}), "settings": plainly(method.settings)}
        known = results.get(key) if results is not None else None
        if known is None:
            gain, lost = measure(method)
            known = {"gain": gain, "harm": lost}
            if results is not None:
                results.put(key, known)
        worst = max(known["harm"].values(), default=0.0)
        tried.append(Tried(strength, known["gain"], known["harm"], worst <= budget))
        if worst > 3 * budget + 1e-9 and len(tried) > 1:
            break
    return best(tried), tried


def mean_verdict(
    found: Sequence[tuple[float, dict[str, float]]],
) -> tuple[float, dict[str, float]]:
    """Gain and harm averaged over several concepts."""
    names = dict.fromkeys(name for _, lost in found for name in lost)
    told = {name: float(np.mean([lost[name] for _, lost in found if name in lost])) for name in names}
    return float(np.mean([gain for gain, _ in found])), told
