"""Compiled kernels behind the fused tier, and which of them this machine has."""

import logging
from functools import cache

from visae.ops.kernels.base import Kernels, Part

__all__ = ["KERNELS", "Kernels", "Part", "load_kernels", "usable_kernels"]

KERNELS = {"native": "cpu", "numba": "cpu", "triton": "cuda"}
"""Name to the type of device, fastest first."""
LOG = logging.getLogger("visae")


@cache
def load_kernels(name: str) -> Kernels | None:
    """Kernels by name (`native`, `numba`, `triton`), compiled on first use; None where this machine cannot have them.

    The reason is logged: no compiler, no numba, no GPU.
    """
    try:
        if name == "native":
            from visae.ops.kernels.native import Native

            return Native()
        if name == "triton":
            from visae.ops.kernels.gpu import Triton

            return Triton()
        from visae.ops.kernels.jit import Numba

        return Numba()
    except (ImportError, OSError, RuntimeError) as error:
        LOG.info("kernels %r are not available: %s", name, error)
        return None


def usable_kernels(device: str) -> list[str]:
    """Names of the kernels that work here for a type of device (`cpu`, `cuda`), fastest first."""
    return [name for name, place in KERNELS.items() if place == device and load_kernels(name) is not None]
