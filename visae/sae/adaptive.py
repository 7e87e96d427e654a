"""Activation part that gives every token as many codes as it needs."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from visae import ops
from visae.ops import Coded, Rule
from visae.sae.activations import Activation, check_k

By = Literal["error", "probe"]
ROOM = 2**24
"""Numbers of gathered atoms held at a time while errors are measured (64 MiB in float32)."""
HALVINGS = 40
RATE = 0.05
"""Of the running price."""
RIDGE = 1e-3
"""Weight of the squared coefficients of the probe, as a share of the mean square of its features."""


class AdaptiveTopK(Activation):
    """TopK with a number of codes per token, `k_n` between `k_min` and `k_max`, and k on average.

    A first pass keeps `k_max` codes and measures the error `e_n(j) = |x_n - sum of the j largest codes|^2 / d` for
    every j. The token then needs `k_n = argmin_j e_n(j) + price j`: another code must be worth its price, and one that
    is 0 never is. In training the price is the one at which the batch has k codes per token; `calibrate` finds it for
    held-out tokens, and inference does not depend on the batch.

    Early in training further codes may add to the error, and the price is then below 0. Were it not, tokens would get
    about one code, the other latents would die, and none would come back.

    AdaptiveK (Yao and Du 2025) has labels of a text's complexity from a language model, a linear probe of the input
    that predicts them, and a sigmoid from there to k. Tokens of images have no such label; what one needs is measured
    here instead. With `by="probe"` a ridge probe learns it from held-out tokens, `k_n = round(w . [x, |x|, |x|^2, 1])`
    within the limits, and inference spares the first pass; what is linear in the input tells less.

    Args:
        k: mean codes per token; may be a fraction.
        n_latents: width F.
        d: length of a token.
        k_min: fewest codes of a token.
        k_max: most codes of a token.
        by: what inference goes by.

    Raises:
        ValueError: for numbers that are not in order, or another `by`.
    """

    looks = thins = True
    price: Tensor
    seen: Tensor
    probe: Tensor

    def __init__(self, k: float, n_latents: int, d: int, k_min: int, k_max: int, by: By):
        super().__init__()
        check_k(k, n_latents)
        if not 0 <= k_min <= k <= k_max <= n_latents:
            raise ValueError(f"k_min <= k <= k_max <= n_latents = {n_latents} does not hold for {k_min}, {k}, {k_max}")
        if by not in get_args(By):
            raise ValueError(f"by is {' or '.join(get_args(By))}, got {by!r}")
        self.n_latents, self.k_min, self.k_max, self.by = n_latents, k_min, k_max, by
        self.k = self.train_k = self.now = k
        self.capacity = k_max
        self.register_buffer("price", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("probe", torch.zeros(d + 3))
        self._latest: Tensor | None = None

    def _most(self) -> int:
        """Codes of the first pass now."""
        return self.k_max if not self.training else min(self.n_latents, max(self.k_max, round(self.now)))

    def rule(self) -> Rule:
        """See `Activation.rule`; the first pass."""
        return ops.TopK(self._most())

    def anneal(self, k: float) -> None:
        """See `Activation.anneal`."""
        check_k(k, self.n_latents)
        self.now = k

    @torch.no_grad()
    def evidence(self, codes: Coded, x: Tensor, atoms: Tensor) -> Tensor:
        """See `Activation.evidence`: `e_n(j) - e_n(0)` for j = 0, 1, ...; for a probe, its features come after.

        Infinite from the first code on that is 0.
        """
        columns, values = codes.padded(self._most())
        rows = max(1, ROOM // (columns.shape[1] * x.shape[1]))
        steps = [
            _steps(atoms[at], z, some)
            for at, z, some in zip(columns.split(rows), values.split(rows), x.split(rows), strict=True)
        ]
        added = torch.cat(steps).cumsum(1).masked_fill(values == 0, torch.inf)
        errors = functional.pad(added, (1, 0)) / x.shape[1]
        return errors if self.by == "error" else torch.cat([errors, _features(x)], dim=1)

    def thin(self, codes: Coded, x: Tensor, atoms: Tensor) -> Coded:
        """See `Activation.thin`."""
        if self.by == "probe" and not self.training:
            return codes.ranked(0, self._told(_features(x) @ self.probe))
        errors = self.evidence(codes, x, atoms)[:, : self._most() + 1]
        price = self._price(ops.share().rows.cat(errors), self.now) if self.training else self.price
        self._latest = price
        return codes.ranked(0, self._worth(errors, price))

    def _worth(self, errors: Tensor, price: Tensor) -> Tensor:
        """`[n]` codes that each token needs at a price."""
        numbers = torch.arange(self.k_min, errors.shape[1], device=errors.device)
        return (errors[:, self.k_min :] + price * numbers).argmin(1) + self.k_min

    def _price(self, errors: Tensor, k: float) -> Tensor:
        """The price at which tokens need k codes on average, by bisection, without a look at the device.

        Between one at which every code is needed and one at which none is.
        """
        steps = errors.diff(dim=1)
        low = -2 * torch.where(steps.isfinite(), steps, 0).amax().clamp_min(0)
        high = (errors[:, :1] - errors).amax().clamp_min(torch.finfo(errors.dtype).tiny)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            many = self._worth(errors, middle).double().mean() > k
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        return high

    def _told(self, told: Tensor) -> Tensor:
        """`[n]` codes of each token, from what the probe says."""
        return told.round().clamp(self.k_min, self.k_max).long()

    @torch.no_grad()
    def observe(self, _codes: Coded) -> None:
        """Moves the running price, for looks at the dictionary while it trains."""
        assert self._latest is not None
        self.seen += 1
        rate = torch.clamp(1 / self.seen.to(self.price.dtype), min=RATE)
        self.price.lerp_(self._latest.to(self.price.dtype), rate)
        self.probe[-1] = self.now  # until it is fitted

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets the price, and the probe, so that tokens like these have k codes on average.

        Args:
            batches: see `evidence`.

        Raises:
            ValueError: if no batch comes.
        """
        rows = list(batches)
        if not rows:
            raise ValueError("calibrating the price of a code needs at least one batch of held-out tokens, got none")
        found = ops.share().rows.cat(torch.cat(rows))
        errors, features = found[:, : self.k_max + 1], found[:, self.k_max + 1 :].double()
        self.price.copy_(self._price(errors, float(self.k or 1)))
        if self.by == "error":
            return
        wanted = self._worth(errors, self.price).double()
        square = features.T @ features
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
        ridge[-1, -1] = 0
        weights = torch.linalg.solve(square + ridge, features.T @ wanted)
        for _ in range(HALVINGS):  # rounding and limits shift the mean
            weights[-1] += float(self.k or 1) - self._told(features @ weights).double().mean()
        self.probe.copy_(weights)


def _steps(atoms: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """`[n, K]` what each code adds to the squared error after those before it.

    Args:
        atoms: `[n, K, d]` of the codes.
        values: `[n, K]` of the codes.
        x: `[n, d]` what they should sum to.
    """
    both = (atoms @ atoms.mT) * values[:, :, None] * values[:, None, :]
    toward = (atoms @ x[:, :, None])[:, :, 0] * values
    return 2 * both.tril(-1).sum(2) + both.diagonal(dim1=1, dim2=2) - 2 * toward


def _features(x: Tensor) -> Tensor:
    """`[n, d + 3]`: the inputs, their length, its square, and 1."""
    square = torch.linalg.vecdot(x, x)[:, None]
    return torch.cat([x, square.sqrt(), square, torch.ones_like(square)], dim=1)
