"""Penalties: further terms of the loss, each a function of one training pass."""

from visae.sae.penalties.base import Pass, Penalty
from visae.sae.penalties.contrast import Contrast, Other
from visae.sae.penalties.geometry import Orthogonal
from visae.sae.penalties.mutual import Mutual
from visae.sae.penalties.revival import AuxK, AuxZipf, Lift, MultiTopK
from visae.sae.penalties.sparsity import KL, L0, L1, GateL1, GateRecon, PAnneal, SameLength, Tanh, TargetL0

__all__ = [
    "KL", "L0", "L1", "AuxK", "AuxZipf", "Contrast", "GateL1", "GateRecon", "Lift", "MultiTopK", "Mutual", "Orthogonal",
    "Other", "PAnneal", "Pass", "Penalty", "SameLength", "Tanh", "TargetL0",
]  # fmt: skip
