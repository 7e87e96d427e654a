"""Random numbers of a run, kept apart from the caller's and from those of other runs in the same process."""

from types import TracebackType

import torch
from torch import Tensor


class Randomness:
    """Context in which torch draws from a stream of its own, which goes on where the last use left it.

    Args:
        seed: of the stream, as `torch.manual_seed` would start it.
        device: draws on this device and on the CPU are kept apart.
    """

    def __init__(self, seed: int, device: torch.device):
        self._devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self._inside = [torch.Generator(device).manual_seed(seed).get_state() for device in self._devices]
        self._outside: list[Tensor] = []

    def __enter__(self) -> None:
        self._outside = self._exchange(self._inside)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = self._exchange(self._outside)

    def _exchange(self, states: list[Tensor]) -> list[Tensor]:
        """Sets torch's states and returns those that they replace."""
        before = []
        for device, state in zip(self._devices, states, strict=True):
            if device.type == "cuda":
                before.append(torch.cuda.get_rng_state(device))
                torch.cuda.set_rng_state(state, device)
            else:
                before.append(torch.get_rng_state())
                torch.set_rng_state(state)
        return before
