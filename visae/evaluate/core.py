"""The core metrics of a dictionary: one definition each, in float64 sums over the data set.

With x a token, r its reconstruction in the raw space, f its codes, d_i the directions, sums over all N tokens:

| metric | definition |
|---|---|
| `fvu` | `sum |x - r|^2 / sum |x - mean x|^2`, one global mean of these tokens |
| `explained_variance` | `1 - fvu` |
| `cosine` | mean of `<x, r> / (|x| |r|)`, of raw vectors |
| `cosine_centred` | the same of `x - mean` and `r - mean` with the dictionary's mean: a large mean hides nothing |
| `l0` | mean number of `f_i != 0` |
| `density` | per latent, the share of tokens with `f_i != 0` |
| `dead` | share of latents with density 0 over the `n` tokens stated; `alive = 1 - dead` |
| `dense` | share of latents with density above 0.1 |
| `shrinkage` | `sum <r, r> / sum <x, r>`, both less the dictionary's mean; below 1 where a penalty shrinks codes |
| `norm_ratio` | mean of `|f| / |x - r0|`, codes times length of their directions, r0 of no code (AFA diagnostic) |

Token kinds (patch, cls, reg, ...) get the same table, each with the variance around its own mean; and, of pipelines,
every bin of noise levels (`visae.evaluate.noise`) and every branch of the guidance.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from visae.clock import CODES
from visae.evaluate.noise import bin_name, bin_of, over_bins
from visae.sae import Codes, Moments
from visae.sae.side import unpack
from visae.tokens import KINDS

ENOUGH = 1_000_000
"""Tokens after which silence means dead; with fewer, `dead` is an upper bound and `n` says so."""
DENSE = 0.1

GROUPS = {"by_kind": "kind", "by_sigma": "sigma", "by_branch": "branch"}
"""Tables of groups of tokens, and what of a chunk tells a token's group."""

BRANCHES = {code: name for name, code in CODES.items()}


class Encodes(Protocol):
    """What is measured: a `Dictionary` or a baseline."""

    d: int
    n_latents: int

    @property
    def mean(self) -> Tensor:
        """`[d]` mean of the data that it was made from."""
        ...

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw tokens `[n, d]`."""
        ...

    def decode(self, codes: Codes) -> Tensor:
        """Raw reconstructions `[n, d]`."""
        ...

    def directions(self) -> Tensor:
        """`[F, d]`."""
        ...


@dataclass(frozen=True)
class Metrics:
    """Core metrics over `n` tokens; see the module for definitions.

    Attributes:
        n: tokens measured.
        fvu: fraction of variance unexplained.
        cosine: of raw vectors.
        cosine_centred: of centred vectors.
        l0: codes per token.
        dead: share of latents that never fired in these n tokens.
        dense: share of latents that fired in more than a tenth of them.
        shrinkage: of reconstructions.
        norm_ratio: of codes to inputs.
        density: `[F]` float64 share of tokens in which each latent fires.
        by_kind: the same for each kind of token, where kinds were given.
        by_sigma: the same for each bin of noise levels, where they were given; rising.
        by_branch: the same for each branch of the guidance, likewise.
    """

    n: int
    fvu: float
    cosine: float
    cosine_centred: float
    l0: float
    dead: float
    dense: float
    shrinkage: float
    norm_ratio: float
    density: np.ndarray
    by_kind: dict[str, "Metrics"] = field(default_factory=dict)
    by_sigma: dict[str, "Metrics"] = field(default_factory=dict)
    by_branch: dict[str, "Metrics"] = field(default_factory=dict)

    @property
    def explained_variance(self) -> float:
        """`1 - fvu`."""
        return 1 - self.fvu

    @property
    def alive(self) -> float:
        """`1 - dead`."""
        return 1 - self.dead

    def to_dict(self) -> dict[str, Any]:
        """JSON form without the densities, for cards and reports; values that are not finite become None."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("density", *GROUPS)}
        flat |= {"explained_variance": self.explained_variance, "alive": self.alive, **over_bins(self.by_sigma)}
        flat = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in flat.items()}
        groups = {name: {k: m.to_dict() for k, m in getattr(self, name).items()} for name in GROUPS}
        return flat | {name: table for name, table in groups.items() if table}

    def summary(self) -> str:
        """One line for people."""
        certain = "" if self.n >= ENOUGH else f" (silent in {self.n} tokens; 1 000 000 would settle it)"
        return (
            f"FVU {self.fvu:.4f}, cosine {self.cosine_centred:.3f}, L0 {self.l0:.1f}, dead {100 * self.dead:.1f} %"
            f"{certain}, shrinkage {self.shrinkage:.3f}"
        )


