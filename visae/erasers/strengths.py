"""How strongly a method erases: which of its settings says so, and values to try, from mild to strong."""

from dataclasses import replace

from visae.erasers.base import METHODS, Method
from visae.registry import UnknownName

STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "saeuron": ("factor", (-1.0, -5.0, -10.0, -20.0, -30.0)),
    "itd": ("factor", (-1.0, -4.0, -8.0, -16.0)),
    "steerers": ("strength", (-0.25, -0.5, -1.0, -2.0)),
    "dsg": ("depth", (0.5, 1.0, 2.0, 4.0)),
    "sauce": ("factor", (0.0, -1.0, -3.0, -6.0)),
    "per": ("share", (1.0, 0.5, 0.25)),
    "ours": ("factor", (-8.0, -16.0)),
    "uce": ("erase", (0.5, 1.0, 2.0, 4.0)),
    "mean_difference": ("strength", (0.5, 1.0, 2.0, 4.0)),
}
"""Name of a method -> its setting, and values. Methods that are not here have no strength, or only one worth its time:
every other would be trained anew."""


def variants(name: str, method: Method | None = None, strength: float | None = None) -> dict[float | None, Method]:
    """Strength -> method, from mild to strong; None where there is nothing to choose.

    Args:
        name: of the method.
        method: with other settings than those registered.
        strength: only this one.

    Raises:
        UnknownName: for a method that does not exist.
        ValueError: for a strength of a method that has none.
    """
    base = METHODS[name] if method is None else method
    if name not in STRENGTHS:
        if strength is not None:
            raise ValueError(f"{name} has no strength to choose; those that have: {', '.join(STRENGTHS)}")
        return {None: base}
    setting, values = STRENGTHS[name]
    return {value: replace(base, **{setting: value}) for value in (values if strength is None else (strength,))}


def with_settings(name: str, given: dict[str, float]) -> Method:
    """A registered method with other settings; numbers become whole ones where the setting is.

    Raises:
        UnknownName: for a method or a setting that does not exist.
        ValueError: for a setting that is no number.
    """
    method = METHODS[name]
    typed = {}
    for key, value in given.items():
        if key not in method.settings:
            raise UnknownName(f"setting of {name}", key, method.settings)
        kind = type(method.settings[key])
        if kind not in (bool, int, float):
            raise ValueError(f"{key} of {name} is {method.settings[key]!r}, not a number; set it in Python")
        typed[key] = kind(value)
    return replace(method, **typed)
