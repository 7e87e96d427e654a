"""Which latents tell prompts with a concept from prompts without it: one published selection after another.

With `m` the mean code of a latent over the tokens of a prompt, `M` its largest, `r` the share of tokens in which it
fires, `q` the mean square, all at one noise level, bars for means over prompts, and the signs + and - for prompts with
and without the concept:

| name | score of a latent | source |
|---|---|---|
| `timestep_contrast` | `m+ / sum(m+) - m- / sum(m-)` | SAeUron (Cywinski & Deja 2025) |
| `set_difference` | mean of M over + prompts that hold it in their top K; no - prompt does | ItD (Tian et al. 2025) |
| `fisher_ratio` | `q+`, if `q+ / q-` is among the 5 % largest | DSG (Muhamed et al. 2025) |
| `frequency_ratio` | `r+ - r-`, if `m+ / m-` is at least 3 | CRISP (Ashuach et al. 2025) |
| `density` | `r+`, if `r-` is below 0.01 | Farrell et al. 2024 |
| `mean_difference` | `m+ - m-` | SAUCE (2025) |
| `auroc` | P(M+ > M-) + P(M+ = M-) / 2 | `visae.select.scores` |
| `f1` | best F1 of `M > threshold` | `visae.select.scores` |
| `entropy_contrast` | `H^a m+ / sum(m+) - m- / sum(m-)`, H evenness of m over + | ReasonScore (Galichin et al. 2025) |
| `probe` | coefficient of m / std(m) in a logistic regression of + against - | scikit-learn |
| `text_similarity` | correlation over prompts of m with the likeness of their texts to the concept's | search by text |
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visae.registry import Registry
from visae.select.scores import SCORES, Columns
from visae.select.statistics import PromptStatistics, Table

Contrast = Callable[..., Tensor]
"""`contrast(target, retain, **options) -> [S, columns]` float32: larger is better, -inf rules a latent out."""

CONTRASTS: Registry[Contrast] = Registry("contrast")
"""Name -> contrast."""

Embed = Callable[[Sequence[str]], Tensor]
"""From texts to vectors `[n, e]`."""

_TINY = 1e-8


@CONTRASTS.register("timestep_contrast")
def timestep_contrast(target: PromptStatistics, retain: PromptStatistics) -> Tensor:
    """`m+ / (sum(m+) + 1e-8) - m- / (sum(m-) + 1e-8)`, sums over all latents: SAeUron's score, level by level."""
    return _shares(target) - _shares(retain)


@CONTRASTS.register("set_difference")
def set_difference(target: PromptStatistics, retain: PromptStatistics, *, kept: int = 128) -> Tensor:
    """ItD's set: latents among the `kept` largest (by M) of a target prompt, and of no retain prompt.

    The set has no order of its own; here the latents of which target prompts hold more come first: the score is the
    mean over target prompts of M where the prompt holds the latent, else 0.
    """
    scores = []
    for s in range(len(target.levels)):
        here = target.one_level("largest", s)
        score = torch.where(_held(here, kept), here, 0.0).mean(0)
        elsewhere = _held(retain.one_level("largest", s), kept).any(0)
        scores.append(score.masked_fill(elsewhere | (score == 0), -torch.inf))
    return torch.stack(scores)


@CONTRASTS.register("fisher_ratio")
def fisher_ratio(
    target: PromptStatistics, retain: PromptStatistics, *, quantile: float = 0.95, released: bool = False
) -> Tensor:
    """DSG's selection: by `q+` among latents whose `q+ / (q- + 1e-21)` reaches the quantile of the latents that fire.

    q is the mean square of a code, which approximates the Fisher information of its direction.

    Args:
        target: prompts with the concept.
        retain: prompts without it.
        quantile: of the ratio.
        released: as the released code, which squares the mean instead.
    """
    table: Table = "mean" if released else "rms"
    here, elsewhere = (_mean_square(of, table, released) for of in (target, retain))
    ratio = (here.double() / (elsewhere.double() + 1e-21)).numpy()
    out = torch.full_like(here, -torch.inf)
    for s in range(len(out)):
        fires = ((here[s] > 0) | (elsewhere[s] > 0)).numpy()
        if fires.any():
            reached = torch.from_numpy(fires & (ratio[s] >= np.quantile(ratio[s][fires], quantile)))
            out[s] = torch.where(reached, here[s], out[s])
    return out


@CONTRASTS.register("frequency_ratio")
def frequency_ratio(target: PromptStatistics, retain: PromptStatistics, *, least: float = 3.0) -> Tensor:
    """CRISP's selection: by `r+ - r-` among latents whose mean code is `least` times larger with the concept."""
    ratio = target.average("mean") / (retain.average("mean") + _TINY)
    return (target.average("fired") - retain.average("fired")).masked_fill(ratio < least, -torch.inf)


@CONTRASTS.register("density")
def density(target: PromptStatistics, retain: PromptStatistics, *, limit: float = 0.01) -> Tensor:
    """By the share of target tokens in which a latent fires, among those that fire in less than `limit` of retain ones.

    After Farrell et al., "Applying sparse autoencoders to unlearn knowledge in language models" (2024).
    """
    return target.average("fired").masked_fill(retain.average("fired") >= limit, -torch.inf)


@CONTRASTS.register("mean_difference")
def mean_difference(target: PromptStatistics, retain: PromptStatistics) -> Tensor:
    """`m+ - m-`, in the codes' unit: latents with short directions gain by it, unless norms are folded."""
    return target.average("mean") - retain.average("mean")