class _Sums:
    """Running sums of one group of tokens."""

    def __init__(self, d: int, n_latents: int):
        self.moments = Moments(d)
        self.fired = torch.zeros(n_latents, dtype=torch.int64)
        self.error = self.cosine = self.centred = self.ratio = self.own = self.cross = 0.0

    def add(self, x: Tensor, recon: Tensor, mean: Tensor, empty: Tensor, codes: Codes, sizes: Tensor) -> None:
        """Takes in tokens, all float64; `empty` `[n, d]` is decoded from no codes, `sizes` `[n]` are norms of codes."""
        if not len(x):
            return
        self.moments.add(x)
        from_mean, recon_from_mean = x - mean, recon - mean
        self.error += float((x - recon).square().sum())
        self.cosine += float(torch.cosine_similarity(x, recon, dim=1).sum())
        self.centred += float(torch.cosine_similarity(from_mean, recon_from_mean, dim=1).sum())
        self.own += float(recon_from_mean.square().sum())
        self.cross += float((from_mean * recon_from_mean).sum())
        length = torch.linalg.vector_norm(x - empty, dim=1)
        self.ratio += float((sizes / length.clamp_min(torch.finfo(length.dtype).tiny)).sum())
        active = codes.indices[(codes.indices >= 0) & (codes.values != 0)].cpu()
        self.fired += torch.bincount(active, minlength=len(self.fired))

    def metrics(self, **groups: dict[str, Metrics]) -> Metrics:
        n, variance = self.moments.n, self.moments.total
        density = (self.fired.double() / n).numpy()
        return Metrics(
            n=n, fvu=self.error / variance if variance else float("nan"), cosine=self.cosine / n,
            cosine_centred=self.centred / n, l0=float(self.fired.sum()) / n, dead=float((density == 0).mean()),
            dense=float((density > DENSE).mean()), shrinkage=self.own / self.cross if self.cross else float("nan"),
            norm_ratio=self.ratio / n, density=density, **groups,
        )  # fmt: skip


class Evaluation:
    """Measures a dictionary, or a baseline, on tokens that come piece by piece.

    Args:
        sae: what to measure.
        batch: tokens encoded at a time.
        scale: what noise levels mean, see `visae.clock`.
    """

    def __init__(self, sae: Encodes, batch: int = 8192, scale: str = "variance"):
        self._sae, self._batch, self._scale = sae, batch, scale
        self._whole = _Sums(sae.d, sae.n_latents)
        self._groups: dict[str, dict[int, _Sums]] = {name: {} for name in GROUPS}
        self._lengths = torch.linalg.vector_norm(sae.directions().detach().double(), dim=1)

    @torch.no_grad()
    def add(self, chunk: Any) -> None:
        """Takes in tokens, see `evaluate_sae`."""
        sae, mean = self._sae, self._sae.mean
        (rows, side), groups = _rows(chunk, sae), self._groupings(chunk)
        for start in range(0, len(rows), self._batch):
            raw = rows[start : start + self._batch].to(mean.device)
            its = {name: value[start : start + self._batch] for name, value in side.items()}
            codes = cast(Any, sae).encode(raw.float(), **its)  # baselines know no side information, and get none
            x, recon = raw.double(), sae.decode(codes).double()
            weighted = codes.values.double() * self._lengths[codes.indices.clamp_min(0)]
            sizes = torch.linalg.vector_norm(weighted, dim=1) * (1.0 if codes.scale is None else codes.scale.double())
            empty = sae.decode(codes.silent()).double()
            self._whole.add(x, recon, mean.double(), empty, codes, sizes)
            for axis, numbers in groups.items():
                part = numbers[start : start + self._batch]
                for number in np.unique(part):
                    at = torch.from_numpy(np.flatnonzero(part == number)).to(mean.device)
                    group = self._groups[axis].setdefault(int(number), _Sums(sae.d, sae.n_latents))
                    group.add(x[at], recon[at], mean.double(), empty[at], codes[at], sizes[at])

    def _groupings(self, chunk: Any) -> dict[str, np.ndarray]:
        """Number of the group of each row, `[n]`, for what the chunk tells of its rows."""
        told = {axis: getattr(chunk, name, None) for axis, name in GROUPS.items()}
        found = {axis: np.asarray(values) for axis, values in told.items() if values is not None}
        if "by_sigma" in found:
            sigma = found.pop("by_sigma")
            if np.isfinite(sigma).all():  # tokens of text encoders have none
                found["by_sigma"] = bin_of(sigma, self._scale)
        return found

    def _name(self, axis: str, number: int) -> str:
        if axis == "by_kind":
            return KINDS[number]
        return bin_name(number, self._scale) if axis == "by_sigma" else BRANCHES[number]

    def metrics(self) -> Metrics:
        """Of all tokens so far.

        Raises:
            ValueError: if there were none.
        """
        if not self._whole.moments.n:
            raise ValueError("there are no tokens to measure on: the source is empty")
        groups = {
            axis: {self._name(axis, number): sums.metrics() for number, sums in sorted(found.items())}
            for axis, found in self._groups.items()
        }
        return self._whole.metrics(**groups)


def evaluate_sae(sae: Encodes, chunks: Iterable[Any], *, batch: int = 8192, scale: str = "variance") -> Metrics:
    """Measures a dictionary, or a baseline, in one pass.

    Args:
        sae: what to measure.
        chunks: raw tokens: tensors `[n, d]`, or things with `rows` `[n, d]` (numpy or torch) and, for the table per
            kind of token, `kind` `[n]` codes into `visae.tokens.KINDS`; also what `sae.needs_to_encode` names, and of
            pipelines `sigma` `[n]` and `branch` `[n]` (`visae.clock.CODES`) for the tables per noise level and branch.
        batch: tokens encoded at a time.
        scale: what noise levels mean, see `visae.clock`.

    Raises:
        ValueError: if there is no token, or rows of another length.
    """
    evaluation = Evaluation(sae, batch, scale)
    for chunk in chunks:
        evaluation.add(chunk)
    return evaluation.metrics()


def _rows(chunk: Any, sae: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens of a chunk and, for kinds that encode by it, what it brings beside them."""
    rows = torch.as_tensor(getattr(chunk, "rows", chunk))
    needs = getattr(sae, "needs_to_encode", ())
    return rows, unpack(chunk, needs, who=f"a {sae.kind} dictionary")[1] if needs else {}
