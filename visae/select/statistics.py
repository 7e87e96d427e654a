"""`PromptStatistics`: what a dictionary's codes are on prompts, noise level by noise level; all that selections ask."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from visae.data.sample import Prompt
from visae.levels import at_level
from visae.registry import UnknownName
from visae.select.files import read_described, write_described

Table = Literal["mean", "rms", "largest", "fired"]

TABLES: tuple[Table, ...] = ("mean", "rms", "largest", "fired")
"""Tables of the statistics."""

FORMAT = "visae prompt statistics"


@dataclass(frozen=True, eq=False)
class PromptStatistics:
    """Codes of prompts, over the tokens that were collected of each at each noise level.

    A column is a latent, or for a signed dictionary a latent with a sign: columns F to 2F - 1 are the sizes of negative
    codes. Tables are kept in float16 where it can hold them; whatever is computed of them is float32.

    Attributes:
        prompts: P prompts, with their labels.
        levels: S noise levels (sigma, see `visae.clock`) in the order of the run; NaN where there is none, as for text
            encoders and for models that see images.
        mean: `[P, S, columns]` mean over tokens, silent ones counting as 0.
        rms: `[P, S, columns]` root of the mean square over tokens.
        largest: `[P, S, columns]` over tokens.
        fired: `[P, S, columns]` share of tokens in which the latent fires.
        n_latents: F.
        identity: what decides the tables beside the prompts: dictionary, model, site, tokens, how the pipeline ran.
    """

    prompts: tuple[Prompt, ...]
    levels: tuple[float, ...]
    mean: Tensor = field(repr=False)
    rms: Tensor = field(repr=False)
    largest: Tensor = field(repr=False)
    fired: Tensor = field(repr=False)
    n_latents: int
    identity: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape = len(self.prompts), len(self.levels), self.columns
        wrong = [name for name in TABLES if tuple(getattr(self, name).shape) != shape]
        if wrong or self.columns not in (self.n_latents, 2 * self.n_latents):
            came = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in TABLES)
            raise ValueError(
                f"statistics of {shape[0]} prompts at {shape[1]} levels and {self.n_latents} latents need tables of "
                f"that shape (twice as many columns where codes are signed); got {came}"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def columns(self) -> int:
        """F, or 2F for a signed dictionary."""
        return self.mean.shape[-1]

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over the identity and the prompts."""
        told = [self.identity, [[one.text, one.seed] for one in self.prompts]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def side(self, column: int) -> tuple[int, int]:
        """Latent and sign of a column."""
        return column % self.n_latents, 1 if column < self.n_latents else -1

    def one_level(self, table: Table, level: int) -> Tensor:
        """`[P, columns]` float32 of one level, by its place."""
        return getattr(self, table)[:, level].float()

    def average(self, table: Table) -> Tensor:
        """`[S, columns]` float32: mean over the prompts, each counting as much."""
        return torch.mean(getattr(self, table), dim=0, dtype=torch.float32)

    def __getitem__(self, places: Sequence[int]) -> Self:
        """Statistics of some of the prompts, in that order."""
        index = torch.as_tensor(places, dtype=torch.int64)
        prompts = tuple(self.prompts[i] for i in index.tolist())
        return self._with(lambda table: table[index], prompts=prompts)

    def split(self, factor: str, value: str) -> tuple[Self, Self]:
        """Prompts that ask for a value of a factor, and those that ask for other values of it; the rest is left out.

        Raises:
            UnknownName: for a factor or value of no prompt.
            ValueError: if no prompt asks for another value.
        """
        asked = [one.labels.get(factor, ()) for one in self.prompts]
        if not any(asked):
            raise UnknownName("factor of these prompts", factor, {name for one in self.prompts for name in one.labels})
        target = [i for i, values in enumerate(asked) if value in values]
        if not target:
            raise UnknownName(f"value of {factor} in these prompts", value, {v for values in asked for v in values})
        retain = [i for i, values in enumerate(asked) if values and value not in values]
        if not retain:
            raise ValueError(f"every prompt with a {factor} asks for {value}: collect prompts that ask for others, too")
        return self[target], self[retain]

    def at(self, levels: Sequence[float]) -> Self:
        """The tables at other noise levels, so that a table made in 50 steps serves 20.

        Between two levels each table is interpolated linearly in log sigma; beyond the first and the last that one
        stands. Tables without a noise level are the same at every one.
        """
        known, each = torch.tensor(self.levels), torch.eye(len(self.levels))
        shares = [at_level(known, each, float(level)) for level in levels]

        def between(table: Tensor) -> Tensor:
            parts = [[table[:, s].float() * share[s] for s in share.nonzero().flatten().tolist()] for share in shares]
            return torch.stack([torch.stack(near).sum(0) for near in parts], dim=1).to(table.dtype)

        return self._with(between, levels=tuple(float(level) for level in levels))

    def between(self, low: float, high: float) -> Self:
        """Statistics of the noise levels from `low` to `high`.

        Raises:
            ValueError: if there is none.
        """
        places = [s for s, level in enumerate(self.levels) if low <= level <= high]
        if not places:
            raise ValueError(
                f"no noise level lies between {low:g} and {high:g}; these statistics have "
                f"{', '.join(f'{level:.3g}' for level in self.levels)}"
            )
        return self._with(lambda table: table[:, places], levels=tuple(self.levels[s] for s in places))

    def pooled(self) -> Self:
        """Statistics over all levels together, as of one level; every level counts as much."""
        if len(self.levels) == 1:
            return self
        tables = {
            "mean": self.mean.float().mean(1, keepdim=True),
            "rms": self.rms.float().square().mean(1, keepdim=True).sqrt(),
            "largest": self.largest.amax(1, keepdim=True),
            "fired": self.fired.float().mean(1, keepdim=True),
        }
        same = {name: table.to(getattr(self, name).dtype) for name, table in tables.items()}
        return replace(self, levels=(math.nan,), **same)  # type: ignore[arg-type]

    @classmethod
    def cat(cls, parts: Sequence["PromptStatistics"]) -> "PromptStatistics":
        """Prompts of several statistics, one after another.

        Raises:
            ValueError: if they are of different dictionaries, sites, runs or noise levels.
        """
        first = parts[0]
        for part in parts[1:]:
            if part.identity != first.identity or not same_levels(part.levels, first.levels):
                raise ValueError(
                    "statistics of different dictionaries, sites or runs cannot be joined: "
                    f"{first.identity or first.levels} and {part.identity or part.levels}"
                )
        tables = {name: torch.cat([getattr(part, name) for part in parts]) for name in TABLES}
        prompts = tuple(one for part in parts for one in part.prompts)
        return replace(first, prompts=prompts, **tables)  # type: ignore[arg-type]

    def save(self, path: str | Path) -> None:
        """Writes JSON at `path` and the tables in a safetensors file beside it, both whole or not at all."""
        told = {
            "format": FORMAT,
            "version": 1,
            "n_latents": self.n_latents,
            "levels": [None if math.isnan(level) else level for level in self.levels],
            "identity": self.identity,
            "prompts": [vars(one) for one in self.prompts],
        }
        write_described(Path(path), told, {name: getattr(self, name) for name in TABLES})

    @classmethod
    def load(cls, path: str | Path) -> "PromptStatistics":
        """Reads what `save` wrote.

        Raises:
            ValueError: for another file, or a damaged one.
        """
        told, tables = read_described(Path(path))
        if told.get("format") != FORMAT or told.get("version") != 1:
            raise ValueError(f"{path} holds no prompt statistics of this version of visae: collect them again")
        levels = tuple(math.nan if level is None else float(level) for level in told["levels"])
        prompts = tuple(
            Prompt(**{**one, "labels": {factor: tuple(v) for factor, v in one["labels"].items()}})
            for one in told["prompts"]
        )
        return cls(prompts, levels, **tables, n_latents=told["n_latents"], identity=told["identity"])

    def _with(self, change: Callable[[Tensor], Tensor], **others: Any) -> Self:
        """The same with every table changed alike."""
        return replace(self, **{name: change(getattr(self, name)) for name in TABLES}, **others)  # type: ignore[arg-type]


def same_levels(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether noise levels are the same ones, missing ones (NaN) included."""
    return len(some) == len(others) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(some, others, strict=True)
    )


def narrowed(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tables in float16, or as they are where a code is too large for it."""
    most = torch.finfo(torch.float16).max
    return {name: table.half() if float(table.max()) < most else table for name, table in tables.items()}
