"""What a store was made from: everything that decides its rows, and the content hash over it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visae.data.sample import Data
from visae.geometry import Geometry
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.sampling import Collection
from visae.tokens import TokenPolicy

SCHEMA = 1
"""Version of the folder's layout; a reader refuses numbers it does not know."""

DTYPES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def dtype_name(dtype: str | torch.dtype) -> str:
    """Name of a storage dtype.

    Raises:
        ValueError: if rows cannot be stored in it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"rows are stored as {', '.join(DTYPES)}; got {name}")
    return name


@dataclass(frozen=True)
class StoreMeta:
    """What made the rows.

    Attributes:
        model: id of the model.
        revision: hash of its weights.
        site: where the rows were read.
        policy: which tokens were kept.
        preprocessing: how an image became the model's input.
        geometry: `Geometry.to_dict()` of the site; None where it has no grid.
        data: name of the data set.
        fingerprint: of the data set.
        dtype: `float16`, `bfloat16` or `float32`.
        n_items: samples in the data set (unreadable ones included).
        tokens_per_item: rows kept of each sample.
        factors: factor -> values, in the data set's order.
        collected: of a pipeline: how it ran, and from which steps and branches every sample brings tokens.
    """

    model: str
    revision: str
    site: Site
    policy: TokenPolicy
    preprocessing: dict[str, Any]
    geometry: dict[str, Any] | None
    data: str
    fingerprint: str
    dtype: str
    n_items: int
    tokens_per_item: int
    factors: dict[str, list[str]]
    collected: Collection | None = None

    @classmethod
    def describe(
        cls,
        model: AdaptedModel | AdaptedPipeline,
        site: Site,
        data: Data,
        policy: TokenPolicy,
        dtype: str | torch.dtype,
        collected: Collection | None = None,
    ) -> "StoreMeta":
        """Meta of the rows that these ingredients would make.

        Raises:
            ValueError: if the data set is empty, the policy keeps nothing or the dtype is unknown.
        """
        if len(data) == 0:
            raise ValueError(f"the data set {data.name} has no images or prompts: there is nothing to extract")
        return cls(
            model=model.id,
            revision=model.revision,
            site=site,
            policy=policy,
            preprocessing=_plain(model.preprocessing) if isinstance(model, AdaptedModel) else {},
            geometry=_plain(model.geometry(site).to_dict()) if site.grid else None,
            data=data.name,
            fingerprint=data.fingerprint,
            dtype=dtype_name(dtype),
            n_items=len(data),
            tokens_per_item=policy.count(site.token_kinds) * (len(collected.slots) if collected else 1),
            factors={name: list(values) for name, values in data.factors.items()},
            collected=collected,
        )

    @property
    def d(self) -> int:
        """Length of a row."""
        return self.site.d

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return DTYPES[self.dtype]

    def column(self, name: str) -> np.ndarray | None:
        """`step`, `sigma` or `branch` of every row of a sample, `[t]`; None for models that see images."""
        if self.collected is None:
            return None
        return self.collected.column(name, self.tokens_per_item // len(self.collected.slots))

    @property
    def bytes_per_item(self) -> int:
        """Bytes of the activations kept of one sample."""
        return self.tokens_per_item * self.d * self.torch_dtype.itemsize

    def place(self) -> Geometry | None:
        """The site's geometry, None where it has no grid."""
        return Geometry.from_dict(self.geometry) if self.geometry else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        plain = {**vars(self), "site": self.site.to_dict(), "policy": self.policy.to_dict()}
        plain |= {"collected": self.collected.to_dict() if self.collected else None}
        return _plain({key: value for key, value in plain.items() if key != "collected" or value})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "StoreMeta":
        """Reverse of `to_dict`."""
        known = {"site": Site.from_dict(data["site"]), "policy": TokenPolicy.from_dict(data["policy"])}
        if "collected" in data:
            known["collected"] = Collection.from_dict(data["collected"])
        return cls(**{**data, **known})

    @property
    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 over everything above but the data set's name and packages' versions."""
        told = self._decisive()
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "StoreMeta") -> list[str]:
        """Lines `what: ours -> theirs` for everything that differs and counts for the content hash."""
        return list(_differences(self._decisive(), other._decisive(), ""))

    def _decisive(self) -> dict[str, Any]:
        """What counts for the content hash."""
        told = {key: value for key, value in self.to_dict().items() if key != "data"}
        if "collected" in told:
            told["collected"].pop("versions")
        return told


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON (tuples become lists), so that hashes agree before and after a save."""
    return json.loads(json.dumps(value))


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted({*ours, *theirs}):
            found += _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if ours == theirs else [f"{path}: {_short(ours)} -> {_short(theirs)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
