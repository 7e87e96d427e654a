"""What makes a pipeline unable to draw a concept: every method is one entry of `METHODS`, ours or a baseline."""

from visae.erasers import closed_form, crisp, fine_tuning, guidance, means, negative, ours, published
from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.erase import erase
from visae.erasers.tools import tools_of

__all__ = [
    "METHODS",
    "Erasure",
    "Method",
    "Request",
    "Tools",
    "Unsuitable",
    "closed_form",
    "crisp",
    "erase",
    "fine_tuning",
    "guidance",
    "means",
    "negative",
    "ours",
    "published",
    "tools_of",
]
