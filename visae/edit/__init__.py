"""Edits on codes that go back in where the tokens came from."""

from visae.edit.apply import EditedSite, Editing, edited, edited_sites
from visae.edit.changes import CHANGES, Change
from visae.edit.edits import (
    Edit,
    ablate,
    above_mean,
    active,
    add,
    at_levels,
    clamp,
    keep_only,
    negative_of_mean,
    on_tokens,
    reconstruct,
    replace_tokens,
    scale,
    swap,
    transport,
)
from visae.edit.erasing import Erasing, load_erasure
from visae.edit.gates import GATES, ErrorGate, Gate, ShareGate, StrengthGate
from visae.edit.moment import Moment
from visae.edit.places import PLACES, Place
from visae.edit.surrogate import surrogate

__all__ = [
    "CHANGES", "GATES", "PLACES", "Change", "Edit", "EditedSite", "Editing", "Erasing", "ErrorGate", "Gate", "Moment",
    "Place", "ShareGate", "StrengthGate", "ablate", "above_mean", "active", "add", "at_levels", "clamp", "edited",
    "edited_sites", "keep_only", "load_erasure", "negative_of_mean", "on_tokens", "reconstruct", "replace_tokens",
    "scale", "surrogate", "swap", "transport",
]  # fmt: skip
