"""Metrics of dictionaries, one file per family; definitions are in the docstrings."""

from visae.evaluate.core import Encodes, Evaluation, Metrics, evaluate_sae
from visae.evaluate.stability import Partners, Stability, chance, partners, stability

__all__ = [
    "Encodes", "Evaluation", "Metrics", "Partners", "Stability", "chance", "evaluate_sae", "partners", "stability",
]  # fmt: skip
