"""Metrics of dictionaries, one file per family; definitions are in the docstrings."""

from visae.evaluate.core import Encodes, Metrics, evaluate_sae
from visae.evaluate.stability import Partners, Stability, chance, partners, stability

__all__ = ["Encodes", "Metrics", "Partners", "Stability", "chance", "evaluate_sae", "partners", "stability"]
