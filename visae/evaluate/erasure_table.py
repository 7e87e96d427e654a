"""Many erasures in one table: means over the targets of a domain, each with its interval, beside the plain pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visae.data.sample import Concept
from visae.evaluate.erasure import Outcome
from visae.evaluate.rates import Rate, Tally, rate
from visae.text_table import text_table

PLAIN = "plain"
"""Method of the rows of the pipeline as it is."""
MEASURES = ("ua", "ira", "cra", "cra_saeuron", "kept")
"""What `visae.evaluate.erasure_counts` counts."""
_HEADS = {
    "mean": "mean of 3", "ua": "UA", "ira": "IRA", "cra": "CRA", "cra_saeuron": "CRA as SAeUron", "kept": "kept",
    "kept_change": "kept - plain", "identical": "identical", "tpr": "gate TPR", "fpr": "gate FPR",
    "identical_shut": "identical, gate shut",
}  # fmt: skip
_FAR = {"embedding": "1 - cosine", "pixels": "pixels"}


@dataclass(frozen=True)
class Row:
    """A method on the targets of a domain, by one judge; means over the targets.

    Attributes:
        method: name of the method, `plain` for the pipeline as it is.
        judge: who judged.
        domain: factor of the targets; of several concepts at once what they are, see `Outcome.domain`.
        targets: what was erased, one entry for each erasure.
        rates: measure -> mean and interval over images; measures that there are not are missing. Beside those of
            `visae.evaluate.erasure_counts`, `mean` of `ua`, `ira` and `cra`; `kept_change`, `kept` less that of the
            plain pipeline, image by image; and what `visae.evaluate.harm` measures.
        frechet: mean distance; None without vectors, and of the plain pipeline.
        time: mean share of the time that is added; None where it was not measured.
        memory: mean MB added to the peak; likewise, or where that cannot be told.
    """

    method: str
    judge: str
    domain: str
    targets: tuple[tuple[Concept, ...], ...]
    rates: dict[str, Rate]
    frechet: float | None = None
    time: float | None = None
    memory: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "method": self.method, "judge": self.judge, "domain": self.domain,
            "targets": [[f"{factor}={value}" for factor, value in one] for one in self.targets],
            **{name: found.to_dict() for name, found in self.rates.items()},
            "frechet": self.frechet, "time": self.time, "memory": self.memory,
        }  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Outcomes of several methods on several targets; prints as a table.

    Attributes:
        outcomes: of the same prompts.
    """

    outcomes: Sequence[Outcome]

    def rows(self) -> list[Row]:
        """One for every domain, judge and method, the plain pipeline first, in the order of the outcomes."""
        found: list[Row] = []
        for domain in dict.fromkeys(one.domain for one in self.outcomes):
            mine = [one for one in self.outcomes if one.domain == domain]
            for judge in dict.fromkeys(name for one in mine for name in one.erased):
                first = {one.concepts: one for one in mine if judge in one.plain}
                found.append(plain_row(list(first.values()), judge))
                for method in dict.fromkeys(one.method for one in mine if judge in one.erased):
                    found.append(row([one for one in mine if one.method == method and judge in one.erased], judge))
        return found

    def targets(self) -> list[Row]:
        """One for every outcome and judge."""
        return [row([one], judge) for one in self.outcomes for judge in one.erased]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `rows`, and every target for itself."""
        return {"rows": [one.to_dict() for one in self.rows()], "targets": [one.to_dict() for one in self.targets()]}

    def __str__(self) -> str:
        rows = self.rows()
        percent = [name for name in _HEADS if any(name in one.rates for one in rows)]
        far = [name for name in _FAR if any(name in one.rates for one in rows)]
        more = [name for name in ("frechet", "time", "memory") if any(getattr(one, name) is not None for one in rows)]
        heads = {"frechet": "Frechet", "time": "time added", "memory": "MB added"}
        head = ["domain", "judge", "method", "targets", *(_HEADS[name] for name in percent),
                *(_FAR[name] for name in far), *(heads[name] for name in more)]  # fmt: skip
        lines = [
            [
                one.domain, one.judge, one.method, len(one.targets),
                *(one.rates[name].percent() if name in one.rates else "-" for name in percent),
                *(one.rates[name].plain() if name in one.rates else "-" for name in far),
                *(_cell(name, getattr(one, name)) for name in more),
            ]
            for one in rows
        ]  # fmt: skip
        note = (
            "In percent, means over targets; in brackets 95 % of resamples of the images. Last columns: of what should "
            "stay as it is, 0 is the plain picture."
        )
        return "\n".join([text_table(head, lines), "", note])


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return {"frechet": f"{value:.3g}", "time": f"{value:+.1%}", "memory": f"{value:+.1f}"}[name]


def row(outcomes: Sequence[Outcome], judge: str) -> Row:
    """Means over the outcomes of one method on the targets of one domain.

    Args:
        outcomes: of the same prompts.
        judge: whose answers count.

    Raises:
        ValueError: if they are not all of one method and one domain.
    """
    if len(kinds := {(one.method, one.domain) for one in outcomes}) != 1:
        raise ValueError(f"a row is one method on one domain, got {sorted(kinds)}")
    told = [one.erased[judge] for one in outcomes]
    rates = _rates(told)
    changes = [_less(one.erased[judge]["kept"], one.plain[judge]["kept"]) for one in outcomes]
    rates["kept_change"] = rate(changes)
    for place in ("harm", "gate"):
        tallies = [one.harm.tallies if place == "harm" else one.gate for one in outcomes]
        for name in dict.fromkeys(name for one in tallies for name in one):
            rates[name] = rate([one[name] for one in tallies if name in one])
    first, costs = outcomes[0], [one.overhead for one in outcomes if one.overhead is not None]
    return Row(
        first.method, judge, first.domain, tuple(one.concepts for one in outcomes), _found(rates),
        _mean([one.harm.frechet for one in outcomes]), _mean([one.time for one in costs]),
        _mean([one.memory for one in costs]),
    )  # fmt: skip


def plain_row(outcomes: Sequence[Outcome], judge: str) -> Row:
    """What the measures are on the plain pictures, for the same targets: the ceiling."""
    rates = _found(_rates([one.plain[judge] for one in outcomes]))
    return Row(PLAIN, judge, outcomes[0].domain, tuple(one.concepts for one in outcomes), rates)


def _rates(told: Sequence[dict[str, Tally]]) -> dict[str, Rate | None]:
    kinds = {name: [one[name] for one in told] for name in MEASURES}
    rates = {name: rate(tallies) for name, tallies in kinds.items()}
    return {"mean": rate(kinds["ua"], kinds["ira"], kinds["cra"]), **rates}


def _less(one: Tally, other: Tally) -> Tally:
    """Differences, image by image, of what was counted in the same trials."""
    return Tally(one.total - other.total, one.trials)


def _found(rates: dict[str, Rate | None]) -> dict[str, Rate]:
    return {name: found for name, found in rates.items() if found is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None and value == value]
    return float(np.mean(told)) if told else None
