"""Published methods on dictionaries, as their papers mean them; what released code does otherwise is an option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visae.edit import (
    Edit,
    ErrorGate,
    ShareGate,
    above_mean,
    add,
    at_levels,
    clamp,
    negative_of_mean,
    on_tokens,
    reconstruct,
    replace_tokens,
    scale,
)
from visae.erasers.base import METHODS
from visae.erasers.codes import CodeMethod, Known
from visae.select.selection import Selection
from visae.select.steering import prompt_direction


@dataclass(frozen=True)
class SAeUron(CodeMethod):
    """Cywinski & Deja, "SAeUron" (2025): `f' = factor mu f` where f is above its mean over all prompts.

    Latents are selected at every noise level by the contrast of normalised means, and edited on both branches.

    Attributes:
        factor: -1 for styles; the paper searches -1 to -30 for objects.
        released: write back as the released code does, `decode(f') + (recon - x)` in place of `decode(f') +
            (x - recon)`: every token is pushed away from what the dictionary does not explain, edited or not.
    """

    score: str = "timestep_contrast"
    top_m: int = 2
    per_level: bool = True
    factor: float = -1.0
    released: bool = False

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        del known
        facts, latents = selection.evidence, selection.latents
        edit = negative_of_mean(latents, facts["levels"], facts["target"], self.factor).where(
            above_mean(facts["levels"], facts["everywhere"]), at_levels(facts["levels"], facts["active"])
        )
        return (edit, reconstruct(latents[:1]).times(2.0)) if self.released else (edit,)


METHODS.register("saeuron")(SAeUron())


@dataclass(frozen=True)
class ItD(CodeMethod):
    """Tian et al., "Interpret then deactivate" (2025): `f' = factor f` in the text encoder, behind a gate per prompt.

    Selected are latents among the largest of target prompts and of no retain prompt. Where the mean square of what the
    edit changes is at least `margin` times the smallest of any target prompt, the whole sequence but its first token
    gives way to the edited reconstruction; elsewhere nothing changes.

    Attributes:
        factor: below 0 to push away.
        margin: of the gate.
        kept: how many of a prompt's largest latents count.
    """

    score: str = "set_difference"
    top_m: int = 64
    text: bool = True
    factor: float = -8.0
    margin: float = 0.99
    kept: int = 64

    @property
    def score_options(self) -> dict[str, Any]:
        """See `CodeMethod.score_options`."""
        return {"kept": self.kept}

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        rest = torch.ones(known.pipeline.site(known.site).n_tokens)
        rest[0] = 0.0  # the first token of every prompt is alike
        edit = reconstruct(selection.latents, self.factor).where(on_tokens(rest)).who("cond").whether(ErrorGate())
        smallest = float(known.scores(edit, "target").min())
        return (edit.whether(ErrorGate(self.margin * smallest)),)


METHODS.register("itd")(ItD())


@dataclass(frozen=True)
class Steerers(CodeMethod):
    """Kim & Ghadiyaram, "Concept Steerers" (2025): `x + strength D^T z` with z what the concept's own prompt wakes.

    No latents are selected. Added place by place to the prompt's tokens and taken from the negative prompt's.

    Attributes:
        strength: -0.5 to -1 erase.
    """

    score: str = "prompt_direction"
    text: bool = True
    strength: float = -0.5

    def select(self, known: Known) -> Selection:
        """See `CodeMethod.select`."""
        return prompt_direction(known.pipeline, known.sae, known.site, known.request.concept)

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        del known
        return (add(selection.latents, self.strength, selection.evidence["positions"]).who("opposed"),)


METHODS.register("steerers")(Steerers())


@dataclass(frozen=True)
class DSG(CodeMethod):
    """Muhamed et al., "Dynamic SAE guardrails" (2025), on the denoiser: clamp where enough tokens show the concept.

    Latents by Fisher's ratio; an image is edited from the step on at which the share of its tokens in which any of
    them fires exceeds what the given share of retain prompts reach.

    Attributes:
        depth: latents that fire are set to so many times their mean largest value on target prompts, negative.
        false_positives: share of the retain prompts that may open the gate.
    """

    score: str = "fisher_ratio"
    top_m: int = 4
    depth: float = 1.0
    false_positives: float = 0.05

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        facts = selection.evidence
        tops = known.target.largest[:, :, list(selection.latents)].amax(1).mean(0)
        firing = above_mean(facts["levels"], torch.zeros_like(facts["everywhere"]))
        edit = clamp(selection.latents, high=(-self.depth * tops).tolist()).where(firing)
        return (known.gated(edit.whether(ShareGate()), self.false_positives),)


METHODS.register("dsg")(DSG())


@dataclass(frozen=True)
class SAUCE(CodeMethod):
    """Li et al., "SAUCE" (2025), on the denoiser: the latents with the largest mean difference times a factor.

    Attributes:
        factor: 0 ablates, below 0 pushes away.
    """

    score: str = "mean_difference"
    top_m: int = 4
    factor: float = -1.0

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        del known
        return (scale(selection.latents, self.factor),)


METHODS.register("sauce")(SAUCE())


@dataclass(frozen=True)
class PER(CodeMethod):
    """Tokens in which a latent is above its threshold give way to the image's others ("Look but don't touch", 2026).

    Attributes:
        share: of the selection's thresholds.
    """

    score: str = "f1"
    top_m: int = 2
    share: float = 0.5

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """See `CodeMethod.edits`."""
        del known
        return (replace_tokens(selection.latents, [self.share * limit for limit in selection.thresholds]),)


METHODS.register("per")(PER())
