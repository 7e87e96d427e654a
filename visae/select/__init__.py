"""From a concept to the latents that mean it."""

from visae.select.attribution import gradient_attribution
from visae.select.collecting import collect_statistics
from visae.select.concept import select_concept
from visae.select.contrast import CONTRASTS
from visae.select.labels import LabelScores, Measured, best_latents, label_scores, measure
from visae.select.scores import SCORES
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics
from visae.select.steering import prompt_direction
from visae.select.words import Words, select_words

__all__ = [
    "CONTRASTS",
    "SCORES",
    "LabelScores",
    "Measured",
    "PromptStatistics",
    "Selection",
    "Words",
    "gradient_attribution",
    "best_latents",
    "collect_statistics",
    "label_scores",
    "measure",
    "prompt_direction",
    "select_concept",
    "select_words",
]
