"""The sparse kernels: encode-select, sparse decode, sparse gradients, fused update.

`Reference` is the oracle (dense, autograd); `Eager` the fast twin of stock torch operations; `Fused` puts compiled
kernels behind it. `make_ops` chooses.
"""

import torch

from visae.ops.base import Ops
from visae.ops.eager import Eager
from visae.ops.fused import Fused
from visae.ops.group import ALONE, Group, Share, randn_like, share, sharing
from visae.ops.kernels import KERNELS, load_kernels, usable_kernels
from visae.ops.nearest import nearest
from visae.ops.nesting import Nesting
from visae.ops.reference import Reference
from visae.ops.rules import Above, BatchTopK, FeatureChoice, GroupMax, Rule, Threshold, TopK
from visae.ops.shared import batch_topk, feature_choice
from visae.ops.sparse import Coded, Dense, Pattern, Ragged, overlap
from visae.ops.stack import Stack
from visae.ops.update import Adam, project_rows, unit_rows
from visae.registry import UnknownName

__all__ = [
    "ALONE", "Above", "Adam", "BatchTopK", "Coded", "Dense", "Eager", "FeatureChoice", "Fused", "Group", "GroupMax",
    "Nesting", "Ops", "Pattern", "Ragged", "Reference", "Rule", "Share", "Stack", "Threshold", "TopK", "batch_topk",
    "fast_precision", "feature_choice", "load_kernels", "make_ops", "nearest", "overlap", "project_rows", "randn_like",
    "share", "sharing", "unit_rows", "usable_kernels",
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


def make_ops(name: str = "auto", precision: str = "fp32", device: torch.device | str = "cpu") -> Ops:
    """A tier of kernels by name.

    Args:
        name: `reference` (dense, autograd), `eager` (stock torch), `native` (C++), `numba`, `triton` (GPUs), or `auto`:
            the fastest that this machine has.
        precision: `fp32` or `bf16`, of the encoder's matrix product.
        device: where the tensors will be.

    Raises:
        UnknownName: for another name, with the nearest known.
        ValueError: for a tier that this machine or device cannot have.
    """
    device = torch.device(device)
    if name == "auto":
        name = next(iter(usable_kernels(device.type)), "eager")
    if name == "reference":
        return Reference()
    if name == "eager":
        return Eager(precision)
    if name not in KERNELS:
        raise UnknownName("tier of kernels", name, ("auto", "reference", "eager", *KERNELS))
    kernels = load_kernels(name) if name in usable_kernels(device.type) else None
    if kernels is None:
        raise ValueError(f"kernels {name!r} do not work on {device.type} here; ops='auto' takes what does")
    return Fused(kernels, precision)
