"""Tables over noise levels: made with one number of steps, they serve any other."""

from torch import Tensor


def at_level(levels: Tensor, table: Tensor, sigma: float) -> Tensor:
    """The row of a table at a noise level, between its rows linear in log sigma and beyond them the last one.

    Args:
        levels: `[S]` noise levels above 0, in any order.
        table: `[S, ...]` what is known at each.
        sigma: the level asked for.

    Returns:
        `[...]`.
    """
    order = levels.argsort()
    known, rows = levels[order].clamp(min=1e-8).log(), table[order]
    wanted = known.new_tensor(max(sigma, 1e-8)).log().clamp(known[0], known[-1])
    right = int((known < wanted).sum().clamp(max=len(known) - 1))
    left = max(right - 1, 0)
    gap = known[right] - known[left]
    part = (wanted - known[left]) / gap if gap > 0 else known.new_tensor(0.0)
    return rows[left] + (rows[right] - rows[left]) * part


def nearest_level(levels: Tensor, sigma: float) -> int:
    """Number of the level nearest to sigma in log sigma."""
    known = levels.clamp(min=1e-8).log()
    return int((known - known.new_tensor(max(sigma, 1e-8)).log()).abs().argmin())
