"""How a pipeline calls its parts, seen in a run that stops where the denoiser would start; and how runs are stopped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.readings import arguments


@dataclass(frozen=True)
class FirstCall:
    """What a part was called with the first time.

    Attributes:
        arguments: by name, in the order of the part's signature.
    """

    arguments: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments; the first is what the part works on."""
        return [value for value in self.arguments.values() if isinstance(value, Tensor)]

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> "FirstCall":
        """The same call with every tensor changed, given the name under which it was passed."""
        return FirstCall(_mapped("", self.arguments, change))


class Stopped(BaseException):
    """Ends a generation of which no more is needed; no pipeline handles this one as an error of its own."""


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Runs a pipeline without its progress bar; a run that was stopped ends here, its offloaded parts put away."""
    bar = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    except Stopped:
        pipe.maybe_free_model_hooks()
    finally:
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar


def first_calls(pipe: Any, names: Sequence[str], denoiser: str, request: dict[str, Any]) -> dict[str, FirstCall]:
    """Starts a generation, notes how each part is called first, and stops it when the denoiser is reached.

    Args:
        pipe: the diffusers pipeline.
        names: its parts.
        denoiser: the one that ends it.
        request: arguments of the pipeline's call.

    Raises:
        RuntimeError: if the pipeline never called its denoiser.
    """
    seen: dict[str, FirstCall] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(name, FirstCall(arguments(module, args, kwargs)))
        if name == denoiser:
            raise Stopped

    handles = [
        getattr(pipe, name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: note(name, module, args, kwargs), with_kwargs=True
        )
        for name in names
    ]
    try:
        with torch.random.fork_rng(devices=[]), quiet(pipe):
            pipe(**request)
    finally:
        for handle in handles:
            handle.remove()
    if denoiser not in seen:
        raise RuntimeError(
            f"{type(pipe).__name__} made an image without calling {denoiser}: its sites cannot be traced"
        )
    return seen


def _mapped(name: str, value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return {key: _mapped(str(key), item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(name, item, change) for item in value)
    return value
