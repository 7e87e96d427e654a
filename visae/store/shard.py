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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from visae.store.errors import DamagedShard, disk_full, is_full

_PAGE = 4096
_WORDS = 4093
"""Length of a line of 64-bit words in `block_sum`: odd, so that a page written to a wrong place changes the sums."""

_CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int64": "I64", "int32": "I32", "int16": "I16",
          "uint32": "U32", "uint16": "U16", "uint8": "U8"}
_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U32": "<u4",
          "U16": "<u2", "U8": "u1"}


def stored_dtype(name: str) -> np.dtype:
    """Numpy dtype of rows on disk; bfloat16, which numpy lacks, is mapped as uint16."""
    return np.dtype(_NUMPY[_CODES[name]])


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
    """Checksum of a block of rows, four times as quick as a CRC-32 of all bytes.

    The bytes are laid out in lines of 4093 words of 64 bits, the lines are added modulo 2^64, and the CRC-32 of that
    sum is taken. Damage confined to any stretch of 32 KiB always changes the sum, since no column meets it twice.
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
    widest = {name: {"dtype": "BF16", "shape": [n, t, d], "data_offsets": [2**50, 2**50]}
              for name in ("tokens", "notes", "item", "check", "index", "region")}
    length = 8 + len(json.dumps({"__metadata__": metadata, **widest}))
    return -(-length // _PAGE) * _PAGE


class ShardWriter:
    """Writes one shard as its items arrive; memory does not grow with the shard.

    Args:
        folder: of the store.
        number: place of the shard.
        shape: most items, tokens per item, length of a row.
        dtype: storage dtype.
        n_sequence: tokens in the site's sequence.
        block_items: items per checksum block.
        metadata: text kept in the header.
    """

    def __init__(self, folder: Path, number: int, shape: tuple[int, int, int], dtype: str, n_sequence: int,
                 block_items: int, metadata: dict[str, str]):
        self.path = folder / shard_name(number)
        self._part = folder / f"{shard_name(number)}.tmp"
        self.number, self._dtype, self._metadata = number, dtype, metadata
        self._most, self._t, self._d = shape
        self._room = header_room(self._d, self._t, self._most, metadata)
        self._place_dtype = place_dtype(n_sequence)
        self._items: list[np.ndarray] = []
        self._index: list[np.ndarray] = []
        self._regions: list[np.ndarray | None] = []
        self._notes: list[str] = []
        self._block = np.empty((block_items, self._t, self._d), stored_dtype(dtype))
        self._held, self._written = 0, 0
        self._checks: list[int] = []
        self._entry: ShardEntry | None = None
        self._file: BinaryIO = open(self._part, "wb", buffering=0)  # noqa: SIM115 - closed by commit and abandon
        self._file.seek(self._room)

    @property
    def n_items(self) -> int:
        """Items added so far."""
        return self._written + self._held

    def add(self, rows: np.ndarray, items: np.ndarray, index: np.ndarray, regions: np.ndarray | None,
            notes: Sequence[dict[str, Any]]) -> None:
        """Appends items.

        Args:
            rows: `[n, t, d]` in the stored dtype.
            items: `[n]` place of each in the data set.
            index: `[n, t]` place of each row in the site's sequence.
            regions: `[n, t]` region under each row, or None.
            notes: what is known of each item, for JSON.

        Raises:
            DiskFull: if the disk has no room; the unfinished file is gone then.
        """
        self._items.append(np.asarray(items, dtype="<i8"))
        self._index.append(np.asarray(index, dtype=self._place_dtype))
        self._regions.append(regions)
        self._notes += [json.dumps(note, ensure_ascii=False, separators=(",", ":")) for note in notes]
        while len(rows):
            piece = rows[: len(self._block) - self._held]
            self._block[self._held : self._held + len(piece)] = piece
            self._held += len(piece)
            rows = rows[len(piece) :]
            if self._held == len(self._block):
                self._close_block()

    def finish(self) -> None:
        """Writes what follows the tokens, and the header.

        Raises:
            DiskFull: if the disk has no room; the unfinished file is gone then.
        """
        if self._held:
            self._close_block()
        tensors = self._small_tensors()
        tokens = np.empty((self._written, self._t, 0), self._block.dtype)
        start = self._written * self._block[0].nbytes
        entries: dict[str, Any] = {"tokens": _describe(tokens, self._dtype, 0, start) | {"shape": [*tokens.shape[:2], self._d]}}
        for name, array in tensors.items():
            entries[name] = _describe(array, array.dtype.name, start, array.nbytes)
            start += array.nbytes
        text = json.dumps({"__metadata__": self._metadata, **entries}).encode()
        header = struct.pack("<Q", self._room - 8) + text.ljust(self._room - 8)
        tail = b"".join(array.tobytes() for array in tensors.values())
        self._write(tail)
        self._file.seek(0)
        self._write(header)
        self._entry = ShardEntry(self.path.name, self.number, self._room + start, self._written, zlib.crc32(header),
                                 zlib.crc32(tail))

    def commit(self) -> ShardEntry:
        """Syncs and renames the finished file; from here on it is whole. May run in another thread.

        Raises:
            DiskFull: if the disk has no room; the unfinished file is gone then.
        """
        if self._entry is None:
            raise RuntimeError("commit comes after finish")
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._fail(error)
        os.replace(self._part, self.path)
        return self._entry

    def abandon(self) -> None:
        """Removes the unfinished file."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _close_block(self) -> None:
        block = self._block[: self._held]
        self._checks.append(block_sum(block))
        self._write(memoryview(block.reshape(-1)).cast("B"))
        self._written, self._held = self._written + self._held, 0

    def _write(self, data: bytes | memoryview) -> None:
        """Writes all of it: one call of the system may take only a part, the next one then says why."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._fail(error)

    def _small_tensors(self) -> dict[str, np.ndarray]:
        notes = "".join(f"{note}\n" for note in self._notes).encode()
        before = self._written * self._block[0].nbytes + len(notes)
        notes += b" " * (-before % 8)  # item is int64 and must be aligned
        tensors = {
            "notes": np.frombuffer(notes, np.uint8),
            "item": np.concatenate([*self._items, np.empty(0, "<i8")]),
            "check": np.array(self._checks, dtype="<u4"),
            "index": np.concatenate([*self._index, np.empty((0, self._t), self._place_dtype)]),
        }
        if any(region is not None for region in self._regions):
            parts = [np.zeros((len(i), self._t), np.int64) if r is None else r
                     for r, i in zip(self._regions, self._items, strict=True)]
            regions = np.concatenate(parts)
            tensors["region"] = regions.astype("u1" if regions.max(initial=0) < 256 else "<u2")
        return tensors

    def _fail(self, error: OSError) -> NoReturn:
        needed = (self._most - self._written) * self._block[0].nbytes
        self.abandon()
        raise disk_full(error, self.path, needed) if is_full(error) else error


def _describe(array: np.ndarray, dtype: str, start: int, n_bytes: int) -> dict[str, Any]:
    """Header entry of a tensor."""
    return {"dtype": _CODES[dtype], "shape": list(array.shape), "data_offsets": [start, start + n_bytes]}


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

    @contextmanager
    def block(self, mapped: tuple[mmap.mmap, np.ndarray], block: int) -> Iterator[np.ndarray]:
        """Block `block` of the tokens as a read-only view `[items, t, d]` of the map, to be copied inside the context.

        On exit its pages leave this process (not the page cache), so that resident memory does not grow with the store.

        Raises:
            DamagedShard: if its bytes are not those that were written.
        """
        first = block * self.block_items
        rows = mapped[1][first : first + self.block_items]
        if self._check and not self._blocks_ok[block]:
            if block_sum(rows) != self.small("check")[block]:
                last = first + len(rows) - 1
                raise self._damaged(f"the rows of its items {first} to {last} are not those that were written")
            self._blocks_ok[block] = True
        yield rows
        if hasattr(mmap, "MADV_DONTNEED"):
            from_byte = self._start + first * rows[0].nbytes
            page = from_byte // mmap.PAGESIZE * mmap.PAGESIZE
            mapped[0].madvise(mmap.MADV_DONTNEED, page, from_byte + rows.nbytes - page)

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
            with self.block(mapped, block):
                pass
        self.small("check")

    def _view(self, mapped: mmap.mmap, name: str) -> np.ndarray:
        told = self._tensors[name]
        return np.ndarray(told["shape"], _NUMPY[told["dtype"]], mapped, self._start + told["data_offsets"][0])

    def _damaged(self, what: str) -> DamagedShard:
        return DamagedShard(
            f"shard {self.path.name} of {self.path.parent} is damaged: {what}. Nothing of it is served. Delete the file "
            "and run the same extract again: only this shard is made anew"
        )
