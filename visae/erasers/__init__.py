"""What makes a pipeline unable to draw a concept: every method is one entry of `METHODS`, ours or a baseline."""

from visae.erasers import closed_form, fine_tuning, guidance, means, negative
from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable

__all__ = [
    "METHODS",
    "Erasure",
    "Method",
    "Request",
    "Tools",
    "Unsuitable",
    "closed_form",
    "fine_tuning",
    "guidance",
    "means",
    "negative",
]
