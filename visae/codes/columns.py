"""The second half of a table: from rows to latents, in blocks of bounded memory, and what is kept per latent."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from visae.codes.arrays import ArrayFile, ArrayWriter, adopt, write_array
from visae.tokens import KINDS

BINS = 32
"""Bins of the histogram of every latent."""

BLOCK = 1 << 22
"""Entries sorted at a time: bounds the memory of the transpose to a few hundred MB."""

SIDES = {1: "high", -1: "low"}
"""Sign of the values -> name of the table of item maxima that holds them."""


def transpose(folder: Path, arrays: dict[str, ArrayFile], counts: np.ndarray) -> dict[str, ArrayFile]:
    """Compressed sparse columns from rows: a counting sort, block by block, into files that are mapped, not loaded."""
    row_ptr, latent, value = (arrays[name].open(folder) for name in ("row_ptr", "latent", "value"))
    row_type = np.int32 if len(row_ptr) <= 2**31 else np.int64
    pointers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    done = {"latent_ptr": write_array(folder, "latent_ptr", pointers)}
    if latent.size == 0:
        return done | {
            "latent_row": write_array(folder, "latent_row", np.empty(0, row_type)),
            "latent_value": write_array(folder, "latent_value", np.empty(0, np.float32)),
        }
    rows_out = np.memmap(folder / "latent_row.partial", row_type, "w+", shape=latent.shape)
    values_out = np.memmap(folder / "latent_value.partial", np.float32, "w+", shape=latent.shape)
    narrow = np.uint16 if len(counts) <= 1 << 16 else np.int32  # 16 bits sort by radix, several times faster
    cursor = pointers[:-1].copy()
    for start in range(0, latent.size, BLOCK):
        part = np.asarray(latent[start : start + BLOCK])
        order = np.argsort(part.astype(narrow), kind="stable")
        per_latent = np.bincount(part, minlength=len(counts))
        first = np.cumsum(per_latent) - per_latent
        place = np.repeat(cursor - first, per_latent) + np.arange(len(part))
        row = np.searchsorted(row_ptr, np.arange(start, start + len(part)), side="right") - 1
        rows_out[place], values_out[place] = row[order], np.asarray(value[start : start + BLOCK])[order]
        cursor += per_latent
    return done | {
        "latent_row": adopt(folder, "latent_row", rows_out),
        "latent_value": adopt(folder, "latent_value", values_out),
    }


def per_latent(folder: Path, arrays: dict[str, ArrayFile], pooled: list[int], signed: bool) -> dict[str, ArrayFile]:
    """Range, histogram and sum of every latent, and its largest value in every item, by blocks of latents."""
    pointers, row, value = (arrays[name].open(folder) for name in ("latent_ptr", "latent_row", "latent_value"))
    item, kind = (np.asarray(arrays[name].open(folder)) for name in ("item", "kind"))
    wanted = np.isin(np.arange(len(KINDS)), pooled)
    sides = {side: _ItemMaxima(folder, name, row.dtype) for side, name in SIDES.items() if side > 0 or signed}
    low, high, total, histograms = [], [], [], []
    for first, last in latent_blocks(np.asarray(pointers)):
        span = slice(pointers[first], pointers[last])
        column = np.repeat(np.arange(last - first), np.diff(pointers[first : last + 1]))
        rows, values = np.asarray(row[span]), np.asarray(value[span])
        bottom, top, counts = _histograms(column, values, last - first)
        low.append(bottom)
        high.append(top)
        histograms.append(counts)
        total.append(np.bincount(column, values, minlength=last - first))
        for side, maxima in sides.items():
            keep = wanted[kind[rows]] & (values * side > 0)
            maxima.add(column[keep], rows[keep], values[keep], item, last - first)
    done = {
        "lowest": write_array(folder, "lowest", np.concatenate(low)),
        "highest": write_array(folder, "highest", np.concatenate(high)),
        "total": write_array(folder, "total", np.concatenate(total)),
        "histogram": write_array(folder, "histogram", np.concatenate(histograms)),
    }
    for maxima in sides.values():
        done |= maxima.close()
    return done


def latent_blocks(pointers: np.ndarray) -> Iterable[tuple[int, int]]:
    """Ranges `first, last` of latents with at most `BLOCK` entries each (one latent may have more)."""
    first, n = 0, len(pointers) - 1
    while first < n:
        last = int(np.searchsorted(pointers, pointers[first] + BLOCK, side="right")) - 1
        last = min(max(last, first + 1), n)
        yield first, last
        first = last


def _histograms(column: np.ndarray, values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest value `[n]` with zero between them, and counts `[n, BINS]` of the non-zero values."""
    low, high = np.zeros(n, np.float32), np.zeros(n, np.float32)
    np.minimum.at(low, column, values)
    np.maximum.at(high, column, values)
    width = np.where(high > low, high - low, 1)
    bins = ((values - low[column]) / width[column] * BINS).astype(np.int64).clip(0, BINS - 1)
    return low, high, np.bincount(column * BINS + bins, minlength=n * BINS).reshape(n, BINS)


class _ItemMaxima:
    """Per latent, the items in which it fires: its value furthest from zero, where that is, and the sum."""

    def __init__(self, folder: Path, name: str, row_type: np.dtype):
        self._pointers = [np.zeros(1, np.int64)]
        self._folder, self._name = folder, name
        types = {"item": np.int32, "value": np.float32, "row": row_type, "sum": np.float32}
        self._out = {part: ArrayWriter(folder, f"{name}_{part}", dtype) for part, dtype in types.items()}

    def add(self, column: np.ndarray, rows: np.ndarray, values: np.ndarray, item: np.ndarray, n: int) -> None:
        """Takes entries of `n` latents, sorted by latent and row (rows of an item are together)."""
        items = item[rows]
        new = np.ones(len(rows), bool)
        new[1:] = (np.diff(column) != 0) | (np.diff(items) != 0)
        starts = np.flatnonzero(new)
        size = np.abs(values)
        largest = np.maximum.reduceat(size, starts) if len(starts) else size
        group = np.cumsum(new) - 1
        hits = np.flatnonzero(size == largest[group]) if len(starts) else starts
        winners = hits[np.concatenate([[True], np.diff(group[hits]) != 0])] if len(hits) else hits
        self._pointers.append(self._pointers[-1][-1] + np.cumsum(np.bincount(column[starts], minlength=n)))
        sums = np.add.reduceat(values.astype(np.float64), starts) if len(starts) else values
        for part, data in {"item": items[winners], "value": values[winners], "row": rows[winners], "sum": sums}.items():
            self._out[part].append(data)

    def close(self) -> dict[str, ArrayFile]:
        """Finishes the files."""
        done = {f"{self._name}_{part}": writer.close() for part, writer in self._out.items()}
        pointers = np.concatenate(self._pointers)
        return done | {f"{self._name}_ptr": write_array(self._folder, f"{self._name}_ptr", pointers)}
