"""The sparse kernels: encode-select, sparse decode, sparse gradients, fused update.

`Reference` is the oracle (dense, autograd); `Eager` is the fast twin of stock torch operations. `make_ops` chooses.
"""

import torch

from visae.ops.base import Ops
from visae.ops.eager import Eager
from visae.ops.group import ALONE, Group, Share, randn_like, share, sharing
from visae.ops.nesting import Nesting
from visae.ops.reference import Reference
from visae.ops.rules import BatchTopK, FeatureChoice, Rule, Threshold, TopK
from visae.ops.shared import batch_topk, feature_choice
from visae.ops.sparse import Coded, Dense, Pattern, Ragged
from visae.ops.stack import Stack
from visae.ops.update import Adam, project_rows, unit_rows
from visae.registry import UnknownName

__all__ = [
    "ALONE", "Adam", "BatchTopK", "Coded", "Dense", "Eager", "FeatureChoice", "Group", "Nesting", "Ops", "Pattern",
    "Ragged", "Reference", "Rule", "Share", "Stack", "Threshold", "TopK", "batch_topk", "fast_precision",
    "feature_choice", "make_ops", "project_rows", "randn_like", "share", "sharing", "unit_rows",
]  # fmt: skip


def fast_precision(device: torch.device | str = "cpu") -> str:
    """`bf16` where the device multiplies bfloat16 in hardware, else `fp32`; asks the device, measures nothing."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if kind == "cpu":
        able = any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))
        return "bf16" if able else "fp32"
    return "fp32"


def make_ops(name: str = "eager", precision: str = "fp32") -> Ops:
    """A tier of kernels by name: `reference` or `eager`.

    Raises:
        UnknownName: for another name, with the nearest known.
    """
    if name == "reference":
        return Reference()
    if name == "eager":
        return Eager(precision)
    raise UnknownName("tier of kernels", name, ("reference", "eager"))
