"""How long questions to a code table take, measured on synthetic codes: `python -m visae.codes.bench`."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visae.codes.table import CodeTable
from visae.data.sample import Labels
from visae.geometry import Framing, Geometry
from visae.tokens import KINDS


@dataclass(frozen=True)
class _Codes:
    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Chunk:
    rows: Tensor
    item: np.ndarray
    index: np.ndarray
    kind: np.ndarray
    y: np.ndarray
    x: np.ndarray
    region: None = None


class SyntheticSae(nn.Module):
    """Draws k latents per token, a few of them far more often than most, as dictionaries do."""

    signed = False

    mean: Tensor

    def __init__(self, n_latents: int, k: int):
        super().__init__()
        self.n_latents, self.k = n_latents, k
        self.register_buffer("mean", torch.zeros(1))
        self._draw = torch.Generator().manual_seed(0)

    def encode(self, x: Tensor) -> _Codes:
        """Codes `[n, k]` that do not look at `x`; a latent drawn twice for a token is left out the second time."""
        uniform = torch.rand(len(x), self.k, generator=self._draw)
        indices = (self.n_latents * uniform**1.5).long().clamp(max=self.n_latents - 1).sort(1).values
        twice = torch.zeros_like(indices, dtype=torch.bool)
        twice[:, 1:] = indices[:, 1:] == indices[:, :-1]
        values = torch.rand(len(x), self.k, generator=self._draw) + 0.01
        return _Codes(indices.masked_fill(twice, -1), values.masked_fill(twice, 0.0))

    def directions(self) -> Tensor:
        """`[F, 1]` ones."""
        return torch.ones(self.n_latents, 1)


class SyntheticSource:
    """Items of side x side patches without content, each with one of 10 classes."""

    def __init__(self, n_rows: int, side: int):
        self.n_items = n_rows // side**2
        self.n_rows, self.side = self.n_items * side**2, side
        framing = Framing((8 * side, 8 * side))
        self.meta = {
            "data": "synthetic",
            "fingerprint": "0",
            "geometry": Geometry(framing, (side, side), (8.0, 8.0)).to_dict(),
        }
        self.factors = {"class": [f"class {i}" for i in range(10)]}
        self.keys = [str(i) for i in range(self.n_items)]
        self.item_labels: list[Labels] = [{"class": (f"class {i % 10}",)} for i in range(self.n_items)]

    def chunks(self, items: int = 256) -> Iterator[_Chunk]:
        """Whole items in order."""
        t = self.side**2
        for start in range(0, self.n_items, items):
            n = min(items, self.n_items - start)
            index = np.tile(np.arange(t), n)
            yield _Chunk(
                torch.zeros(n * t, 1),
                np.repeat(np.arange(start, start + n), t),
                index,
                np.full(n * t, KINDS.index("patch"), np.uint8),
                index // self.side,
                index % self.side,
            )


def bench_codes(
    n_rows: int = 1_000_000, n_latents: int = 4096, k: int = 32, side: int = 14, repeats: int = 50
) -> dict[str, Any]:
    """Builds a synthetic table and times every question about a latent.

    Args:
        n_rows: tokens.
        n_latents: width of the dictionary.
        k: codes per token.
        side: rows and columns of the token grid.
        repeats: latents asked, the most frequent one among them.

    Returns:
        The sizes, seconds to build, and per question the median and the largest time in milliseconds. The table is
        opened anew for each latent, so that opening the files counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes"
        start = time.perf_counter()
        table = CodeTable.build(SyntheticSae(n_latents, k), SyntheticSource(n_rows, side), path, progress=False)
        built = time.perf_counter() - start
        latents = [int(table.density.argmax()), *np.random.default_rng(0).choice(table.alive, repeats - 1)]
        questions: dict[str, Callable[[CodeTable, int], Any]] = {
            "top": lambda t, j: t.top(j, 16),
            "density": lambda t, j: t.density[j],
            "histogram": lambda t, j: t.histogram(j),
            "class_statistics": lambda t, j: t.class_statistics(j, "class"),
            "latent": lambda t, j: t.latent(j),
            "grid": lambda t, j: t.grid(int(t.top(j, 1).items[0]), j),
        }
        times = {name: [_milliseconds(path, ask, int(j)) for j in latents] for name, ask in questions.items()}
        size = sum(f.stat().st_size for f in path.iterdir())
        return {
            "n_rows": table.n_rows,
            "n_latents": n_latents,
            "nnz": table.nnz,
            "bytes": size,
            "build_seconds": round(built, 2),
            "milliseconds": {
                name: {"median": round(float(np.median(t)), 3), "max": round(max(t), 3)} for name, t in times.items()
            },
        }


def _milliseconds(path: Path, ask: Callable[[CodeTable, int], Any], latent: int) -> float:
    table = CodeTable.load(path)
    start = time.perf_counter()
    ask(table, latent)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(bench_codes(), indent=1) + "\n")
