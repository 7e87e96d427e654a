"""What adapters share: weights from files, and errors that name the cure where weights cannot be had."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from visae.framing import describe, read_transform
from visae.model import AdaptedModel, Request

WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "module")
"""Keys under which training scripts keep the weights inside a checkpoint."""


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Loads weights from a safetensors file, or from a torch file of plain tensors (nothing is unpickled).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file's names and shapes are not those of the module.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: checkpoint= takes a local .safetensors or torch file")
    weights: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    while key := next((k for k in WRAPPERS if isinstance(weights.get(k), Mapping)), None):
        weights = weights[key]
    weights = {name.removeprefix("module."): value for name, value in weights.items() if isinstance(value, Tensor)}
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not hold the weights of {type(module).__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(shapes)} of another shape {sorted(shapes)[:3]}; "
            "check the model's name and image_size"
        )
    module.load_state_dict(weights)


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Turns whatever a library raises when it cannot get published weights into one error that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the published weights of {name} cannot be had ({first}). Without network, pass pretrained=False for "
            "random weights, or checkpoint=FILE for weights on this machine"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back the warning of a library that weights are random, where the caller asked for just that."""
    root, seen = logging.getLogger(), lambda record: record.levelno >= logging.ERROR
    root.addFilter(seen)
    try:
        yield
    finally:
        root.removeFilter(seen)


def from_transform(
    request: Request,
    family: str,
    module: nn.Module,
    transform: Callable[..., Tensor],
    call: Callable[[Tensor], Any],
    tower: nn.Module,
    **more: Any,
) -> AdaptedModel:
    """An adapted model whose framing is read from its image transform (the caller's, where one is given)."""
    used = request.transform or transform
    reading = read_transform(used)
    if request.checkpoint:
        load_weights(module, request.checkpoint)
    return AdaptedModel(
        id=f"{family}:{request.name}", module=module, framing=reading.framing,
        preprocessing=describe(reading.framing, reading.details), transform=used, call=call, tower=tower, **more,
    )  # fmt: skip


def refuse_options(family: str, options: Mapping[str, Any], known: str) -> None:
    """Raises ValueError for options that a family does not understand."""
    if options:
        raise ValueError(f"family {family!r} does not understand {', '.join(sorted(options))}; it takes {known}")
