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

Token kinds (patch, cls, reg, ...) get the same table, each with the variance around its own mean.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from visae.sae import Codes, Moments
from visae.sae.side import unpack
from visae.tokens import KINDS

ENOUGH = 1_000_000
"""Tokens after which silence means dead; with fewer, `dead` is an upper bound and `n` says so."""
DENSE = 0.1


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
        flat = {k: v for k, v in asdict(self).items() if k not in ("density", "by_kind")}
        flat |= {"explained_variance": self.explained_variance, "alive": self.alive}
        flat = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in flat.items()}
        return flat | ({"by_kind": {k: m.to_dict() for k, m in self.by_kind.items()}} if self.by_kind else {})

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

    def metrics(self, by_kind: dict[str, Metrics]) -> Metrics:
        n, variance = self.moments.n, self.moments.total
        density = (self.fired.double() / n).numpy()
        return Metrics(
            n=n, fvu=self.error / variance if variance else float("nan"), cosine=self.cosine / n,
            cosine_centred=self.centred / n, l0=float(self.fired.sum()) / n, dead=float((density == 0).mean()),
            dense=float((density > DENSE).mean()), shrinkage=self.own / self.cross if self.cross else float("nan"),
            norm_ratio=self.ratio / n, density=density, by_kind=by_kind,
        )  # fmt: skip


class Evaluation:
    """Measures a dictionary, or a baseline, on tokens that come piece by piece.

    Args:
        sae: what to measure.
        batch: tokens encoded at a time.
    """

    def __init__(self, sae: Encodes, batch: int = 8192):
        self._sae, self._batch = sae, batch
        self._whole = _Sums(sae.d, sae.n_latents)
        self._groups: dict[str, _Sums] = {}
        self._lengths = torch.linalg.vector_norm(sae.directions().detach().double(), dim=1)

    @torch.no_grad()
    def add(self, chunk: Any) -> None:
        """Takes in tokens, see `evaluate_sae`."""
        sae, mean = self._sae, self._sae.mean
        (rows, side), names = _rows(chunk, sae), _kinds(chunk)
        for start in range(0, len(rows), self._batch):
            raw = rows[start : start + self._batch].to(mean.device)
            its = {name: value[start : start + self._batch] for name, value in side.items()}
            codes = cast(Any, sae).encode(raw.float(), **its)  # baselines know no side information, and get none
            x, recon = raw.double(), sae.decode(codes).double()
            weighted = codes.values.double() * self._lengths[codes.indices.clamp_min(0)]
            sizes = torch.linalg.vector_norm(weighted, dim=1) * (1.0 if codes.scale is None else codes.scale.double())
            empty = sae.decode(codes.silent()).double()
            self._whole.add(x, recon, mean.double(), empty, codes, sizes)
            if names is None:
                continue
            part = names[start : start + self._batch]
            for name in np.unique(part):
                at = torch.from_numpy(np.flatnonzero(part == name)).to(mean.device)
                group = self._groups.setdefault(str(name), _Sums(sae.d, sae.n_latents))
                group.add(x[at], recon[at], mean.double(), empty[at], codes[at], sizes[at])

    def metrics(self) -> Metrics:
        """Of all tokens so far.

        Raises:
            ValueError: if there were none.
        """
        if not self._whole.moments.n:
            raise ValueError("there are no tokens to measure on: the source is empty")
        return self._whole.metrics({name: sums.metrics({}) for name, sums in sorted(self._groups.items())})


def evaluate_sae(sae: Encodes, chunks: Iterable[Any], *, batch: int = 8192) -> Metrics:
    """Measures a dictionary, or a baseline, in one pass.

    Args:
        sae: what to measure.
        chunks: raw tokens: tensors `[n, d]`, or things with `rows` `[n, d]` (numpy or torch) and, for the table per
            kind of token, `kind` `[n]` codes into `visae.tokens.KINDS`; also what `sae.needs_to_encode` names.
        batch: tokens encoded at a time.

    Raises:
        ValueError: if there is no token, or rows of another length.
    """
    evaluation = Evaluation(sae, batch)
    for chunk in chunks:
        evaluation.add(chunk)
    return evaluation.metrics()


def _rows(chunk: Any, sae: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens of a chunk and, for kinds that encode by it, what it brings beside them."""
    rows = torch.as_tensor(getattr(chunk, "rows", chunk))
    needs = getattr(sae, "needs_to_encode", ())
    return rows, unpack(chunk, needs, who=f"a {sae.kind} dictionary")[1] if needs else {}


def _kinds(chunk: Any) -> np.ndarray | None:
    """Name of the kind of each row, `[n]` of strings; None where unknown."""
    codes = getattr(chunk, "kind", None)
    return None if codes is None else np.asarray(KINDS)[np.asarray(codes, dtype=np.int64)]
