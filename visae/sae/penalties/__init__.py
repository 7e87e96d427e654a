"""Penalties: further terms of the loss, each a function of one training pass."""

from visae.sae.penalties.base import Pass, Penalty
from visae.sae.penalties.geometry import Orthogonal
from visae.sae.penalties.revival import AuxK, MultiTopK
from visae.sae.penalties.sparsity import L1, GateL1, GateRecon, PAnneal, Tanh, TargetL0

__all__ = [
    "L1",
    "AuxK",
    "GateL1",
    "GateRecon",
    "MultiTopK",
    "Orthogonal",
    "PAnneal",
    "Pass",
    "Penalty",
    "Tanh",
    "TargetL0",
]