@CONTRASTS.register("auroc")
def auroc(target: PromptStatistics, retain: PromptStatistics, *, of: Literal["largest", "mean"] = "largest") -> Tensor:
    """How well a latent ranks target before retain prompts, by its largest code or by its mean; ties are exact."""
    return _scored("auroc", target, retain, of)


@CONTRASTS.register("f1")
def f1(target: PromptStatistics, retain: PromptStatistics, *, of: Literal["largest", "mean"] = "largest") -> Tensor:
    """Best F1 of calling a prompt one with the concept, over all thresholds on its largest code or on its mean."""
    return _scored("f1", target, retain, of)


@CONTRASTS.register("entropy_contrast")
def entropy_contrast(target: PromptStatistics, retain: PromptStatistics, *, alpha: float = 0.7) -> Tensor:
    """`H^alpha m+ / sum(m+) - m- / sum(m-)`: latents that only some of the target prompts share fall back.

    H is the entropy of a latent's mean codes over the target prompts, brought to a sum of 1, divided by the logarithm
    of their number: 1 where all prompts fire it alike, 0 where one does. (ReasonScore takes it over the words that
    stand for the concept.) Of a single prompt it is 1.
    """
    n = len(target)
    if n == 1:
        return timestep_contrast(target, retain)
    even = []
    for s in range(len(target.levels)):
        means = target.one_level("mean", s)
        share = means / (means.sum(0) + _TINY)
        even.append(-torch.xlogy(share, share).sum(0) / np.log(n))
    return torch.stack(even).clamp(0, 1) ** alpha * _shares(target) - _shares(retain)


@CONTRASTS.register("probe")
def probe(target: PromptStatistics, retain: PromptStatistics, *, strength: float = 1.0) -> Tensor:
    """Coefficients of a logistic regression of target against retain prompts on m, divided by its deviation.

    Both kinds of prompt weigh as much; latents that never fire have the coefficient 0.

    Args:
        target: prompts with the concept.
        retain: prompts without it.
        strength: inverse of the L2 penalty (scikit-learn's C).
    """
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(len(target) + len(retain)) < len(target)
    out = torch.zeros(len(target.levels), target.columns)
    for s in range(len(out)):
        means = torch.cat([target.one_level("mean", s), retain.one_level("mean", s)])
        deviation = means.std(0, correction=0)
        varies = deviation > 0
        if varies.any():
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
            model.fit(((means - means.mean(0)) / deviation)[:, varies].numpy(), labels)
            out[s, varies] = torch.from_numpy(model.coef_[0]).float()
    return out


@CONTRASTS.register("text_similarity")
def text_similarity(
    target: PromptStatistics, retain: PromptStatistics, *, text: str | None = None, embed: Embed | None = None
) -> Tensor:
    """Correlation, over all prompts, of m with the cosine between the prompt's text and the concept's.

    Prompts stand between the two, so that latents of any site compare with a text, those of a denoiser too.

    Args:
        target: prompts with the concept.
        retain: prompts without it.
        text: of the concept; the mean vector of the target prompts less that of the others if not given.
        embed: brings texts to vectors; None takes their words, weighted by how rare they are (TF-IDF).
    """
    texts = [one.text for one in (*target.prompts, *retain.prompts)]
    vectors = (embed or _words)([*texts, *([] if text is None else [text])]).float()
    known, n = vectors[: len(texts)], len(target)
    concept = known[:n].mean(0) - known[n:].mean(0) if text is None else vectors[-1]
    alike = torch.cosine_similarity(known, concept[None], dim=1)
    alike = alike - alike.mean()
    out = []
    for s in range(len(target.levels)):
        means = torch.cat([target.one_level("mean", s), retain.one_level("mean", s)])
        means = means - means.mean(0)
        out.append(alike @ means / (alike.norm() * means.norm(dim=0) + _TINY))
    return torch.stack(out)


def _words(texts: Sequence[str]) -> Tensor:
    from sklearn.feature_extraction.text import TfidfVectorizer

    found: Any = TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts)
    return torch.from_numpy(found.toarray())


def _shares(of: PromptStatistics) -> Tensor:
    """A latent's share of all latents' mean codes, `[S, columns]`."""
    means = of.average("mean")
    return means / (means.sum(1, keepdim=True) + _TINY)


def _held(largest: Tensor, kept: int) -> Tensor:
    """Which latents `[P, columns]` are among the `kept` largest of each prompt, and fire."""
    places = largest.topk(min(kept, largest.shape[1]), dim=1).indices
    return torch.zeros_like(largest, dtype=torch.bool).scatter(1, places, True) & (largest > 0)


def _mean_square(of: PromptStatistics, table: Table, released: bool) -> Tensor:
    if released:
        return of.average(table).square()
    return torch.stack([of.one_level(table, s).square().mean(0) for s in range(len(of.levels))])


def _scored(name: str, target: PromptStatistics, retain: PromptStatistics, of: Table) -> Tensor:
    """A score of `visae.select.scores` on prompts, level by level."""
    shows = np.arange(len(target) + len(retain)) < len(target)
    out = []
    for s in range(len(target.levels)):
        values = torch.cat([target.one_level(of, s), retain.one_level(of, s)]).double().numpy()
        out.append(torch.from_numpy(SCORES[name](Columns.dense(values), shows, len(target), len(retain))).float())
    return torch.stack(out)
