"""From the statistics of prompts to a `Selection`: the best latents by a score, and the evidence that edits need."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visae.select.contrast import CONTRASTS
from visae.select.scores import Columns, best_cut
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics, same_levels


class NoLatent(ValueError):
    """By a score, no latent of the dictionary means the concept."""


def select_concept(
    target: PromptStatistics,
    retain: PromptStatistics,
    *,
    score: str = "timestep_contrast",
    top_m: int = 2,
    per_level: bool = True,
    concept: str = "",
    sigmas: tuple[float, float] | None = None,
    scores: Tensor | None = None,
    **options: Any,
) -> Selection:
    """The latents that mean a concept, by prompts that ask for it and prompts that do not.

    Latents that do not fire on the target prompts are never taken, nor those that the score rules out (-inf). Of equal
    scores the one with the larger difference of mean codes wins.

    Args:
        target: statistics of prompts with the concept.
        retain: statistics of prompts without it, of the same dictionary, site and run.
        score: a name of `CONTRASTS`; or what `scores` are.
        top_m: latents at every noise level, or in all.
        per_level: choose at every noise level for itself; False chooses once, on all levels pooled.
        concept: its name, `factor=value` or a plain word.
        sigmas: lowest and highest noise level that count; None takes all.
        scores: `[S, columns]` scores found elsewhere (see `visae.select.attribution`), a row for every level of the
            target's statistics.
        **options: of the score.

    Returns:
        The selection with its evidence, over all levels that count. Its latents are those of any level, best first, and
        its scores each latent's best. Thresholds are those of the best F1 that "any token exceeds it" reaches in
        telling target from retain prompts.

    Raises:
        UnknownName: for a score that does not exist.
        ValueError: if the statistics do not belong together, or `top_m` is below 1.
        NoLatent: if no latent is left to take.

    Warns:
        UserWarning: if the coverage is below 0.9.

    Example:
        >>> run = Collection.from_dict(sae.card.sampling)
        >>> whole = collect_statistics(pipeline, sae, sae.card.site["name"], run, prompts, "statistics")
        >>> print(select_concept(*whole.split("shape", "star"), concept="shape=star"))
    """
    _check(target, retain, top_m)
    if scores is not None:
        _check_scores(scores, target)
        keep = [s for s, level in enumerate(target.levels) if sigmas is None or sigmas[0] <= level <= sigmas[1]]
        scores = scores[keep].float()
    if sigmas is not None:
        target, retain = target.between(*sigmas), retain.between(*sigmas)
    ranked = scores if per_level or scores is None else scores.mean(0, keepdim=True)
    sides = (target, retain) if per_level else (target.pooled(), retain.pooled())
    if ranked is None:
        ranked = CONTRASTS[score](*sides, **options)
    ranked = ranked.masked_fill(sides[0].average("fired") == 0, -torch.inf)
    chosen = _best(ranked, sides[0].average("mean") - sides[1].average("mean"), top_m)
    if not chosen.any():
        raise NoLatent(
            f"no latent is left for {concept or 'the concept'} by {score}: all are silent on the target prompts or "
            "ruled out by those without the concept; give more prompts, other options, or another score"
        )
    best = torch.where(chosen, ranked, -torch.inf).amax(0)
    columns = [int(c) for c in torch.argsort(best, descending=True, stable=True) if best[c] > -torch.inf]
    active = chosen[:, columns].expand(len(target.levels), -1).clone()
    return _described(target, retain, columns, active, best[columns].tolist(), score, concept, sigmas)


def coverage(statistics: PromptStatistics, columns: Sequence[int], active: Tensor) -> float:
    """Share of prompts in which any of m latents fires on any token at a level where it counts (`active [S, m]`)."""
    fires = (statistics.largest[:, :, list(columns)] > 0) & active
    return int(fires.flatten(1).any(1).sum()) / len(statistics)


def evidence(
    target: PromptStatistics, retain: PromptStatistics, columns: Sequence[int], active: Tensor
) -> dict[str, Tensor]:
    """What `Selection.evidence` holds, of m columns, `active [S, m]`."""
    mine = list(columns)
    means = {name: of.average("mean")[:, mine] for name, of in (("target", target), ("retain", retain))}
    n, others = len(target), len(retain)
    both = (means["target"] * n + means["retain"] * others) / (n + others)
    return {"levels": torch.tensor(target.levels), "active": active, **means, "everywhere": both}


def _described(
    target: PromptStatistics,
    retain: PromptStatistics,
    columns: list[int],
    active: Tensor,
    scores: list[float],
    score: str,
    concept: str,
    sigmas: tuple[float, float] | None,
) -> Selection:
    factor, _, value = concept.rpartition("=")
    sides = [target.side(column) for column in columns]
    largest = torch.cat([of.largest[:, :, columns].amax(1) for of in (target, retain)]).double().numpy()
    shows = (torch.arange(len(target) + len(retain)) < len(target)).numpy()
    made = Selection(
        factor=factor or "concept",
        value=value,
        latents=tuple(latent for latent, _ in sides),
        weights=(1.0,) * len(columns),
        thresholds=tuple(best_cut(Columns.dense(largest), shows, len(target), len(retain))[1].tolist()),
        signs=tuple(sign for _, sign in sides),
        score=score,
        scores=tuple(scores),
        chosen_on={
            "fingerprint": target.fingerprint + retain.fingerprint,
            "n": len(target) + len(retain),
            "n_positive": len(target),
            "false_alarms": coverage(retain, columns, active),
        },
        sae=target.identity.get("sae", ""),
        site=target.identity.get("site", {}).get("name", ""),
        sigmas=sigmas,
        coverage=coverage(target, columns, active),
        evidence=evidence(target, retain, columns, active),
    )
    if made.gap:
        warnings.warn(made.gap, stacklevel=3)
    return made


def _best(scores: Tensor, ties: Tensor, top_m: int) -> Tensor:
    """The `top_m` best columns of every row `[S, columns]` as a mask, never one at -inf; of equal ones by `ties`."""
    first = ties.argsort(dim=1, descending=True, stable=True)
    order = first.gather(1, scores.gather(1, first).argsort(dim=1, descending=True, stable=True))
    places = order[:, :top_m]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, places, scores.gather(1, places) > -torch.inf)


def _check(target: PromptStatistics, retain: PromptStatistics, top_m: int) -> None:
    if top_m < 1:
        raise ValueError(f"a selection needs at least one latent, got top_m={top_m}")
    if not len(target) or not len(retain):
        raise ValueError(f"a contrast needs prompts of both kinds, got {len(target)} target and {len(retain)} retain")
    alike = target.identity == retain.identity and target.columns == retain.columns
    if not alike or not same_levels(target.levels, retain.levels):
        raise ValueError(
            f"target and retain prompts were collected differently ({target.columns} columns at {len(target.levels)} "
            f"levels, {retain.columns} at {len(retain.levels)}): collect both with the same dictionary, site and run"
        )


def _check_scores(scores: Tensor, target: PromptStatistics) -> None:
    if tuple(scores.shape) != (len(target.levels), target.columns):
        raise ValueError(
            f"scores must be [{len(target.levels)}, {target.columns}], a row for every noise level of the statistics; "
            f"got {list(scores.shape)}"
        )
