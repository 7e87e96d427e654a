"""What some kinds want to know of a token beside its values: one tensor per name, a row for every token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visae.ops import Group

SIDE: dict[str, tuple[bool, str]] = {
    "sigma": (False, "the noise level at which each was computed; loaders over diffusion models bring it"),
    "other": (True, "the other token of each pair; a loader over pairs brings it"),
}
"""Name to whether a row of it is as long as a token (else it is one number), and what it is and who brings it."""


@dataclass(frozen=True)
class Rows:
    """A batch of tokens with side information; whatever takes such tokens takes this in place of a tensor.

    Attributes:
        rows: `[n, d]` tokens.
        side: name to a tensor whose first length is n; see `SIDE`.
    """

    rows: Tensor
    side: Mapping[str, Tensor]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Of the tokens."""
        return self.rows.shape

    def __getitem__(self, at: Tensor | slice) -> "Rows":
        """Some of the tokens."""
        return Rows(self.rows[at], {name: value[at] for name, value in self.side.items()})


def join(parts: Sequence[Any]) -> Any:
    """Batches one after another: tensors to a tensor, `Rows` to `Rows`."""
    if not isinstance(parts[0], Rows):
        return torch.cat(list(parts))
    names = parts[0].side
    return Rows(torch.cat([p.rows for p in parts]), {name: torch.cat([p.side[name] for p in parts]) for name in names})


def gather(x: Any, group: Group) -> Any:
    """Batches of all processes one after another, like `join`; each is as long."""
    if not isinstance(x, Rows):
        return group.gather(x).flatten(0, 1)
    return Rows(gather(x.rows, group), {name: gather(value, group) for name, value in x.side.items()})


def unpack(
    x: Any, needs: Iterable[str], given: Mapping[str, Tensor] | None = None, who: str = "this dictionary"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens and the side information that is needed of them.

    Args:
        x: tokens `[n, d]`; `Rows`; or a thing with such `rows` and a tensor under each needed name.
        needs: names.
        given: side information given apart; it comes first.
        who: needs it, for the message.

    Raises:
        ValueError: if a name is missing, misshapen or not known, with who brings it.
    """
    rows: Tensor = getattr(x, "rows", x)
    needs, given = tuple(needs), given or {}
    if unknown := given.keys() - set(needs):
        raise ValueError(f"{who} takes {', '.join(needs) or 'nothing'} beside its tokens, got {', '.join(unknown)}")
    if not needs:
        return rows, {}
    carried = x.side if isinstance(x, Rows) else {name: getattr(x, name, None) for name in needs}
    return rows, {name: _checked(name, given.get(name, carried.get(name)), rows, who) for name in needs}


def _checked(name: str, value: Any, rows: Tensor, who: str) -> Tensor:
    long, meaning = SIDE[name]
    shape = list(rows.shape) if long else [rows.shape[0]]
    wanted = f"{who} needs {name} {shape} beside its {rows.shape[0]} tokens: {meaning}"
    if value is None:
        raise ValueError(f"{wanted}. It came without: give a batch with `rows` and `{name}`, or {name}=...")
    value = torch.as_tensor(value, device=rows.device)
    if list(value.shape) != shape or not (value.is_floating_point() or not long):
        raise ValueError(f"{wanted}. Got {value.dtype} {list(value.shape)}")
    return value


def at_sigma(sae: Any, n: int, sigma: float) -> dict[str, Tensor]:
    """Side information of n tokens of one noise level, as `encode` of a dictionary wants it: empty if it does not."""
    return {"sigma": torch.full((n,), sigma).to(sae.mean)} if "sigma" in sae.needs_to_encode else {}
