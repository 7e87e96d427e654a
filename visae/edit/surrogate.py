"""Decisions of masks and gates for attacks with gradients: hard values, soft derivatives.

A decision `v > threshold` has the derivative 0 wherever it has one. Exact gradients therefore know what an edit does,
but not that it could have been avoided. Inside `surrogate()` every decision keeps its value, to the bit, and passes the
derivative of `sigmoid((v - threshold) / s)` on, with s the mean distance of the values from their threshold (a
straight-through estimate, Bengio, Leonard & Courville 2013). Outside of it nothing is different from plain thresholds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_SOFT: ContextVar[bool] = ContextVar("visae_soft_decisions", default=False)


@contextmanager
def surrogate() -> Iterator[None]:
    """Inside the `with`, gates and masks of edits pass surrogate derivatives on, see the module.

    Example:
        >>> with edited(pipeline, sae, site, ablate([17]).where(active())), surrogate():
        ...     loss = attack_loss(vectors)
        >>> torch.autograd.grad(loss, vectors)
    """
    before = _SOFT.set(True)
    try:
        yield
    finally:
        _SOFT.reset(before)


def soft(values: Tensor) -> bool:
    """Whether decisions on these values pass derivatives on."""
    return _SOFT.get() and values.requires_grad and torch.is_grad_enabled()


def looked_at(values: Tensor) -> Tensor:
    """Values as decisions look at them: cut off from gradients, but not inside `surrogate()`."""
    return values if soft(values) else values.detach()


def exceeds(values: Tensor, threshold: Tensor | float) -> Tensor:
    """1.0 where values exceed their threshold, else 0.0, in the type of the values; derivatives see the module."""
    hard = values > threshold
    return straight_through(hard.to(values.dtype), values, threshold)


def straight_through(hard: Tensor, values: Tensor, threshold: Tensor | float) -> Tensor:
    """What was decided, with the surrogate derivative with respect to the values.

    Args:
        hard: the decisions, 0.0 or 1.0.
        values: what they depend on, of the same shape.
        threshold: what the values had to exceed; where it is infinite there is no derivative.
    """
    if not soft(values):
        return hard
    margin = values - threshold
    finite = torch.isfinite(margin)
    if not bool(finite.any()):
        return hard
    margin = torch.where(finite, margin, torch.zeros_like(margin))
    size = margin.detach().abs().sum() / finite.sum().clamp(min=1)
    chance = torch.sigmoid(margin / size.clamp(min=torch.finfo(size.dtype).tiny))
    return hard + torch.where(finite, chance - chance.detach(), torch.zeros_like(chance))
