"""What a dictionary is compared with: components, clusters, factorisations, neurons, random directions.

A baseline is a `Dictionary` made of the same kinds of parts, fitted instead of trained. So it is saved, loaded, folded,
measured and drawn like any other; its name stands in the card's `kind`. Inputs are not normalised: the decoder's bias
is the mean of the data (`nmf`: their lowest corner).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visae.registry import Registry
from visae.sae.activations import Activation
from visae.sae.decoders import Free
from visae.sae.dictionary import Dictionary
from visae.sae.elementwise import ReLU
from visae.sae.encoders import Encoder, Linear
from visae.sae.moments import Moments
from visae.sae.nonnegative import NonNegative, semi_nmf
from visae.sae.normalisers import Raw


class Identity(Activation):
    """`z = a`: every latent of every token, with its sign.

    Args:
        n_latents: width F.
    """

    signed = True

    def __init__(self, n_latents: int):
        super().__init__()
        self.capacity = n_latents

    def scaled(self, gain: Tensor) -> "Identity":
        """See `Activation.scaled`."""
        del gain
        return copy.deepcopy(self)


class Nearest(Activation):
    """`z = 1` for the largest a of a token, 0 for all others: k-means."""

    k = 1.0
    capacity = 1

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        del x
        return torch.zeros_like(pre).scatter(1, pre.argmax(1, keepdim=True), 1.0)


Fit = Callable[..., Dictionary]


@dataclass(frozen=True)
class Baseline:
    """How a baseline is fitted, and the parts it is made of.

    Attributes:
        fit: from batches of tokens, a width and options to a dictionary.
        encoder: made with d and the width.
        activation: made with the width.
    """

    fit: Fit
    encoder: Callable[[int, int], Encoder]
    activation: Callable[[int], Activation]


BASELINES: Registry[Baseline] = Registry("baseline")
"""Name -> baseline."""


def register_baseline(
    name: str,
    encoder: Callable[[int, int], Encoder] = Linear,
    activation: Callable[[int], Activation] = Identity,
) -> Callable[[Fit], Fit]:
    """Decorator that files a function from batches and a width to a dictionary, with the parts of its dictionaries."""

    def add(fit: Fit) -> Fit:
        BASELINES.register(name)(Baseline(fit, encoder, activation))
        return fit

    return add


def baselines() -> list[str]:
    """Names that `fit_baseline` knows."""
    return list(BASELINES)


def fit_baseline(name: str, batches: Iterable[Tensor], n: int | None = None, **options: Any) -> Dictionary:
    """A baseline of n latents fitted to batches of tokens `[b, d]`; n None takes d.

    Raises:
        UnknownName: for an unknown name.
        ValueError: for no data, or a width that the baseline cannot have.
    """
    return BASELINES[name].fit(batches, n, **options)


def make_baseline(name: str, d: int, n_latents: int) -> Dictionary:
    """An empty baseline, into which saved weights fit."""
    form = BASELINES[name]
    return Dictionary(
        name,
        d,
        n_latents,
        encoder=form.encoder(d, n_latents),
        activation=form.activation(n_latents),
        decoder=Free(d, n_latents),
        normaliser=Raw(d),
    )


@torch.no_grad()
def _filled(
    name: str, atoms: Tensor, bias: Tensor, mean: Tensor, rows: Tensor | None = None, offset: Tensor | None = None
) -> Dictionary:
    """A baseline with atoms `[F, d]`, what it adds them to `[d]`, encoder rows (the atoms themselves) and offsets."""
    made = make_baseline(name, atoms.shape[1], atoms.shape[0])
    made.mean.copy_(mean)
    made.decoder = Free.of(atoms.to(made.mean), bias)
    made.encoder.initialise((atoms if rows is None else rows).to(made.mean))
    if offset is not None:
        made.b_enc.copy_(offset)
    return made.eval().requires_grad_(False)


def _moments(batches: Iterable[Tensor], covariance: bool = False) -> Moments:
    moments: Moments | None = None
    for x in batches:
        moments = moments or Moments(x.shape[1], covariance)
        moments.add(x)
    if moments is None or moments.n == 0:
        raise ValueError("a baseline needs at least one batch of tokens [n, d], got none")
    return moments


def _rows(batches: Iterable[Tensor]) -> Tensor:
    """All rows `[n, d]` at once, float64 on the CPU, for what cannot stream."""
    parts = [x.detach().cpu().double() for x in batches]
    if not parts or not sum(len(part) for part in parts):
        raise ValueError("a baseline needs at least one batch of tokens [n, d], got none")
    return torch.cat(parts)


def _width(name: str, n: int | None, most: int, what: str, d: int) -> int:
    width = d if n is None else n
    if not 1 <= width <= most:
        raise ValueError(f"{name} has between 1 and {what} = {most} components, asked for {width}")
    return width


@register_baseline("pca")
def pca(batches: Iterable[Tensor], n: int | None = None) -> Dictionary:
    """Leading principal components, from one pass in float64; signed.

    With as many components as a dictionary has codes per token it is the linear baseline of equal budget.

    Args:
        batches: tokens `[b, d]`.
        n: components; None takes d.

    Raises:
        ValueError: for more components than dimensions, or no data.
    """
    moments = _moments(batches, covariance=True)
    assert moments.products is not None
    width = _width("pca", n, len(moments.mean), "d", len(moments.mean))
    _, vectors = torch.linalg.eigh(moments.products / moments.n)
    return _filled("pca", vectors.flip(1)[:, :width].T, moments.mean, moments.mean)


@register_baseline("neurons")
def neurons(batches: Iterable[Tensor], n: int | None = None) -> Dictionary:
    """The coordinates themselves, centred; signed.

    Raises:
        ValueError: for another n than d, or no data.
    """
    mean = _moments(batches).mean
    if n not in (None, len(mean)):
        raise ValueError(f"there are as many neurons as dimensions, d = {len(mean)}; asked for {n}")
    return _filled("neurons", torch.eye(len(mean)), mean, mean)


@register_baseline("random")
def random_directions(batches: Iterable[Tensor], n: int | None = None, seed: int = 0) -> Dictionary:
    """Unit vectors drawn from the sphere, read by inner products: what any score must beat; signed."""
    mean = _moments(batches).mean
    rows = torch.randn(n or len(mean), len(mean), generator=torch.Generator().manual_seed(seed))
    return _filled("random", torch.nn.functional.normalize(rows, dim=1), mean, mean)


@register_baseline("ica")
def ica(batches: Iterable[Tensor], n: int | None = None, seed: int = 0, steps: int = 1000) -> Dictionary:
    """Independent components of unit variance (Hyvarinen and Oja 2000; scikit-learn's FastICA); signed.

    Args:
        batches: tokens `[b, d]`; all are held in memory.
        n: components; None takes d.
        seed: of the start.
        steps: iterations at most; scikit-learn warns where they do not suffice.

    Raises:
        ValueError: for more components than rows or dimensions, or no data.
    """
    from sklearn.decomposition import FastICA

    rows = _rows(batches)
    width = _width("ica", n, min(rows.shape), "min(n, d)", rows.shape[1])
    fitted = FastICA(width, whiten="unit-variance", random_state=seed, max_iter=steps).fit(rows.numpy())
    mean = torch.from_numpy(fitted.mean_)
    return _filled("ica", torch.from_numpy(fitted.mixing_.T), mean, mean, torch.from_numpy(fitted.components_))


@register_baseline("kmeans", activation=lambda _: Nearest())
def kmeans(batches: Iterable[Tensor], n: int | None = None, seed: int = 0) -> Dictionary:
    """The nearest of n centroids, as one code of 1 (scikit-learn's MiniBatchKMeans).

    Args:
        batches: tokens `[b, d]`; all are held in memory.
        n: centroids; None takes d.
        seed: of the start.

    Raises:
        ValueError: for more centroids than rows, or no data.
    """
    from sklearn.cluster import MiniBatchKMeans

    rows = _rows(batches)
    width = _width("kmeans", n, len(rows), "rows", rows.shape[1])
    mean = rows.mean(0)
    fitted = MiniBatchKMeans(width, random_state=seed, batch_size=4096, n_init=3).fit((rows - mean).numpy())
    centroids = torch.from_numpy(fitted.cluster_centers_).double()
    # the nearest centroid is the one with the largest <x, c> - |c|^2 / 2
    return _filled("kmeans", centroids, mean, mean, offset=-centroids.square().sum(1) / 2)


@register_baseline("nmf", encoder=NonNegative, activation=lambda _: ReLU())
def nmf(batches: Iterable[Tensor], n: int | None = None, seed: int = 0, steps: int = 400) -> Dictionary:
    """Non-negative matrix factorisation of `x - lowest` (Lee and Seung 1999; scikit-learn's NMF).

    Tokens have either sign, so each dimension is shifted by its lowest value in these batches, the decoder's bias.
    Codes, of new tokens too, are non-negative least squares; what lies below the lowest value is taken as it is.

    Args:
        batches: tokens `[b, d]`; all are held in memory.
        n: components, atoms of length 1; None takes d.
        seed: of the start.
        steps: iterations at most.

    Raises:
        ValueError: for fewer than one component, or no data.
    """
    from sklearn.decomposition import NMF

    rows = _rows(batches)
    width = _width("nmf", n, len(rows), "rows", rows.shape[1])
    lowest = rows.amin(0)
    fitted = NMF(width, init="nndsvda", random_state=seed, max_iter=steps).fit((rows - lowest).numpy())
    atoms = torch.nn.functional.normalize(torch.from_numpy(fitted.components_), dim=1)
    return _filled("nmf", atoms, lowest, rows.mean(0))


@register_baseline("semi_nmf", encoder=NonNegative, activation=lambda _: ReLU())
def semi_nmf_baseline(batches: Iterable[Tensor], n: int | None = None, seed: int = 0, steps: int = 200) -> Dictionary:
    """Semi-NMF of the centred tokens: codes are not negative, atoms are free; see `visae.sae.nonnegative.semi_nmf`.

    Starts from k-means, each token's cluster 1 and 0.2 added to all, as in the paper (Ding, Li and Jordan 2010). Codes
    of new tokens are non-negative least squares.

    Args:
        batches: tokens `[b, d]`; all are held in memory.
        n: components, atoms of length 1; None takes d.
        seed: of k-means.
        steps: iterations.

    Raises:
        ValueError: for more components than rows, or no data.
    """
    rows = _rows(batches)
    start = kmeans([rows], _width("semi_nmf", n, len(rows), "rows", rows.shape[1]), seed)
    mean = rows.mean(0)
    _, atoms, _ = semi_nmf(rows - mean, start.encode(rows).to_dense().double() + 0.2, steps)
    return _filled("semi_nmf", torch.nn.functional.normalize(atoms, dim=1), mean, mean)
