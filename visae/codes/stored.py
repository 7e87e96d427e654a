"""`StoredCodes`: the files of a code table, opened when they are asked for."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from visae.codes.arrays import ArrayFile
from visae.data.sample import FactorTable
from visae.geometry import Geometry


class StoredCodes:
    """A folder with the arrays of a code table and what is known of them; `CodeTable` asks the questions."""

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder = folder
        self.n_rows: int = index["n_rows"]
        self.n_items: int = index["n_items"]
        self.n_latents: int = index["n_latents"]
        self.nnz: int = index["nnz"]
        self.signed: bool = index["signed"]
        self.pooled_kinds: tuple[str, ...] = tuple(index["pooled_kinds"])
        self.rows_of_kind: dict[str, int] = index["rows_of_kind"]
        self.factors: FactorTable = index["factors"]
        self.source: dict[str, Any] = index["source"]
        self.sae_fingerprint: str = index["sae"]
        self.geometry = Geometry.from_dict(index["geometry"]) if index["geometry"] else None
        self._files = {name: ArrayFile.from_dict(entry) for name, entry in index["arrays"].items()}
        self._open: dict[str, np.ndarray] = {}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens a table; nothing is read until it is asked for.

        Raises:
            FileNotFoundError: if there is no table.
            ValueError: if it is of another version.
        """
        folder = Path(path)
        if not (folder / "codes.json").is_file():
            raise FileNotFoundError(f"{folder} holds no code table (no codes.json): build one with CodeTable.build")
        index = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
        if (index.get("format"), index.get("version")) != ("visae codes", 1):
            raise ValueError(
                f"{folder} is {index.get('format')!r} version {index.get('version')}, "
                "expected 'visae codes' version 1: build it again"
            )
        return cls(folder, index)

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            ValueError: naming the first file that changed.
        """
        for entry in self._files.values():
            entry.check(self.folder)

    def array(self, name: str) -> np.ndarray:
        """One of the arrays on disk, mapped read-only."""
        if name not in self._open:
            self._open[name] = self._files[name].open(self.folder)
        return self._open[name]

    @cached_property
    def keys(self) -> list[str]:
        """Stable name of each item."""
        return json.loads((self.folder / "keys.json").read_text(encoding="utf-8"))

    @cached_property
    def name(self) -> str:
        """Name of the data set, for titles and selections."""
        return str(self.source.get("data") or self.folder.name)

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data set, to tell one split from another."""
        return str(self.source.get("fingerprint", ""))
