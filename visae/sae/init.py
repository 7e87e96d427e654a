"""Data-driven start of a dictionary: statistics, atoms near data points, an encoder of the right size."""

from typing import Literal

import torch
from torch import Tensor

from visae.ops import Eager, Ops, unit_rows
from visae.sae.centre import geometric_median
from visae.sae.checks import check_moments
from visae.sae.dictionary import Dictionary
from visae.sae.moments import Moments
from visae.sae.side import Rows, unpack

BLEND = 0.8
"""Weight of the data point in an atom at the start; the rest is a random direction."""
PROBE = 4096
"""Rows used to fit the encoder's scale."""
NOISE_ROWS = 16_384
"""Rows of noise drawn at a time: a slice of a dictionary must not need room for the whole."""
MEDIAN_ROWS = 32_768
"""Rows that the geometric median is taken of, at most."""

Start = Literal["data", "random"]
Centre = Literal["mean", "median"]


@torch.no_grad()
def initialise(
    sae: Dictionary,
    rows: Tensor | Rows,
    moments: Moments | None = None,
    seed: int = 0,
    *,
    start: Start = "data",
    centre: Centre = "mean",
    first: int = 0,
    ops: Ops | None = None,
) -> None:
    """Prepares a dictionary for training.

    The normaliser takes its statistics, and the decoder's bias, from which reconstructions start, begins at the centre.
    Atoms start at `0.8 * data point + 0.2 * random`, both of length 1, renormalised; the encoder starts as their
    transpose times the one scalar that makes the first reconstruction best, `c = <u, r> / <r, r>` (rows of length 1
    overshoot with k > 1, and the encoder would spend hundreds of steps on shrinking).

    Args:
        sae: the dictionary, of any kind.
        rows: `[n, d]` raw data points to start from, with the side information that `sae.needs` names, if any.
        moments: of a longer stretch of the data; None takes them from `rows`.
        seed: of the draws.
        start: `data`: atoms near data points, as above; `random`: directions drawn from the sphere.
        centre: `mean`: the bias starts at the mean of the normalised rows, 0 where the normaliser centres; `median`:
            at their geometric median (see `geometric_median`), where tokens with huge norms move the mean.
        first: number of the first latent, where the dictionary is a slice of a larger one (`visae.sae.slices`).
        ops: kernels that know of the other slices.

    Raises:
        ValueError: see `check_moments`, `Normaliser.fit` and `visae.sae.side.unpack`; for another start or centre, or a
            folded dictionary.
    """
    if sae.folded:
        raise ValueError(f"this dictionary is folded ({', '.join(sae.folded)}) and for inference only: train another")
    for name, value, known in (("start", start, ("data", "random")), ("centre", centre, ("mean", "median"))):
        if value not in known:
            raise ValueError(f"{name} is {' or '.join(known)}, got {value!r}")
    rows, side = unpack(rows, sae.needs, who=f"a {sae.kind} dictionary")
    if moments is None:
        moments = Moments(sae.d, sae.normaliser.covariance)
        moments.add(rows)
    check_moments(moments)
    rows = rows.to(sae.mean.device)
    sae.normaliser.fit(moments, rows)
    middle = _middle(sae, rows, centre)
    generator = torch.Generator().manual_seed(seed)
    n = rows.shape[0]
    draw = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-sae.n_latents // n))])[: sae.n_latents]
    own = slice(first, first + sae.samples_since_fired.shape[0])
    points = sae.normalise(rows[draw[own].to(rows.device)]) - middle
    noise = _noise(sae.n_latents, sae.d, generator, own).to(points)
    unit_rows(points)
    unit_rows(noise)
    atoms = BLEND * points + (1 - BLEND) * noise if start == "data" else noise
    unit_rows(atoms)
    sae.decoder.initialise(atoms)
    sae.decoder.bias.copy_(middle)
    order = torch.randperm(n, generator=generator).to(rows.device)
    if sae.decoder.starts:
        sae.decoder.start(sae.normalise(rows[order]) - middle)
    sae.encoder.initialise(sae.decoder.atoms())
    probe = rows[order[:PROBE]]
    if sae.activation.starts:
        sae.activation.start(sae.encoder.pre(sae.normalise(probe), sae.decoder.bias))
    with torch.random.fork_rng(devices=[rows.device] if rows.device.type == "cuda" else []):
        torch.manual_seed(seed)  # some kinds draw noise while training
        _fit_scale(sae, probe, ops or Eager())
    sae.modulation.start(generator, side)
    sae.samples_since_fired.zero_()


def _middle(sae: Dictionary, rows: Tensor, centre: Centre) -> Tensor:
    """Mean or geometric median `[d]` of the normalised rows."""
    if centre == "median":
        return geometric_median(sae.normalise(rows[:MEDIAN_ROWS])).to(sae.mean)
    if sae.normaliser.centred:
        return torch.zeros_like(sae.mean)
    return sae.normalise(rows).mean(0, dtype=torch.float64).to(sae.mean)


def _noise(n: int, d: int, generator: torch.Generator, own: slice) -> Tensor:
    """Some of n normal rows `[n, d]`, which are drawn a few at a time."""
    kept = []
    for start in range(0, n, NOISE_ROWS):
        drawn = torch.randn(min(NOISE_ROWS, n - start), d, generator=generator)
        kept.append(drawn[max(0, own.start - start) : max(0, own.stop - start)])
    return torch.cat(kept)


def _fit_scale(sae: Dictionary, rows: Tensor, ops: Ops) -> None:
    """Least-squares scale of the encoder on the probe rows."""
    was = sae.training
    sae.train()
    u = sae.normalise(rows)
    recon = ops.decode(sae.code(u, ops)[0], sae.decoder.atoms(), None)
    sae.train(was)
    power = recon.square().sum()
    factor = ((u - sae.decoder.bias) * recon).sum() / power
    if bool(power > 0) and bool(factor > 0):
        sae.encoder.rescale(factor)
        sae.activation.rescale(factor)
