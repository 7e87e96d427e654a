"""One shard: a safetensors file written from front to back and read through a memory map.

The tensors lie in this order: `tokens [n, t, d]`, `notes` (JSON lines, one per item, as bytes), `item [n]`,
`check [blocks + 1]`, `index [n, t]` and, where the data set has masks, `region [n, t]`. `check` holds a running
CRC-32: entry i after block i of the tokens, the last one after notes, item, index and region as well. So any block can
be checked alone, when it is read, and the last value is the checksum of everything.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visae.store.errors import DamagedShard, disk_full, is_full

_PAGE = 4096
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
        crc32: of all the other bytes, in the order described above, `check` last.
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
        self._number, self._dtype, self._metadata = number, dtype, metadata
        self._most, self._t, self._d = shape
        self._item_bytes = self._t * self._d * stored_dtype(dtype).itemsize
        self._block_bytes = block_items * self._item_bytes
        self._room = header_room(self._d, self._t, self._most, metadata)
        self._place_dtype = place_dtype(n_sequence)
        self._items: list[np.ndarray] = []
        self._index: list[np.ndarray] = []
        self._regions: list[np.ndarray | None] = []
        self._notes: list[str] = []
        self._running, self._in_block, self._written = 0, 0, 0
        self._checks: list[int] = []
        self._file: BinaryIO = open(self._part, "wb")  # noqa: SIM115 - closed by finish and abandon
        self._file.seek(self._room)

    @property
    def n_items(self) -> int:
        """Items written so far."""
        return self._written // self._item_bytes

    def add(self, rows: np.ndarray, items: np.ndarray, index: np.ndarray, regions: np.ndarray | None,
            notes: Sequence[dict[str, Any]]) -> None:
        """Appends items.

        Args:
            rows: `[n, t, d]` in the stored dtype, C-contiguous.
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
        view = memoryview(rows).cast("B") if rows.size else memoryview(b"")
        try:
            while view:
                piece = view[: self._block_bytes - self._in_block]
                self._running = zlib.crc32(piece, self._running)
                self._file.write(piece)
                self._in_block += len(piece)
                self._written += len(piece)
                if self._in_block == self._block_bytes:
                    self._close_block()
                view = view[len(piece):]
        except OSError as error:
            self._fail(error)

    def finish(self) -> ShardEntry:
        """Completes, syncs and renames the file; from here on it is whole.

        Raises:
            DiskFull: if the disk has no room; the unfinished file is gone then.
        """
        if self._in_block:
            self._close_block()
        tensors = self._small_tensors()
        entries: dict[str, Any] = {}
        start = 0
        for name, (code, shape, size) in self._describe(tensors).items():
            entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps({"__metadata__": self._metadata, **entries}).encode()
        header = struct.pack("<Q", self._room - 8) + text.ljust(self._room - 8)
        try:
            for array in tensors.values():
                self._file.write(memoryview(array).cast("B") if array.size else b"")
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._fail(error)
        os.replace(self._part, self.path)
        crc = zlib.crc32(tensors["check"].tobytes(), int(tensors["check"][-1]))
        return ShardEntry(self.path.name, self._number, self._room + start, self.n_items, zlib.crc32(header), crc)

    def abandon(self) -> None:
        """Removes the unfinished file."""
        try:
            self._file.close()
        except OSError:  # the buffer could not be flushed to a full disk; the file goes anyway
            pass
        self._part.unlink(missing_ok=True)

    def _close_block(self) -> None:
        self._checks.append(self._running)
        self._in_block = 0

    def _small_tensors(self) -> dict[str, np.ndarray]:
        t = self._t
        notes = "".join(f"{note}\n" for note in self._notes).encode()
        notes += b" " * (-(self._written + len(notes)) % 8)  # item is int64 and must be aligned
        items = np.concatenate([*self._items, np.empty(0, "<i8")])
        index = np.concatenate([*self._index, np.empty((0, t), self._place_dtype)])
        tensors = {"notes": np.frombuffer(notes, np.uint8), "item": items, "index": index}
        if any(region is not None for region in self._regions):
            parts = [np.zeros((len(i), t), np.int64) if r is None else r
                     for r, i in zip(self._regions, self._items, strict=True)]
            regions = np.concatenate(parts)
            tensors["region"] = regions.astype("u1" if regions.max(initial=0) < 256 else "<u2")
        for array in tensors.values():
            self._running = zlib.crc32(array.tobytes(), self._running)
        tensors["check"] = np.array([*self._checks, self._running], dtype="<u4")
        return {name: tensors[name] for name in ("notes", "item", "check", "index", "region") if name in tensors}

    def _describe(self, tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, list[int], int]]:
        """Code, shape and bytes of every tensor in file order."""
        told = {"tokens": (_CODES[self._dtype], [self.n_items, self._t, self._d], self._written)}
        return told | {name: (_CODES[a.dtype.name], list(a.shape), a.nbytes) for name, a in tensors.items()}

    def _fail(self, error: OSError) -> None:
        needed = self._most * self._item_bytes - self._written
        self.abandon()
        raise disk_full(error, self.path, needed) if is_full(error) else error


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

    def read_block(self, mapped: tuple[mmap.mmap, np.ndarray], block: int, out: np.ndarray) -> None:
        """Copies block `block` of the tokens to `out [items, t, d]`.

        Raises:
            DamagedShard: if its bytes are not those that were written.
        """
        first = block * self.block_items
        source = mapped[1][first : first + len(out)]
        out[...] = source
        self._forget(mapped[0], source)
        if not self._check or self._blocks_ok[block]:
            return
        checks = self.small("check")
        before = int(checks[block - 1]) if block else 0
        if zlib.crc32(memoryview(out).cast("B"), before) != checks[block]:
            last = first + len(out) - 1
            raise self._damaged(f"the rows of its items {first} to {last} are not those that were written")
        self._blocks_ok[block] = True

    def small(self, name: str) -> np.ndarray:
        """One of `notes`, `item`, `check`, `index`, `region` in memory, all checked at the first call.

        Raises:
            DamagedShard: if their bytes are not those that were written.
            KeyError: for `region` where the data set has no masks.
        """
        if self._small is None:
            mapped, _ = self.map()
            small = {key: self._view(mapped, key).copy() for key in self._tensors if key != "tokens"}
            if self._check:
                self._check_small(small)
            self._small = small
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
        n, t, d = mapped[1].shape
        room = np.empty((self.block_items, t, d), mapped[1].dtype)
        for block in range(len(self._blocks_ok)):
            self.read_block(mapped, block, room[: min(self.block_items, n - block * self.block_items)])
        self.small("check")

    def _check_small(self, small: dict[str, np.ndarray]) -> None:
        checks = small["check"]
        running = int(checks[-2]) if len(checks) > 1 else 0
        for name in ("notes", "item", "index", "region"):
            if name in small:
                running = zlib.crc32(small[name].tobytes(), running)
        if running != checks[-1] or zlib.crc32(checks.tobytes(), running) != self.entry.crc32:
            raise self._damaged("its labels or checksums are not those that were written")

    def _view(self, mapped: mmap.mmap, name: str) -> np.ndarray:
        told = self._tensors[name]
        return np.ndarray(told["shape"], _NUMPY[told["dtype"]], mapped, self._start + told["data_offsets"][0])

    @staticmethod
    def _forget(mapped: mmap.mmap, source: np.ndarray) -> None:
        """Drops the pages just read from this process, so that resident memory does not grow with the store."""
        if not source.size or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = source.__array_interface__["data"][0] - np.ndarray(0, np.uint8, mapped).__array_interface__["data"][0]
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, first + source.nbytes - start)

    def _damaged(self, what: str) -> DamagedShard:
        return DamagedShard(
            f"shard {self.path.name} of {self.path.parent} is damaged: {what}. Nothing of it is served. Delete the file "
            "and run the same extract again: only this shard is made anew"
        )
