"""How much of one dictionary is found again in another: over seeds, widths, kinds, data, fine-tunes.

With unit rows `a_i`, `b_j` of the directions of two dictionaries A and B (of the space of raw inputs), and `|cos|` in
place of `cos` where codes are signed, a pair being as good as its negative:

| number | definition |
|---|---|
| `shared` | share of the latents of A that have a partner in B at `cos > threshold`; partners are one to one |
| `shared_alive` | the same after the dead latents of both are left out, partners chosen anew |
| `cosine`, `cosine_alive` | mean cosine of all pairs of partners |
| `mmcs` | mean over A of the largest cosine with any latent of B (no pairing); `mmcs_alive` likewise |
| `chance` | `mmcs` that as many random directions as B has latents would give, from the Beta law of a cosine |

Partners are those of the assignment with the largest sum of cosines (Hungarian method; Paulo and Belrose 2025) up to
`HUNGARIAN` latents, beyond that mutual nearest neighbours: i and j such that none is nearer to i than j, and none
nearer to j than i. `method` says which. Dead latents keep what they were initialised with: a low `shared` beside a high
`shared_alive` speaks of them, not of what was learnt. Both are to be reported.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visae.evaluate.core import Encodes
from visae.ops import nearest

THRESHOLD = 0.7
HUNGARIAN = 4096
"""Latents up to which the assignment is solved exactly; its matrix of cosines then takes 128 MiB."""
CURVE = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Partners:
    """Pairs of latents, one to one, in falling order of cosine.

    Attributes:
        a: `[m]` int64 latents of the first dictionary.
        b: `[m]` int64 latents of the second.
        cosine: `[m]` of each pair.
        nearest: `[F_a]` largest cosine of each latent of the first with any of the second.
        method: how they were found.
    """

    a: Tensor
    b: Tensor
    cosine: Tensor
    nearest: Tensor
    method: Literal["hungarian", "mutual"]


@dataclass(frozen=True)
class Stability:
    """How much of dictionary A is found again in B; see the module for definitions.

    Attributes:
        shared: share of the latents of A with a partner.
        shared_alive: share of the alive latents of A with an alive partner; None where it is not known who is alive.
        cosine: mean over pairs.
        cosine_alive: the same.
        mmcs: mean over A of the nearest in B.
        mmcs_alive: the same.
        chance: `mmcs` of random directions.
        alive: numbers of alive latents of A and B.
        curve: threshold to share, over all latents.
        curve_alive: threshold to share, over alive ones.
        threshold: of `shared`.
        method: how partners were found.
    """

    shared: float
    shared_alive: float | None
    cosine: float
    cosine_alive: float | None
    mmcs: float
    mmcs_alive: float | None
    chance: float
    alive: tuple[int, int] | None
    curve: dict[float, float]
    curve_alive: dict[float, float] | None
    threshold: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def _unit(directions: Tensor) -> Tensor:
    return torch.nn.functional.normalize(directions.detach().float(), dim=1)


@torch.no_grad()
def partners(a: Tensor, b: Tensor, *, signed: bool = False, hungarian: int = HUNGARIAN) -> Partners:
    """Pairs latents of two dictionaries.

    Args:
        a: `[F_a, d]` directions.
        b: `[F_b, d]` directions.
        signed: whether a direction and its negative count as the same.
        hungarian: largest number of latents for which the best assignment is looked for.

    Raises:
        ValueError: for directions of different lengths.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"directions must come from one space to be compared, got lengths {a.shape[1]}, {b.shape[1]}")
    left, right = _unit(a), _unit(b.to(a.device))
    exact = max(len(left), len(right)) <= hungarian
    method: Literal["hungarian", "mutual"] = "hungarian" if exact else "mutual"
    if not len(left) or not len(right):
        nobody = torch.empty(0, dtype=torch.int64)
        return Partners(nobody, nobody, torch.empty(0), torch.zeros(len(left)), method)
    to_right, to_left = (places.cpu() for places in nearest(left, right, signed))
    left, right = left.cpu(), right.cpu()
    if exact:
        from scipy.optimize import linear_sum_assignment

        matrix = left @ right.T
        i, j = (
            torch.from_numpy(places)
            for places in linear_sum_assignment((matrix.abs() if signed else matrix).numpy(), maximize=True)
        )
    else:
        i = torch.arange(len(left))
        i = i[to_left[to_right] == i]
        j = to_right[i]
    value, closest = _cosine(left[i], right[j], signed), _cosine(left, right[to_right], signed)
    order = value.argsort(descending=True)
    return Partners(i[order], j[order], value[order], closest, method)


