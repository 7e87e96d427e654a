"""The words of a concept: which tokens of prompts name it, the latents that know them, and a word to put in place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.select.collecting import tokenizer_of
from visae.select.concept import select_concept
from visae.select.prompt_tokens import PromptTokens, prompt_tokens
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics

FIT_ROUNDS = 20
"""Of the fit of words and places, which is exact after the first where every word stands at every place."""

ROWS = 4096
"""Tokens whose codes are looked at at a time."""


@dataclass(frozen=True, eq=False)
class Words:
    """What names a concept at the input of a text encoder, and what does not.

    Attributes:
        selection: latents that fire at these words and at no others, with thresholds midway; `chosen_on` spells the
            words and the one in their place.
        named: numbers of the concept's words in the vocabulary.
        instead: number of the word that can stand in their place.
        tokens: `[T, d]` that word at every place of a prompt.
        pair: number of the first pair that offers it; -1 where none does.
    """

    selection: Selection
    named: tuple[int, ...]
    instead: int
    tokens: Tensor
    pair: int


@torch.no_grad()
def select_words(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str,
    pairs: Sequence[tuple[str, str]],
    target: PromptStatistics,
    retain: PromptStatistics,
    concept: str = "",
    pair: int = -1,
) -> Words:
    """The words of a concept and the latents that tell them from all others.

    A word names the concept if it stands in the first prompt of a pair, not in the second, and in no retain prompt.
    For each, the latent is taken whose smallest value there exceeds its largest value on retain prompts by the largest
    ratio. The word in their place is, of those that pairs offer (those where one word says it all, if there are any),
    the one that is nearest to the mean of all.

    Meant for the input of a text encoder, where a token is a word at a place (`x = word + place`) and attention has not
    yet carried it to others.

    Args:
        pipeline: with the text encoder.
        sae: the dictionary of the site.
        site: of the text encoder, its input best.
        pairs: prompts with the concept, and each the same with something else in its place.
        target: statistics of prompts with the concept, those of the pairs among them.
        retain: of prompts without.
        concept: its name.
        pair: number of the one that offers the word to put in place, so that several text encoders get the same; -1
            lets all.

    Raises:
        ValueError: if no word belongs to the concept alone.
    """
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    of = {name: prompt_tokens(pipeline, site, texts) for name, texts in (
        ("with", first), ("without", second), ("target", [one.text for one in target.prompts]),
        ("retain", [one.text for one in retain.prompts]))}  # fmt: skip
    spoken = {name: set(some.ids[some.content].tolist()) for name, some in of.items()}
    named = set().union(*_only(of["with"], of["without"])) - spoken["retain"]
    if not named:
        raise ValueError(
            f"no word belongs to {concept or 'the concept'} alone: every word of its prompts stands in retain prompts, "
            "too, or in the other prompt of its pair"
        )
    scores, limits = _margins(sae, of, named)
    chosen = select_concept(target, retain, scores=scores[None], top_m=int((scores > -torch.inf).sum()),
                            score="word_margin", concept=concept)  # fmt: skip
    words, places = word_vectors(list(of.values()))
    offers = [sorted(some - spoken["target"]) for some in _only(of["without"], of["with"])]
    # Of "corner piece", neither word says on its own what both say.
    alone = [number for number, some in enumerate(offers) if len(some) == 1] or list(range(len(offers)))
    others = sorted({word for number in alone for word in offers[number]}) or sorted(
        spoken["retain"] - spoken["target"]
    )
    offered = (offers[pair] if pair >= 0 else []) or others
    if not offered:
        raise ValueError("no word is left to stand in the concept's place: give retain prompts with other words")
    vectors = torch.stack([words[word] for word in offered])
    instead = offered[int((vectors - vectors.mean(0)).square().sum(1).argmin())]
    told = {"words": _spelled(pipeline, site, sorted(named)), "instead": _spelled(pipeline, site, [instead])[0]}
    selection = replace(
        chosen, thresholds=tuple(float(limits[one]) for one in chosen.latents), chosen_on=chosen.chosen_on | told
    )
    place = next((number for number in alone if instead in offers[number]), -1)
    return Words(selection, tuple(sorted(named)), instead, words[instead] + places, place)


def _spelled(pipeline: AdaptedPipeline, site: str, numbers: Sequence[int]) -> list[str]:
    """Words of the vocabulary as people write them."""
    tokenizer = tokenizer_of(pipeline.pipe, pipeline.site(site).path)
    return [tokenizer.decode([number]).strip() for number in numbers]


def _only(some: PromptTokens, others: PromptTokens) -> list[set[int]]:
    """For each prompt, the words that it has and its partner has not."""
    sides = zip(some.ids, some.content, others.ids, others.content, strict=True)
    return [set(mine[kept].tolist()) - set(other[left].tolist()) for mine, kept, other, left in sides]


def _margins(sae: Dictionary, of: dict[str, PromptTokens], named: set[int]) -> tuple[Tensor, Tensor]:
    """Scores `[F]`, -inf for latents that are not taken, and thresholds `[F]`."""
    sides = [of["with"], of["target"]]
    ids = torch.cat([one.ids[one.content] for one in sides])
    x = torch.cat([one.x[one.content] for one in sides])
    other = torch.cat([one.x[one.content] for one in (of["without"], of["retain"])])
    others = torch.stack([_values(sae, part).amax(0) for part in other.split(ROWS)]).amax(0)
    scores, lowest = torch.full((sae.n_latents,), -torch.inf), torch.full((sae.n_latents,), torch.inf)
    for word in sorted(named):
        low = _values(sae, x[ids == word]).amin(0)
        ratio = low / (low + others).clamp(min=1e-12)
        best = int(ratio.argmax())
        scores[best] = max(float(scores[best]), float(ratio[best]))
        lowest[best] = torch.minimum(lowest[best], low[best])
    return scores, torch.maximum((others + lowest) / 2, others)


def _values(sae: Dictionary, x: Tensor) -> Tensor:
    """Codes `[n, F]` of tokens `[n, d]`."""
    return sae.encode(x.to(sae.mean.device)).to_dense().cpu()


def word_vectors(seen: Sequence[PromptTokens]) -> tuple[dict[int, Tensor], Tensor]:
    """Least squares fit of `x = word + place` to the tokens of prompts.

    Args:
        seen: tokens of prompts, all padded to T places.

    Returns:
        Vectors `[d]` of words by number, and `[T, d]` of places; where no word was seen, the mean of the others.
    """
    ids = torch.cat([one.ids[one.content] for one in seen])
    x = torch.cat([one.x[one.content] for one in seen])
    t = seen[0].ids.shape[1]
    place = torch.cat([torch.arange(t).expand_as(one.ids)[one.content] for one in seen])
    known, word = ids.unique(return_inverse=True)
    words, places = x.new_zeros(len(known), x.shape[1]), x.new_zeros(t, x.shape[1])
    for _ in range(FIT_ROUNDS):
        words = _means(x - places[place], word, len(known))
        places = _means(x - words[word], place, t)
    somewhere = torch.bincount(place, minlength=t) > 0
    places[~somewhere] = places[somewhere].mean(0)
    return dict(zip(known.tolist(), words, strict=True)), places


def _means(x: Tensor, group: Tensor, n: int) -> Tensor:
    """Mean of the rows of each of n groups, 0 where it has none."""
    counts = torch.bincount(group, minlength=n).clamp(min=1)
    return x.new_zeros(n, x.shape[1]).index_add_(0, group, x) / counts[:, None]
