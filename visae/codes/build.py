"""Builds a `CodeTable`: one pass over the activations with bounded memory, then a blocked transpose on disk."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae.codes.arrays import ArrayFile, ArrayWriter, write_array
from visae.codes.columns import per_latent, transpose
from visae.data.sample import FactorTable, Labels
from visae.sae.side import unpack
from visae.tokens import KINDS

TIMED = {"step": "i2", "sigma": "f4", "branch": "i1"}
"""What tokens of pipelines carry beside their place, and its type on disk."""


class TokenChunk(Protocol):
    """Some whole items of an activation source; see `visae.store`."""

    rows: Tensor
    item: Any
    index: Any
    kind: Any
    y: Any
    x: Any
    region: Any


class Encoder(Protocol):
    """What tokens are encoded with: a `Dictionary`, or a baseline with the same interface."""

    n_latents: int

    @property
    def mean(self) -> Tensor:
        """`[d]` mean of the data that it was made from; tokens go to its device."""
        ...

    def encode(self, x: Tensor) -> Any:
        """Codes of raw tokens `[n, d]`."""
        ...

    def directions(self) -> Tensor:
        """`[F, d]`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights by name."""
        ...


class TokenSource(Protocol):
    """What a table is built from: every activation source of `visae.store` is one."""

    meta: Any
    n_rows: int

    @property
    def factors(self) -> FactorTable:
        """Factor -> values of the data set."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """Name of every item."""
        ...

    @property
    def item_labels(self) -> Sequence[Labels]:
        """Labels of every item."""
        ...

    def chunks(self) -> Iterable[Any]:
        """Rows of whole items, in order."""
        ...


def build(sae: Encoder, source: TokenSource, out: Path, kinds: tuple[str, ...] | None, progress: bool) -> None:
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
    pass_ = _Pass(partial, sae.n_latents)
    device, needs = sae.mean.device, getattr(sae, "needs_to_encode", ())
    bar = tqdm(total=source.n_rows, unit="token", unit_scale=True, desc="codes", disable=not progress)
    with torch.inference_mode(), bar:
        for chunk in source.chunks():
            its = unpack(chunk, needs, who="this dictionary")[1] if needs else {}
            side = {name: torch.as_tensor(value).to(device) for name, value in its.items()}
            codes = cast(Any, sae).encode(torch.as_tensor(chunk.rows).to(device), **side)
            pass_.add(chunk, codes.indices.cpu().numpy(), codes.values.float().cpu().numpy())
            bar.update(len(chunk.rows))
    keys, labels = list(source.keys), list(source.item_labels)
    arrays = pass_.close(len(keys))
    signed = bool(getattr(sae, "signed", False))
    pooled = _pooled_kinds(kinds, pass_.rows_of_kind)
    arrays |= transpose(partial, arrays, pass_.counts.sum(0))
    arrays |= per_latent(partial, arrays, pooled, signed)
    arrays |= _labels(partial, labels, source.factors)
    arrays["norm"] = write_array(partial, "norm", sae.directions().detach().float().norm(dim=1).cpu().numpy())
    meta = describe(source.meta)
    index = {
        "format": "visae codes",
        "version": 1,
        "n_rows": pass_.n_rows,
        "n_items": len(keys),
        "n_latents": pass_.n_latents,
        "nnz": pass_.nnz,
        "signed": signed,
        "pooled_kinds": [KINDS[k] for k in pooled],
        "geometry": meta.get("geometry"),
        "source": meta,
        "sae": fingerprint(sae),
        "factors": source.factors,
        "rows_of_kind": dict(zip(KINDS, pass_.rows_of_kind.tolist(), strict=True)),
        "arrays": {name: entry.to_dict() for name, entry in sorted(arrays.items())},
    }
    (partial / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    (partial / "codes.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    partial.rename(out)


def fingerprint(sae: Encoder) -> str:
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
        types = {
            "row_ptr": "i8",
            "latent": "i4",
            "value": "f4",
            "item": "i4",
            "index": "i4",
            "kind": "u1",
            "y": "i2",
            "x": "i2",
            "region": "i4",
        }
        self._folder, self._timed = folder, dict[str, str]()
        self._out = {name: ArrayWriter(folder, name, dtype) for name, dtype in types.items()}
        self._out["row_ptr"].append(np.zeros(1, np.int64))

    def add(self, chunk: TokenChunk, indices: np.ndarray, values: np.ndarray) -> None:
        """Takes codes `[n, k]` of a chunk's rows."""
        if not self.n_rows:
            self._timed = {name: dtype for name, dtype in TIMED.items() if getattr(chunk, name, None) is not None}
            self._out |= {name: ArrayWriter(self._folder, name, dtype) for name, dtype in self._timed.items()}
        known = ("item", "index", "kind", "y", "x", *self._timed)
        origin = {name: np.asarray(getattr(chunk, name)) for name in known}
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
        self.counts += np.bincount(kind * self.n_latents + latent, minlength=self.counts.size).reshape(
            self.counts.shape
        )
        self.rows_of_kind += np.bincount(origin["kind"], minlength=len(KINDS))
        self.n_rows += len(per_row)
        self.nnz += len(latent)

    def _check_order(self, item: np.ndarray) -> None:
        if len(item) and (item[0] < self._last_item or (np.diff(item) < 0).any()):
            raise ValueError(
                "the activation source must yield its items in ascending order, each item's tokens together"
            )
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
