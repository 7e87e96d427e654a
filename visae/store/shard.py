"""One shard: a safetensors file written from front to back and read through a memory map.

The tensors lie in this order: `tokens [n, t, d]`, `notes` (JSON lines, one per item, as bytes), `item [n]`,
`check [blocks]`, `index [n, t]` and, where the data set has masks, `region [n, t]`. `check` holds a checksum of every
block of the tokens, so that any block can be checked alone when it is read. index.json holds a CRC-32 of the header
and one of all that follows the tokens, `check` included: no byte of the file is left out.
"""

import json
import mmap
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visae.store.errors import DamagedShard

_PAGE = 4096
_WORDS = 509
"""Length of a line of 64-bit words in `block_sum`: odd, so that a page written to a wrong place changes the sums."""

CODES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}
NUMPY = {
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
}


def stored_dtype(name: str) -> np.dtype:
    """Numpy dtype of rows on disk; bfloat16, which numpy lacks, is mapped as uint16."""
    return np.dtype(NUMPY[CODES[name]])


def place_dtype(n_tokens: int) -> np.dtype:
    """Smallest of int16 and int32 that holds a place in a sequence of `n_tokens`."""
    return np.dtype("<i2" if n_tokens <= np.iinfo(np.int16).max else "<i4")


@dataclass(frozen=True)
class ShardEntry:
    """What index.json knows of a shard.

    Attributes:
        file: its name.
        number: its place in the store; it covers items `number * shard_items` onwards.
        n_bytes: size of the file.
        n_items: items that it holds (unreadable ones are missing).
        header_crc32: of the bytes before the first tensor.
        crc32: of the bytes after the tokens, which hold the checksums of the tokens.
    """

    file: str
    number: int
    n_bytes: int
    n_items: int
    header_crc32: int
    crc32: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def block_sum(rows: np.ndarray) -> int:
    """Checksum of a block of rows, five times as quick as a CRC-32 of all bytes.

    The bytes are laid out in lines of 509 words of 64 bits, the lines are added modulo 2^64, and the CRC-32 of that
    sum is taken. Damage within a stretch of 4072 bytes always changes the sum, since no column meets it twice.
    """
    data = rows.reshape(-1).view(np.uint8)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    whole = len(words) // _WORDS * _WORDS
    total = words[:whole].reshape(-1, _WORDS).sum(axis=0, dtype=np.uint64)
    total[: len(words) - whole] += words[whole:]
    return zlib.crc32(data[len(words) * 8 :].tobytes(), zlib.crc32(total.tobytes()))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.safetensors"


def header_room(d: int, t: int, n: int, metadata: dict[str, str]) -> int:
    """Bytes kept for the header of a shard of at most `n` items, a whole number of pages."""
    widest = {
        name: {"dtype": "BF16", "shape": [n, t, d], "data_offsets": [2**50, 2**50]}
        for name in ("tokens", "notes", "item", "check", "index", "region")
    }
    length = 8 + len(json.dumps({"__metadata__": metadata, **widest}))
    return -(-length // _PAGE) * _PAGE


class Shard:
    """One shard on disk, checked block by block as it is read.

    Args:
        folder: of the store.
        entry: what index.json says.
        block_items: items per checksum block.
        check: False trusts the bytes.

    Raises:
        DamagedShard: if the file is missing, has another size or another header than index.json says.
    """

    def __init__(self, folder: Path, entry: ShardEntry, block_items: int, check: bool = True):
        self.path = folder / entry.file
        self.entry, self.block_items = entry, block_items
        self._check = check
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != entry.n_bytes:
                    raise self._damaged(f"it has {size} bytes instead of {entry.n_bytes}")
                length = struct.unpack("<Q", file.read(8))[0]
                if length > size - 8:
                    raise self._damaged("its header is not one")
                file.seek(0)
                header = file.read(8 + length)
        except FileNotFoundError:
            raise self._damaged("it is missing") from None
        if zlib.crc32(header) != entry.header_crc32:
            raise self._damaged("its header is not the one that was written")
        self._start = len(header)
        self._tensors: dict[str, Any] = json.loads(header[8:])
        self.metadata: dict[str, str] = self._tensors.pop("__metadata__")
        self._small: dict[str, np.ndarray] | None = None
        self._blocks_ok = np.zeros(-(-entry.n_items // block_items), dtype=bool)

    def map(self) -> tuple[mmap.mmap, np.ndarray]:
        """A fresh memory map of the file and its `tokens [n, t, d]` (bfloat16 as uint16); read-only."""
        with open(self.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped, self._view(mapped, "tokens")

    def block(self, mapped: tuple[mmap.mmap, np.ndarray], block: int, check: bool = True) -> np.ndarray:
        """Block `block` of the tokens as a read-only view `[items, t, d]` of the map; copy it, then call `forget`.

        Args:
            mapped: from `map`.
            block: its number.
            check: False where the caller has another thread check the block before the rows are used.

        Raises:
            DamagedShard: if its bytes are not those that were written.
        """
        first = block * self.block_items
        rows = mapped[1][first : first + self.block_items]
        if check and self._check and not self._blocks_ok[block]:
            if block_sum(rows) != self.small("check")[block]:
                last = first + len(rows) - 1
                raise self._damaged(f"the rows of its items {first} to {last} are not those that were written")
            self._blocks_ok[block] = True
        return rows

    @staticmethod
    def forget(mapped: tuple[mmap.mmap, np.ndarray]) -> None:
        """Drops a map's pages from this process (the page cache keeps them): resident memory must not grow."""
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped[0].madvise(mmap.MADV_DONTNEED)

    def small(self, name: str) -> np.ndarray:
        """One of `notes`, `item`, `check`, `index`, `region` in memory, all checked at the first call.

        Raises:
            DamagedShard: if their bytes are not those that were written.
            KeyError: for `region` where the data set has no masks.
        """
        if self._small is None:
            mapped, _ = self.map()
            tail = memoryview(mapped)[self._start + self._tensors["tokens"]["data_offsets"][1] :]
            if self._check and zlib.crc32(tail) != self.entry.crc32:
                raise self._damaged("its labels or checksums are not those that were written")
            self._small = {key: self._view(mapped, key).copy() for key in self._tensors if key != "tokens"}
        return self._small[name]

    @property
    def has_regions(self) -> bool:
        """Whether the shard knows the region under each row."""
        return "region" in self._tensors

    def notes(self) -> list[dict[str, Any]]:
        """What is known of each item."""
        return [json.loads(line) for line in self.small("notes").tobytes().decode().split("\n") if line.strip()]

    def verify(self) -> None:
        """Reads every byte again.

        Raises:
            DamagedShard: at the first that is not as written.
        """
        self._blocks_ok[:], self._small, self._check = False, None, True
        mapped = self.map()
        for block in range(len(self._blocks_ok)):
            self.block(mapped, block)
        self.forget(mapped)
        self.small("check")

    def _view(self, mapped: mmap.mmap, name: str) -> np.ndarray:
        told = self._tensors[name]
        return np.ndarray(told["shape"], NUMPY[told["dtype"]], mapped, self._start + told["data_offsets"][0])

    def _damaged(self, what: str) -> DamagedShard:
        return DamagedShard(
            f"shard {self.path.name} of {self.path.parent} is damaged: {what}. Nothing of it is served. Delete the "
            "file and run the same extract again: only this shard is made anew"
        )
