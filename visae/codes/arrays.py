"""Flat arrays on disk: raw little-endian files, memory-mapped, named by what is in them; nothing is ever unpickled."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_BLOCK = 1 << 22


@dataclass(frozen=True)
class ArrayFile:
    """One array in a folder.

    Attributes:
        file: name in the folder, `name.<first 12 hex of sha256>.bin`.
        dtype: numpy name such as `int32`; always little-endian.
        shape: lengths of the axes, row-major.
        sha256: of the bytes, in hex.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def open(self, folder: Path) -> np.ndarray:
        """The array, mapped read-only.

        Raises:
            FileNotFoundError: if the file is gone.
            ValueError: if its size is not what the index says.
        """
        path = folder / self.file
        expected = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: this table is incomplete, build it again")
        if path.stat().st_size != expected:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, expected {expected}: it was cut off, build it again"
            )
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if expected == 0:  # an empty file cannot be mapped
            return np.empty(self.shape, dtype)
        return np.memmap(path, dtype, "r", shape=self.shape)

    def check(self, folder: Path) -> None:
        """Reads the whole file.

        Raises:
            ValueError: if the bytes are not those that were written.
        """
        if (found := _sha256(folder / self.file)) != self.sha256:
            raise ValueError(
                f"{folder / self.file} has sha256 {found[:12]}..., expected {self.sha256[:12]}...: build it again"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ArrayFile":
        """Reverse of `to_dict`."""
        return cls(**{**data, "shape": tuple(data["shape"])})


class ArrayWriter:
    """Writes one array piece by piece, then names its file after its content.

    Args:
        folder: where the file goes.
        name: of the array.
        dtype: numpy dtype; every piece is cast to it.
        columns: length of the last axis for a two-dimensional array, None for a flat one.
    """

    def __init__(self, folder: Path, name: str, dtype: Any, columns: int | None = None):
        self.folder, self.name, self.columns = folder, name, columns
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.path = folder / f"{name}.partial"
        self.length = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO = self.path.open("wb")

    def append(self, values: np.ndarray) -> None:
        """Adds a piece at the end."""
        data = np.ascontiguousarray(values, dtype=self.dtype).data.cast("B") if values.size else b""
        self._hash.update(data)
        self._file.write(data)
        self.length += len(values)

    def close(self) -> ArrayFile:
        """Finishes the file and tells how to open it."""
        self._file.close()
        shape = (self.length,) if self.columns is None else (self.length, self.columns)
        return _named(self.path, self.name, self.dtype, shape, self._hash.hexdigest())


def write_array(folder: Path, name: str, values: np.ndarray) -> ArrayFile:
    """Writes a whole array at once."""
    writer = ArrayWriter(folder, name, values.dtype, values.shape[1] if values.ndim == 2 else None)
    writer.append(values)
    return writer.close()


def adopt(folder: Path, name: str, values: np.memmap) -> ArrayFile:
    """Takes over a file that was filled in place through a writable map of `name.partial`."""
    values.flush()
    path = folder / f"{name}.partial"
    return _named(path, name, values.dtype, values.shape, _sha256(path))


def _named(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...], digest: str) -> ArrayFile:
    final = f"{name}.{digest[:12]}.bin"
    path.rename(path.with_name(final))
    return ArrayFile(final, np.dtype(dtype).newbyteorder("=").name, shape, digest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
