"""Writing one shard, from front to back."""

import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from visae.store.errors import disk_full, is_full
from visae.store.shard import CODES, ShardEntry, block_sum, header_room, place_dtype, shard_name, stored_dtype

_PIECE = 1 << 20
"""Bytes per call of the system: for larger ones the page cache seeks larger runs of free memory, which takes longer."""


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

    def __init__(
        self,
        folder: Path,
        number: int,
        shape: tuple[int, int, int],
        dtype: str,
        n_sequence: int,
        block_items: int,
        metadata: dict[str, str],
    ):
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

    def add(
        self,
        rows: np.ndarray,
        items: np.ndarray,
        index: np.ndarray,
        regions: np.ndarray | None,
        notes: Sequence[dict[str, Any]],
    ) -> None:
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
        rows = np.ascontiguousarray(rows)
        self._write(rows.reshape(-1).view(np.uint8).data)
        self._written += len(rows)
        while len(rows):
            if self._held == 0 and len(rows) >= len(self._block):
                self._checks.append(block_sum(rows[: len(self._block)]))
                rows = rows[len(self._block) :]
                continue
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
        entries: dict[str, Any] = {
            "tokens": _describe(tokens, self._dtype, 0, start) | {"shape": [*tokens.shape[:2], self._d]}
        }
        for name, array in tensors.items():
            entries[name] = _describe(array, array.dtype.name, start, array.nbytes)
            start += array.nbytes
        text = json.dumps({"__metadata__": self._metadata, **entries}).encode()
        header = struct.pack("<Q", self._room - 8) + text.ljust(self._room - 8)
        tail = b"".join(array.tobytes() for array in tensors.values())
        self._write(tail)
        self._file.seek(0)
        self._write(header)
        self._entry = ShardEntry(
            self.path.name, self.number, self._room + start, self._written, zlib.crc32(header), zlib.crc32(tail)
        )

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
        self._checks.append(block_sum(self._block[: self._held]))
        self._held = 0

    def _write(self, data: bytes | memoryview) -> None:
        """Writes all of it: one call of the system may take only a part, the next one then says why."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view[:_PIECE]) :]
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
            parts = [
                np.zeros((len(i), self._t), np.int64) if r is None else r
                for r, i in zip(self._regions, self._items, strict=True)
            ]
            regions = np.concatenate(parts)
            tensors["region"] = regions.astype("u1" if regions.max(initial=0) < 256 else "<u2")
        return tensors

    def _fail(self, error: OSError) -> NoReturn:
        needed = (self._most - self._written) * self._block[0].nbytes
        self.abandon()
        raise disk_full(error, self.path, needed) if is_full(error) else error


def _describe(array: np.ndarray, dtype: str, start: int, n_bytes: int) -> dict[str, Any]:
    """Header entry of a tensor."""
    return {"dtype": CODES[dtype], "shape": list(array.shape), "data_offsets": [start, start + n_bytes]}
