"""Edits as JSON and tensors: every part by its registered name, every number by the name of its field."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from visae.edit.changes import CHANGES
from visae.edit.edits import Edit
from visae.edit.gates import GATES
from visae.edit.places import PLACES
from visae.registry import Registry


def packed(edit: Edit, tensors: dict[str, Tensor], key: str) -> dict[str, Any]:
    """The JSON form of an edit.

    Args:
        edit: the edit.
        tensors: where its tables go, under names that begin with `key`; the JSON names them.
        key: of this edit among those that share `tensors`.
    """
    return {
        "change": _packed(CHANGES, edit.change, tensors, f"{key}.change"),
        "places": [_packed(PLACES, place, tensors, f"{key}.place{i}") for i, place in enumerate(edit.places)],
        "sigmas": edit.sigmas,
        "steps": edit.steps,
        "branches": edit.branches,
        "samples": edit.samples,
        "gate": None if edit.gate is None else _packed(GATES, edit.gate, tensors, f"{key}.gate"),
        "strength": edit.strength,
    }


def unpacked(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    """Reverse of `packed`.

    Raises:
        UnknownName: for a change, place or gate that this version does not know.
        ValueError: if a table is missing.
    """
    return Edit(
        change=_unpacked(CHANGES, data["change"], tensors),
        places=tuple(_unpacked(PLACES, place, tensors) for place in data["places"]),
        sigmas=_tuple(data["sigmas"]),
        steps=_tuple(data["steps"]),
        branches=data["branches"],
        samples=_tuple(data["samples"]),
        gate=None if data["gate"] is None else _unpacked(GATES, data["gate"], tensors),
        strength=_tuple(data["strength"]),
    )


def _packed(registry: Registry[type[Any]], part: Any, tensors: dict[str, Tensor], key: str) -> dict[str, Any]:
    name = next(name for name, kind in registry.items() if kind is type(part))
    told: dict[str, Any] = {"name": name}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            tensors[f"{key}.{field.name}"] = value.detach().cpu().contiguous()
            value = {"tensor": f"{key}.{field.name}"}
        told[field.name] = value
    return told


def _unpacked(registry: Registry[type[Any]], data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    given = {}
    for name, value in data.items():
        if name == "name":
            continue
        if isinstance(value, Mapping):
            if value["tensor"] not in tensors:
                raise ValueError(f"the table {value['tensor']!r} of an edit is missing; known are {sorted(tensors)}")
            value = tensors[value["tensor"]]
        given[name] = _tuple(value)
    return registry[data["name"]](**given)


def _tuple(value: Any) -> Any:
    """JSON knows lists only; edits hold tuples."""
    return tuple(value) if isinstance(value, list) else value
