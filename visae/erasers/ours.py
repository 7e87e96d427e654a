"""visae's own recipe on dictionaries: the latents that tell the concept best, turned around where an image shows it."""

from collections.abc import Sequence
from dataclasses import dataclass

from visae.edit import Edit, StrengthGate, scale
from visae.erasers.base import METHODS
from visae.erasers.codes import CodeMethod, Known
from visae.select.selection import Selection


@dataclass(frozen=True)
class Ours(CodeMethod):
    """`f' = factor f` on both branches, behind a gate that stays shut for images without the concept.

    Latents are those of the best F1 on all noise levels together. The gate sums their values in a token, each divided
    by its mean largest value on target prompts, and opens for an image from the step on at which a token exceeds what
    the given share of retain prompts reach.

    Attributes:
        factor: below 0 to push away.
        false_positives: share of the retain prompts that may open the gate.
    """

    score: str = "f1"
    top_m: int = 2
    factor: float = -4.0
    false_positives: float = 0.02

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        tops = known.target.largest[:, :, list(selection.latents)].float().amax(1).mean(0)
        gate = StrengthGate(weights=tuple((1 / tops.clamp(min=1e-6)).tolist()))
        edit = scale(selection.latents, self.factor)
        return (known.gated(edit.whether(gate), self.false_positives),)


METHODS.register("ours")(Ours())
