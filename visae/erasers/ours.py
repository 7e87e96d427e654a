"""visae's own recipe on dictionaries: the concept's words are replaced, and a guard watches what is drawn."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from visae.edit import Edit, EditedSite, Erasing, ShareGate, StrengthGate, replace_tokens, scale
from visae.erasers.base import METHODS, Part, Request, Tools, Unsuitable
from visae.erasers.codes import CodeMethod, Known
from visae.pipelines import AdaptedPipeline
from visae.select.selection import Selection
from visae.select.words import Words, select_words


@dataclass(frozen=True)
class Ours(CodeMethod):
    """Two lines of defence, each shut to the bit where the concept is not.

    Words: at the input of every text encoder, before attention spreads a word over its prompt, tokens in which the
    latents of the concept's words fire give way to another word at their place (`visae.select.select_words`). Nothing
    of the word gets further, and prompts without it are untouched.

    Guard: what reaches the image by other ways is met in the denoiser: `f' = factor f` on both branches for the latents
    of the best F1 over all noise levels. Its gate sums their values in a token, each divided by its mean largest value
    on target prompts, and opens for an image from the step on at which a token exceeds what the given share of retain
    prompts reach, and half of what is left from there to the median of target prompts: the more concepts are erased at
    once, the fewer prompts are left to learn from what is harmless.

    Attributes:
        factor: of the guard, below 0 to push away.
        false_positives: share of the retain prompts that may open the guard's gate.
        words: whether words are replaced.
        guard: whether the denoiser is guarded.
    """

    score: str = "f1"
    top_m: int = 2
    factor: float = -16.0
    false_positives: float = 0.0
    words: bool = True
    guard: bool = True

    @property
    def needs(self) -> frozenset[Part]:
        """See `Method.needs`."""
        parts: dict[Part, bool] = {"words": self.words, "denoiser": self.guard}
        return frozenset(part for part, used in parts.items() if used)

    def erasing(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> tuple[Erasing, list[Selection]]:
        """See `CodeMethod.erasing`; without a guard, a concept that has no words of its own is refused."""
        sites: list[EditedSite] = []
        selections: list[Selection] = []
        pair = -1
        for site in tools.word_sites if self.words else ():
            known = Known(pipeline, _with_pairs(request), tools, site, tools.sae(site))
            try:
                words = select_words(
                    pipeline, known.sae, site, request.pairs, known.target, known.retain, request.concept, pair
                )  # fmt: skip
            except ValueError as error:
                warnings.warn(f"at {site} no words are replaced: {error}", stacklevel=2)
                continue
            sites.append(EditedSite(known.sae, site, (_replaced(words),)))
            selections.append(words.selection)
            pair = words.pair if pair < 0 else pair
        if self.guard:
            guarded, chosen = super().erasing(pipeline, request, tools)
            sites, selections = [*sites, *guarded.sites], [*selections, *chosen]
        if not sites:
            raise Unsuitable(f"no words of {request.concept!r} can be replaced, and the guard is switched off")
        return Erasing(pipeline, sites, self.about(request)), selections

    def edits(self, known: Known, selection: Selection) -> Sequence[Edit]:
        """The guard."""
        tops = known.target.largest[:, :, list(selection.latents)].float().amax(1).mean(0)
        gate = StrengthGate(weights=tuple((1 / tops.clamp(min=1e-6)).tolist()))
        edit = known.gated(scale(selection.latents, self.factor).whether(gate), self.false_positives)
        assert edit.gate is not None
        middle = (edit.gate.threshold + float(np.median(known.scores(edit, "target")))) / 2
        return (edit.whether(replace(edit.gate, threshold=max(edit.gate.threshold, middle))),)


def _with_pairs(request: Request) -> Request:
    """The request with all prompts that tell which words are its own: those of pairs, and of other concepts."""
    first, second = (tuple(text for pair in request.pairs if (text := pair[side])) for side in (0, 1))
    target = dict.fromkeys((*request.target, *first))
    retain = dict.fromkeys((*request.retain, *second, *request.others))
    return replace(request, target=tuple(target), retain=tuple(retain))


def _replaced(words: Words) -> Edit:
    """The edit that puts another word in the place of the concept's."""
    latents, limits = words.selection.latents, words.selection.thresholds
    edit = replace_tokens(latents, limits, torch.zeros(1), words.tokens[None])
    return edit.who("cond").whether(ShareGate(threshold=0.0, memory="call", above=limits))


METHODS.register("ours")(Ours())