def _cosine(left: Tensor, right: Tensor, signed: bool) -> Tensor:
    cosine = torch.linalg.vecdot(left, right)
    return cosine.abs() if signed else cosine


def chance(d: int, n_latents: int, signed: bool = False) -> float:
    """Expected largest cosine of a direction with `n_latents` random ones in d dimensions.

    `(1 + cos) / 2` of random directions follows Beta((d - 1) / 2, (d - 1) / 2); the largest of n has that distribution
    function to the power n, and `E max = 1 - integral of it` over the range of the cosine.
    """
    if d == 1 or n_latents == 0:
        return float(n_latents > 0)
    from scipy.stats import beta

    grid = np.linspace(0.0 if signed else -1.0, 1.0, 20_001)
    below = beta.cdf((1 + grid) / 2, (d - 1) / 2, (d - 1) / 2)
    below = 2 * below - 1 if signed else below
    return float(1 - np.trapezoid(below**n_latents, grid))


def stability(
    a: Encodes,
    b: Encodes,
    alive: tuple[np.ndarray | Tensor, np.ndarray | Tensor] | None = None,
    *,
    threshold: float = THRESHOLD,
    hungarian: int = HUNGARIAN,
) -> Stability:
    """How much of dictionary A is found again in B.

    Args:
        a: a dictionary or baseline.
        b: another one, of the same space.
        alive: `[F]` of each, true (or above 0: a density) for latents that are alive.
        threshold: cosine above which partners count as the same.
        hungarian: see `partners`.

    Raises:
        ValueError: for dictionaries of different spaces, or `alive` of another length.
    """
    signed = bool(getattr(a, "signed", False) or getattr(b, "signed", False))
    left, right = a.directions(), b.directions()
    found = partners(left, right, signed=signed, hungarian=hungarian)
    living: Partners | None = None
    numbers: tuple[int, int] | None = None
    if alive is not None:
        masks = [torch.as_tensor(np.asarray(mask) > 0, device=left.device) for mask in alive]
        for mask, directions in zip(masks, (left, right), strict=True):
            if mask.shape != directions.shape[:1]:
                raise ValueError(f"alive wants one value per latent, {len(directions)}; got {list(mask.shape)}")
        numbers = int(masks[0].sum()), int(masks[1].sum())
        living = partners(left[masks[0]], right[masks[1]], signed=signed, hungarian=hungarian)
    return Stability(
        shared=_share(found, threshold),
        shared_alive=None if living is None else _share(living, threshold),
        cosine=_mean(found.cosine),
        cosine_alive=None if living is None else _mean(living.cosine),
        mmcs=_mean(found.nearest),
        mmcs_alive=None if living is None else _mean(living.nearest),
        chance=chance(a.d, b.n_latents, signed),
        alive=numbers,
        curve={at: _share(found, at) for at in CURVE},
        curve_alive=None if living is None else {at: _share(living, at) for at in CURVE},
        threshold=threshold,
        method=found.method,
    )


def _share(found: Partners, threshold: float) -> float:
    """Share of the first dictionary's latents with a partner above a threshold; 0 where it has none."""
    return float((found.cosine > threshold).sum()) / max(1, len(found.nearest))


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
