"""Metrics of dictionaries, one file per family; definitions are in the docstrings."""

from visae.evaluate.core import Encodes, Metrics, evaluate_sae

__all__ = ["Encodes", "Metrics", "evaluate_sae"]
