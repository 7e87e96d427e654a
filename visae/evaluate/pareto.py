"""Which of several results are worth looking at when less of two things is better."""

from collections.abc import Sequence


def dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For every point, whether another is at most as large in both values and smaller in one of them.

    With (L0, FVU) of dictionaries: whether another one reconstructs at least as well from at most as many codes. Points
    that agree in both values do not dominate each other; NaN is dominated and dominates nothing.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    return [any(x != x for x in point) or any(beats(other, point) for other in points) for point in points]
