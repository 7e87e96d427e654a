"""From a concept to the latents that mean it."""

from visae.select.labels import LabelScores, Measured, best_latents, label_scores, measure
from visae.select.scores import SCORES
from visae.select.selection import Selection

__all__ = ["SCORES", "LabelScores", "Measured", "Selection", "best_latents", "label_scores", "measure"]
