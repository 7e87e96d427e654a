"""Is a concept gone, and is everything else still there? What is counted, by any judge, after UnlearnCanvas.

A prompt asks for a value of every domain (a shape and a style, an object and a style); a judge says what its picture
shows. An answer is right where the judge sees what the prompt asks for. Cells are the prompts that ask for a value of
every domain. With some values erased:

    ua           unlearning accuracy: 1 - share of right answers to what is erased, where it is asked for
    ira          in-domain retain accuracy: share of right answers to the other values of domains with erased ones
    cra          cross-domain retain accuracy: share of right answers in the other domains, over all cells, those that
                 ask for something erased among them (Zhang et al., UnlearnCanvas, 2024); there is none where every
                 domain has erased values
    cra_saeuron  the same over prompts that leave the erased domain open, as the script of SAeUron measures styles
                 (Cywinski and Deja 2025), or where there are none, over cells that ask for nothing erased
    kept         share of right answers to whatever is not erased, in all domains, over all cells

The same of pictures without any erasure is the ceiling: `ua` is then what pipeline and judge get wrong anyway.

A gate opens for a prompt or stays shut:

    tpr              share of cells that ask for something erased for which it opens
    fpr              share of the other cells for which it opens
    identical_shut   share of the other cells' pictures under a shut gate that are the plain ones to the bit
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visae.data.sample import Concept, Prompt
from visae.evaluate.rates import Tally
from visae.registry import UnknownName
from visae.world.cells import DOMAINS

Seen = Mapping[str, Sequence[str]]
"""Factor -> what a judge sees in every picture."""


@dataclass(frozen=True)
class Asked:
    """What prompts ask for, as far as an erasure is concerned.

    Attributes:
        domains: factors with values that can be erased.
        stated: domain -> `[n]` value that each prompt asks for, "" where it leaves it open.
        erased: domain -> `[n]` bool, whether that value is erased.
        open: domain -> `[n]` bool, whether the prompt leaves the domain open, or asks for no particular value of it.
        within: domains that have erased values.
    """

    domains: tuple[str, ...]
    stated: dict[str, np.ndarray]
    erased: dict[str, np.ndarray]
    open: dict[str, np.ndarray]
    within: tuple[str, ...]

    @property
    def cells(self) -> np.ndarray:
        """Prompts `[n]` bool that ask for a value of every domain."""
        return np.all([self.stated[domain] != "" for domain in self.domains], axis=0)

    @property
    def target(self) -> np.ndarray:
        """Cells `[n]` bool that ask for something erased."""
        return self.cells & np.any([self.erased[domain] for domain in self.domains], axis=0)

    @property
    def retain(self) -> np.ndarray:
        """Cells `[n]` bool that ask for nothing erased."""
        return self.cells & ~self.target


def asked(
    prompts: Sequence[Prompt],
    concepts: Collection[Concept],
    domains: Sequence[str] = DOMAINS,
    neutral: Collection[Concept] = (),
) -> Asked:
    """Reads the labels of prompts.

    Args:
        prompts: with a label of at least one domain each.
        concepts: what is erased.
        domains: factors with values that can be erased.
        neutral: values that are no particular ones, such as a photograph among styles: cells with them count for the
            other domain, not for their own.

    Raises:
        UnknownName: for an erased concept that no prompt asks for.
        ValueError: if nothing is erased.
    """
    if not concepts:
        raise ValueError("nothing is erased: give at least one concept such as ('style', 'dots')")
    labels = {d: [one.labels.get(d, ()) for one in prompts] for d in domains}
    stated = {d: np.array([values[0] if len(values) == 1 else "" for values in labels[d]]) for d in domains}
    for factor, value in concepts:
        if factor not in stated:
            raise UnknownName("domain of the prompts", factor, domains)
        if value not in stated[factor]:
            raise UnknownName(f"{factor} that prompts ask for", value, {str(known) for known in stated[factor]} - {""})
    values = {d: [v for factor, v in concepts if factor == d] for d in domains}
    plainly = {d: [v for factor, v in neutral if factor == d] for d in domains}
    return Asked(
        tuple(domains),
        stated,
        {d: np.isin(stated[d], values[d]) for d in domains},
        {d: np.isin(stated[d], ["", *plainly[d]]) for d in domains},
        tuple(d for d in domains if values[d]),
    )


def counts(of: Asked, seen: Seen) -> dict[str, Tally]:
    """Measure -> tally of right answers (`ua`: of wrong ones), see the module.

    Raises:
        ValueError: if the judge does not answer for a domain, or not for every picture.
    """
    for domain in of.domains:
        if len(seen.get(domain, ())) != len(of.stated[domain]):
            raise ValueError(
                f"the judge must name the {domain} of all {len(of.stated[domain])} pictures; "
                f"it named {len(seen.get(domain, ()))}, and answers for {', '.join(seen) or 'nothing'}"
            )
    cells, others = of.cells, [domain for domain in of.domains if domain not in of.within]
    right = {domain: np.asarray(seen[domain]) == of.stated[domain] for domain in of.domains}
    kept = {domain: cells & ~of.erased[domain] & ~of.open[domain] for domain in of.domains}
    left_open = np.all([of.open[domain] for domain in of.within], axis=0)
    apart = left_open if left_open.any() else of.retain

    def tally(domains: Sequence[str], where: Mapping[str, np.ndarray], told: Mapping[str, np.ndarray]) -> Tally:
        zero = np.zeros(len(cells))
        return Tally(
            sum((1.0 * (where[d] & told[d]) for d in domains), zero), sum((1.0 * where[d] for d in domains), zero)
        )

    return {
        "ua": tally(of.within, {d: cells & of.erased[d] for d in of.within}, {d: ~right[d] for d in of.within}),
        "ira": tally(of.within, kept, right),
        "cra": tally(others, kept, right),
        "cra_saeuron": tally(others, {d: apart & ~of.open[d] for d in others}, right),
        "kept": tally(of.domains, kept, right),
    }


def gate_counts(of: Asked, opened: np.ndarray, same: np.ndarray) -> dict[str, Tally]:
    """`tpr`, `fpr` and `identical_shut`, see the module.

    Args:
        of: what prompts ask for.
        opened: `[n]` bool, for which of them the gate opened.
        same: `[n]` bool, which pictures are the plain ones to the bit.

    Raises:
        ValueError: if there is not one gate for each prompt.
    """
    if len(opened) != len(of.cells):
        raise ValueError(f"a gate is open or shut for each of {len(of.cells)} prompts, got {len(opened)} answers")
    return {
        "tpr": Tally.of(opened, of.target),
        "fpr": Tally.of(opened, of.retain),
        "identical_shut": Tally.of(same, of.retain & ~opened),
    }
