"""`kernels.cpp`, built by the machine's own compiler on first use and called through ctypes."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from visae.ops.kernels.base import Part
from visae.ops.sparse import Pattern

SOURCE = Path(__file__).with_name("kernels.cpp")
# not -ffast-math: linked into a shared library it would flush denormals to zero in the whole process
FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-std=c++17",
)  # fmt: skip


class _Part(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ends", "rows", "factors", "inputs")]


def _cache() -> Path:
    """Where built kernels are kept: the user's cache, or a folder of this process where that cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visae"
    try:
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="visae-kernels-"))


def _processor() -> str:
    """What `-march=native` means here, so that a home folder shared by machines holds one library for each."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{platform.machine()} {platform.system()} {flags}"


def build(compiler: str | None = None) -> Path:
    """Builds the library unless it is there already.

    Args:
        compiler: a C++ compiler with OpenMP; None takes `$CXX`, else `g++` or `clang++`.

    Returns:
        The shared library.

    Raises:
        RuntimeError: if there is no compiler, or it fails; the text says which.
    """
    found = compiler or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found or not shutil.which(found):
        raise RuntimeError(f"no C++ compiler ({found or 'looked for $CXX, g++, clang++'})")
    flags = [flag for flag in FLAGS if flag != "-mprefer-vector-width=512" or platform.machine() in ("x86_64", "AMD64")]
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *flags, found, _processor()]).encode()).hexdigest()[:16]
    library = _cache() / f"kernels-{key}.so"
    if library.exists():
        return library
    partial = library.with_name(f".{library.name}.{os.getpid()}.tmp")
    done = subprocess.run([found, *flags, str(SOURCE), "-o", str(partial)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{found} could not build {SOURCE.name}: {done.stderr.strip().splitlines()[:1]}")
    os.replace(partial, library)
    return library


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class Native:
    """See `visae.ops.kernels.base.Kernels`.

    Raises:
        RuntimeError: see `build`.
        OSError: if the library cannot be loaded.
    """

    name = "native"

    def __init__(self, compiler: str | None = None):
        self._lib = ctypes.CDLL(str(build(compiler)))
        self._lib.visae_top_of_batch.restype = ctypes.c_int64

    def _call(self, name: str, *arguments: object) -> int:
        """Calls a function of the library; integers go as int64, numbers of threads and flags as its last and own."""
        made = [
            _at(a) if isinstance(a, Tensor) or a is None
            else ctypes.c_int(a) if isinstance(a, bool)
            else ctypes.c_int64(a) if isinstance(a, int)
            else ctypes.c_float(a) if isinstance(a, float)
            else a
            for a in arguments
        ]  # fmt: skip
        return getattr(self._lib, f"visae_{name}")(*made, ctypes.c_int(torch.get_num_threads()))  # type: ignore[no-any-return]

    def top(self, pre: Tensor, bias: Tensor, k: int, by_size: bool) -> Tensor:
        """See `Kernels`."""
        n, width = pre.shape
        out = torch.empty(n, k, dtype=torch.int64)
        self._call("top", pre, bias, pre.dtype == torch.bfloat16, by_size, n, width, k, out)
        return out

    def top_of_batch(self, pre: Tensor, bias: Tensor, count: int, by_size: bool) -> Pattern:
        """See `Kernels`."""
        n, width = pre.shape
        columns, offsets = torch.empty(count, dtype=torch.int64), torch.empty(n + 1, dtype=torch.int64)
        half = pre.dtype == torch.bfloat16
        found = self._call("top_of_batch", pre, bias, half, by_size, n, width, count, columns, offsets)
        return Pattern(columns[:found], offsets, width)

    def above(self, pre: Tensor, bias: Tensor, threshold: Tensor) -> Pattern:
        """See `Kernels`."""
        n, width = pre.shape
        offsets, half = torch.zeros(n + 1, dtype=torch.int64), pre.dtype == torch.bfloat16
        self._call("above", pre, bias, threshold, half, n, width, offsets, None)
        offsets = offsets.cumsum(0)
        columns = torch.empty(int(offsets[-1]), dtype=torch.int64)
        self._call("above", pre, bias, threshold, half, n, width, offsets, columns)
        return Pattern(columns, offsets, width)

    def dots(self, left: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        """See `Kernels`."""
        out = torch.empty(pattern.columns.shape[0])
        self._call("dots", left, table, pattern.columns, pattern.offsets, pattern.n_rows, left.shape[1], out)
        return out

    def reconstruct(
        self,
        u: Tensor,
        values: Tensor,
        pattern: Pattern,
        level: Tensor | None,
        shares: list[float],
        atoms: Tensor,
        bias: Tensor,
        errors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        n, d = u.shape
        recon, to_values, losses = torch.empty_like(u), torch.empty_like(values), torch.empty(n)
        self._call(
            "reconstruct", u, values, pattern.columns, pattern.offsets, level, torch.tensor(shares), atoms, bias,
            n, d, len(shares), recon, errors, to_values, losses,
        )  # fmt: skip
        return recon, errors, to_values, losses

    def transpose(self, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        m, width = pattern.columns.shape[0], pattern.n_latents
        order, rows, ends = (torch.empty(size, dtype=torch.int32) for size in (m, m, width + 1))
        self._call("transpose", pattern.columns, pattern.offsets, pattern.n_rows, width, order, rows, ends)
        return order, rows, ends

    def update(
        self,
        weight: Tensor,
        first: Tensor,
        second: Tensor,
        parts: list[Part],
        dense: Tensor | None,
        copy: Tensor | None,
        unit: bool,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        count: int,
    ) -> None:
        """See `Kernels`."""
        made = [_Part(p.ends.data_ptr(), p.rows.data_ptr(), p.factors.data_ptr(), p.inputs.data_ptr()) for p in parts]
        low, high = betas
        self._call(
            "update", weight, first, second, dense, copy, (_Part * len(made))(*made), len(made), *weight.shape, unit,
            lr, low, high, eps, 1 / (1 - low**count), 1 / (1 - high**count),
        )  # fmt: skip
