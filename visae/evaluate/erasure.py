"""Is a concept gone, and is everything else still there? Erasures against the plain pipeline, image by image.

The plain pictures are drawn once. Under an erasure the same prompts are drawn from the same seeds; what judges see in
both, and how far the pictures moved where nothing should have, is told by `visae.evaluate.erasure_counts` and
`visae.evaluate.harm`, and printed by `visae.evaluate.erasure_table`. Nothing here knows how an erasure works.

Example:
    >>> prompts = cells("test").items
    >>> judges = {"judge": judged, "tiny-clip": clip_judged}
    >>> plain = Plain.of(prompts, lambda: draw(pipeline, prompts, steps=20), judges, clip_vectors)
    >>> print(Table([plain.measure(erasure, [("style", "dots")], "ours")]))
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from visae.data.sample import Concept, Prompt
from visae.evaluate.blocks import Judge
from visae.evaluate.erasure_counts import Seen, asked, counts, gate_counts
from visae.evaluate.harm import Harm, harm
from visae.evaluate.overhead import Overhead
from visae.evaluate.preserved import Embed
from visae.evaluate.rates import Tally
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.world.cells import DOMAINS

Erasure = Callable[[], AbstractContextManager[Any]]
"""Makes a context in which a pipeline draws without something: `with erasure(): pipeline.generate(...)`."""


@dataclass(frozen=True)
class Outcome:
    """One erasure, measured.

    Attributes:
        method: its name.
        concepts: what is erased.
        erased: judge -> measure -> tally, see `visae.evaluate.erasure_counts`.
        plain: the same of the plain pictures.
        harm: how far retained pictures are from the plain ones.
        gate: `tpr`, `fpr` and `identical_shut`; empty where there is no gate.
        overhead: time and memory; None where they were not measured.
        pictures: drawn under the erasure; empty where they were not kept.
    """

    method: str
    concepts: tuple[Concept, ...]
    erased: dict[str, dict[str, Tally]]
    plain: dict[str, dict[str, Tally]]
    harm: Harm
    gate: dict[str, Tally] = field(default_factory=dict)
    overhead: Overhead | None = None
    pictures: list[Image.Image] = field(default_factory=list, repr=False)

    @property
    def domain(self) -> str:
        """The factor of a single concept, e.g. `style`; of several what they are, e.g. `6 of shape, 4 of style`."""
        factors = [factor for factor, _ in self.concepts]
        if len(factors) == 1:
            return factors[0]
        return ", ".join(f"{factors.count(factor)} of {factor}" for factor in dict.fromkeys(factors))


@dataclass(frozen=True)
class Plain:
    """Pictures of a pipeline as it is, and what is seen in them: drawn once, for all erasures to be compared with.

    Attributes:
        prompts: of the pictures, each with its seed.
        pictures: one for each.
        seen: judge -> what it sees.
        vectors: of the pictures `[n, e]`, or None.
        judges: name -> judge; those of the built-in world are in `visae.world.judging`.
        embed: brings pictures to vectors; None compares pixels alone.
        make: draws pictures of the prompts in what context it is called.
        domains: factors with values that can be erased.
        neutral: values that are no particular ones, see `asked`.
    """

    prompts: list[Prompt]
    pictures: list[Image.Image]
    seen: dict[str, Seen]
    vectors: Tensor | None
    judges: Mapping[str, Judge]
    embed: Embed | None
    make: Callable[[], list[Image.Image]]
    domains: tuple[str, ...]
    neutral: tuple[Concept, ...]

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        make: Callable[[], list[Image.Image]],
        judges: Mapping[str, Judge],
        embed: Embed | None = None,
        *,
        domains: Sequence[str] = DOMAINS,
        neutral: Collection[Concept] = (),
    ) -> "Plain":
        """Draws the plain pictures and has them judged.

        Args:
            prompts: of the pictures, e.g. `visae.world.cells.cells("test").items`.
            make: draws them, the same ones whenever it is called, e.g. `lambda: draw(pipeline, prompts, steps=20)`.
            judges: name -> judge.
            embed: brings pictures to vectors.
            domains: factors with values that can be erased.
            neutral: values that are no particular ones, see `asked`.
        """
        pictures = make()
        seen: dict[str, Seen] = {name: judge(pictures) for name, judge in judges.items()}
        vectors = None if embed is None else embed(pictures)
        return cls(list(prompts), pictures, seen, vectors, judges, embed, make, tuple(domains), tuple(neutral))

    def measure(
        self,
        erasure: Erasure,
        concepts: Sequence[Concept],
        method: str = "",
        *,
        opened: Callable[[], Sequence[bool]] | None = None,
        overhead: Overhead | None = None,
        keep: bool = True,
    ) -> Outcome:
        """Draws the same prompts and seeds under an erasure, and compares.

        Args:
            erasure: makes the context to draw in.
            concepts: what it erases.
            method: its name.
            opened: tells, when all is drawn and before the context ends, for which prompts the gate opened.
            overhead: time and memory, if they were measured.
            keep: whether the outcome holds the pictures.
        """
        with erasure():
            pictures = self.make()
            gate = None if opened is None else opened()
        return self.compare(pictures, concepts, method, opened=gate, overhead=overhead, keep=keep)

    def compare(
        self,
        pictures: list[Image.Image],
        concepts: Sequence[Concept],
        method: str = "",
        *,
        opened: Sequence[bool] | None = None,
        overhead: Overhead | None = None,
        keep: bool = True,
    ) -> Outcome:
        """Compares pictures of the same prompts and seeds, drawn under an erasure, with the plain ones.

        Args:
            pictures: one for each prompt.
            concepts: what is erased.
            method: name of the erasure.
            opened: for which prompts its gate opened.
            overhead: time and memory, if they were measured.
            keep: whether the outcome holds the pictures.

        Raises:
            UnknownName: for a concept that no prompt asks for.
            ValueError: if there are not as many pictures, or gates, as prompts.
        """
        of = asked(self.prompts, concepts, self.domains, self.neutral)
        seen = {name: judge(pictures) for name, judge in self.judges.items()}
        vectors = None if self.embed is None or self.vectors is None else (self.vectors, self.embed(pictures))
        hurt = harm(self.pictures, pictures, of.retain, vectors)
        return Outcome(
            method,
            tuple(concepts),
            {name: counts(of, told) for name, told in seen.items()},
            {name: counts(of, told) for name, told in self.seen.items()},
            hurt,
            {} if opened is None else gate_counts(of, np.asarray(opened, bool), hurt.tallies["identical"].total > 0),
            overhead,
            list(pictures) if keep else [],
        )


def draw(
    pipeline: AdaptedPipeline,
    prompts: Sequence[Prompt],
    batch: int = 8,
    after: Callable[[int], object] | None = None,
    **arguments: Any,
) -> list[Image.Image]:
    """Pictures of prompts, each from its own seed.

    Args:
        pipeline: that draws them.
        prompts: of which.
        batch: pictures made at a time; the bits of a picture may depend on it, so compare equal ones.
        after: called with the number of pictures done.
        arguments: of `AdaptedPipeline.generate`, e.g. `steps=20`.
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        with quiet(pipeline.pipe):
            pictures += pipeline.generate(
                [one.text for one in part], [one.seed for one in part], **{"output_type": "pil", **arguments}
            )
        if after is not None:
            after(len(part))
    return pictures
