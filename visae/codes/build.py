"""Builds a `CodeTable`: one pass over the activations with bounded memory, then a blocked transpose on disk."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from visae.codes.arrays import ArrayFile, ArrayWriter, adopt, write_array
from visae.data.sample import FactorTable, Labels
from visae.tokens import KINDS

BINS = 32
"""Bins of the histogram of every latent."""

BLOCK = 1 << 22
"""Entries sorted at a time: bounds the memory of the transpose to a few hundred MB."""

SIDES = {1: "high", -1: "low"}
"""Sign of the values -> name of the table of item maxima that holds them."""


class TokenChunk(Protocol):
    """Some whole items of an activation source; see `visae.store`."""

    rows: Tensor
    item: Any
    index: Any
    kind: Any
    y: Any
    x: Any
    region: Any


class TokenSource(Protocol):
    """What a table is built from: every activation source of `visae.store` is one."""

    meta: Any
    n_rows: int
    factors: FactorTable

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def item_labels(self) -> Sequence[Labels]: ...

    def chunks(self) -> Iterable[Any]: ...


def build(sae: nn.Module, source: TokenSource, out: Path, kinds: tuple[str, ...] | None, progress: bool) -> None:
    """Writes the table of `sae` on `source` into the folder `out`, which appears only when it is complete.

    Raises:
        FileExistsError: if `out` exists.
        ValueError: if the source has no rows, or its rows are not in the order of the items.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: load it with CodeTable.load, remove it, or choose another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pass_ = _Pass(partial, int(sae.n_latents))
    device = sae.mean.device
    bar = tqdm(total=source.n_rows, unit="token", unit_scale=True, desc="codes", disable=not progress)
    with torch.inference_mode(), bar:
        for chunk in source.chunks():
            codes = sae.encode(torch.as_tensor(chunk.rows).to(device))
            pass_.add(chunk, codes.indices.cpu().numpy(), codes.values.float().cpu().numpy())
            bar.update(len(chunk.rows))
    keys, labels = list(source.keys), list(source.item_labels)
    arrays = pass_.close(len(keys))
    signed = bool(getattr(sae, "signed", False))
    pooled = _pooled_kinds(kinds, pass_.rows_of_kind)
    arrays |= _transpose(partial, arrays, pass_.counts.sum(0))
    arrays |= _per_latent(partial, arrays, pooled, signed)
    arrays |= _labels(partial, labels, source.factors)
    arrays["norm"] = write_array(partial, "norm", sae.directions().detach().float().norm(dim=1).cpu().numpy())
    meta = describe(source.meta)
    index = {
        "format": "visae codes", "version": 1, "n_rows": pass_.n_rows, "n_items": len(keys),
        "n_latents": pass_.n_latents, "nnz": pass_.nnz, "signed": signed, "pooled_kinds": [KINDS[k] for k in pooled],
        "geometry": meta.get("geometry"), "source": meta, "sae": fingerprint(sae), "factors": source.factors,
        "rows_of_kind": dict(zip(KINDS, pass_.rows_of_kind.tolist(), strict=True)),
        "arrays": {name: entry.to_dict() for name, entry in sorted(arrays.items())},
    }
    (partial / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    (partial / "codes.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    partial.rename(out)


def fingerprint(sae: nn.Module) -> str:
    """First 16 hex digits of the sha256 over the names and bytes of a dictionary's state."""
    digest = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def describe(meta: Any) -> dict[str, Any]:
    """A source's meta data as JSON."""
    if isinstance(meta, dict):
        return meta
    if hasattr(meta, "to_dict"):
        return meta.to_dict()
    return asdict(meta) if is_dataclass(meta) else {}  # type: ignore[arg-type]


class _Pass:
    """The streaming half: rows in order, as compressed sparse rows, with counts per kind and latent."""

    def __init__(self, folder: Path, n_latents: int):
        self.n_latents, self.n_rows, self.nnz = n_latents, 0, 0
        self.counts = np.zeros((len(KINDS), n_latents), np.int64)
        self.rows_of_kind = np.zeros(len(KINDS), np.int64)
        self._last_item = -1
        types = {"row_ptr": "i8", "latent": "i4", "value": "f4", "item": "i4", "index": "i4", "kind": "u1", "y": "i2", "x": "i2",
                 "region": "i4"}
        self._folder = folder
        self._out = {name: ArrayWriter(folder, name, dtype) for name, dtype in types.items()}
        self._out["row_ptr"].append(np.zeros(1, np.int64))

    def add(self, chunk: TokenChunk, indices: np.ndarray, values: np.ndarray) -> None:
        """Takes codes `[n, k]` of a chunk's rows."""
        origin = {name: np.asarray(getattr(chunk, name)) for name in ("item", "index", "kind", "y", "x")}
        self._check_order(origin["item"])
        active = (indices >= 0) & (values != 0)
        latent, per_row = indices[active], active.sum(1)
        self._out["row_ptr"].append(self.nnz + np.cumsum(per_row))
        self._out["latent"].append(latent)
        self._out["value"].append(values[active])
        for name, column in origin.items():
            self._out[name].append(column)
        region = getattr(chunk, "region", None)
        self._out["region"].append(np.zeros(len(per_row)) if region is None else np.asarray(region))
        kind = np.repeat(origin["kind"].astype(np.int64), per_row)
        self.counts += np.bincount(kind * self.n_latents + latent, minlength=self.counts.size).reshape(self.counts.shape)
        self.rows_of_kind += np.bincount(origin["kind"], minlength=len(KINDS))
        self.n_rows += len(per_row)
        self.nnz += len(latent)

    def _check_order(self, item: np.ndarray) -> None:
        if len(item) and (item[0] < self._last_item or (np.diff(item) < 0).any()):
            raise ValueError("the activation source must yield its items in ascending order, each item's tokens together")
        self._last_item = int(item[-1]) if len(item) else self._last_item

    def close(self, n_items: int) -> dict[str, ArrayFile]:
        """Finishes the files; needs the number of items, some of which may have no rows."""
        arrays = {name: writer.close() for name, writer in self._out.items()}
        if self.n_rows == 0:
            raise ValueError("the activation source has no rows: nothing to build a table of")
        item = arrays["item"].open(self._folder)
        item_ptr = np.searchsorted(item, np.arange(n_items + 1)).astype(np.int64)
        arrays["item_ptr"] = write_array(self._folder, "item_ptr", item_ptr)
        arrays["counts"] = write_array(self._folder, "counts", self.counts)
        return arrays


def _pooled_kinds(kinds: tuple[str, ...] | None, rows_of_kind: np.ndarray) -> list[int]:
    """Kinds over which item maxima are taken: the patches where there are some, else whatever there is."""
    if kinds is not None:
        return [KINDS.index(kind) for kind in kinds]
    patch = KINDS.index("patch")
    return [patch] if rows_of_kind[patch] else np.flatnonzero(rows_of_kind).tolist()


def _transpose(folder: Path, arrays: dict[str, ArrayFile], counts: np.ndarray) -> dict[str, ArrayFile]:
    """Compressed sparse columns from rows: a counting sort, block by block, into files that are mapped, not loaded."""
    row_ptr, latent, value = (arrays[name].open(folder) for name in ("row_ptr", "latent", "value"))
    row_type = np.int32 if len(row_ptr) <= 2**31 else np.int64
    pointers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    done = {"latent_ptr": write_array(folder, "latent_ptr", pointers)}
    if latent.size == 0:
        return done | {"latent_row": write_array(folder, "latent_row", np.empty(0, row_type)),
                       "latent_value": write_array(folder, "latent_value", np.empty(0, np.float32))}
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
    return done | {"latent_row": adopt(folder, "latent_row", rows_out), "latent_value": adopt(folder, "latent_value", values_out)}


def _per_latent(folder: Path, arrays: dict[str, ArrayFile], pooled: list[int], signed: bool) -> dict[str, ArrayFile]:
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


def _labels(folder: Path, labels: Sequence[Labels], factors: FactorTable) -> dict[str, ArrayFile]:
    """For each factor, number j: which of its values each item shows, as pointers and value numbers."""
    done = {}
    for j, (factor, values) in enumerate(factors.items()):
        number = {value: i for i, value in enumerate(values)}
        shown = [[number[v] for v in dict.fromkeys(known.get(factor, ()))] for known in labels]
        pointers = np.concatenate([[0], np.cumsum([len(s) for s in shown])]).astype(np.int64)
        flat = np.array([v for s in shown for v in s], np.int32)
        done[f"label{j}_ptr"] = write_array(folder, f"label{j}_ptr", pointers)
        done[f"label{j}_value"] = write_array(folder, f"label{j}_value", flat)
    return done
