"""What an erasure does to pictures that it should leave alone, in paired noise; and Frechet distances.

Picture i with the erasure and picture i without start from the same seed, so that all that differs is the erasure's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visae.evaluate.pictures import DISTANCES, identical, pixel_distance
from visae.evaluate.rates import Tally, rate
from visae.store.batches import split_into

_TOGETHER = 64
"""Pictures whose pixels are held as numbers at a time."""


@dataclass(frozen=True)
class Harm:
    """Distances of pictures from the plain ones of the same seeds.

    Attributes:
        tallies: name -> of every image, counted where the prompt is to be retained: `identical`, share of pictures that
            are the plain ones to the bit; `pixels`, `layout`, `texture` and `colour`, see `visae.evaluate.pictures`;
            with vectors, `embedding`, one less the cosine.
        frechet: distance between the vectors of both kinds; None without vectors, or of fewer than two pictures.
    """

    tallies: dict[str, Tally]
    frechet: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        told = {name: found.to_dict() for name, one in self.tallies.items() if (found := rate([one])) is not None}
        return {**told, "frechet": self.frechet}


def harm(
    plain: Sequence[Image.Image],
    erased: Sequence[Image.Image],
    retain: np.ndarray,
    vectors: tuple[Tensor, Tensor] | None = None,
) -> Harm:
    """How far pictures are from the plain ones.

    Args:
        plain: without the erasure.
        erased: with it, of the same prompts and seeds.
        retain: `[n]` bool, which pictures it should leave alone.
        vectors: of both kinds, `[n, e]`, see `visae.world.judging.clip_vectors`.

    Raises:
        ValueError: if numbers or sizes of the pictures do not match.
    """
    if not len(plain) == len(erased) == len(retain):
        raise ValueError(f"pictures must come in pairs, got {len(plain)}, {len(erased)} and {len(retain)} flags")
    tallies = {"identical": Tally.of(identical(plain, erased), retain)}
    measures = {"pixels": pixel_distance, **DISTANCES}
    kept = np.flatnonzero(retain).tolist()
    values = {name: np.zeros(len(plain)) for name in measures}
    for part in split_into(kept, _TOGETHER):
        before, after = [plain[i] for i in part], [erased[i] for i in part]
        for name, distance in measures.items():
            values[name][part] = distance(before, after)
    tallies |= {name: Tally.of(found, retain) for name, found in values.items()}
    far = None
    if vectors is not None:
        alike = torch.cosine_similarity(vectors[0].double(), vectors[1].double(), dim=1).cpu().numpy()
        tallies["embedding"] = Tally.of(1 - alike, retain)
        if retain.sum() > 1:
            far = frechet_distance(*(v.double().cpu().numpy()[retain] for v in vectors))
    return Harm(tallies, far)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians with the means and covariances of two sets of vectors.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Dowson and Landau 1982; as FID, Heusel et al. 2017, of other vectors
    than Inception's). The trace of the root is the sum of the roots of the eigenvalues of `C1^(1/2) C2 C1^(1/2)`, which
    is symmetric: no singular covariance needs a nudge. Between independent sets it is biased upwards where there are
    few vectors for their width; in paired noise both sets err alike.

    Args:
        one: `[n, e]`.
        other: `[m, e]`.

    Raises:
        ValueError: for sets of fewer than two vectors, or of other widths.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(
            f"a Frechet distance is between two sets of at least 2 vectors of one width, got {one.shape}, {other.shape}"
        )
    a, b = one.astype(np.float64), other.astype(np.float64)
    first, second = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * shared
    return float(max(apart, 0))
