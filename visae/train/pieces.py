"""Tensors that no process holds whole, written a few rows at a time into an ordinary safetensors file."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of dtypes in safetensors files."""
VALUES = 2**24
"""Values that are held at a time."""


@dataclass(frozen=True)
class Pieces:
    """A tensor that comes a few rows at a time.

    Attributes:
        shape: of the whole.
        dtype: of the values.
        rows: yields consecutive rows, on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, tensor: Tensor) -> "Pieces":
        """A tensor that is there."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: (part.cpu() for part in few_rows(tensor.detach())))


def few_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    """Consecutive rows of a tensor, as many at a time as `VALUES` allows; a scalar as one row."""
    rows = tensor if tensor.ndim else tensor[None]
    return rows.split(max(1, VALUES // max(1, rows[:1].numel())))


def in_order(tensors: Mapping[str, Tensor | Pieces]) -> list[str]:
    """Names in the order in which they are written: wide dtypes first, so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def fill(target: Tensor, tensor: Tensor | Pieces) -> None:
    """Copies a tensor into another, in place."""
    at, rows = 0, target if target.ndim else target[None]
    for part in (tensor if isinstance(tensor, Pieces) else Pieces.of(tensor)).rows():
        rows[at : at + len(part)] = part
        at += len(part)


def write(path: Path, tensors: Mapping[str, Tensor | Pieces]) -> None:
    """Writes a safetensors file (its length, a header in JSON, the values); see huggingface.co/docs/safetensors.

    Raises:
        OSError: if the disk is full.
    """
    whole = {name: t if isinstance(t, Pieces) else Pieces.of(t) for name, t in tensors.items()}
    header, at = {}, 0
    for name in in_order(whole):
        shape, dtype = whole[name].shape, whole[name].dtype
        end = at + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            for rows in whole[name].rows():
                file.write(rows.contiguous().view(-1).view(torch.uint8).numpy().data)
