"""Weights of a module exchanged or trained for a while, and put back as they were."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from visae.erasers.base import Unsuitable


@contextmanager
def swapped(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts other values into parameters of a module; afterwards the very tensors that were there are back.

    Args:
        module: the module.
        weights: name of a parameter -> its values inside the `with`.

    Raises:
        Unsuitable: if the weights lie elsewhere (offload).
    """
    own = _present(module, weights)
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = weights[name].to(parameter.data)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]


@contextmanager
def learning(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Lets some parameters of a module learn, in copies of their values, and no others.

    Afterwards all values, gradients and flags are what they were.

    Args:
        module: the module.
        names: of the parameters that learn.

    Yields:
        Those parameters by name.

    Raises:
        Unsuitable: if the weights lie elsewhere (offload).
    """
    own = _present(module, list(names))
    everything = list(module.parameters())
    before = {name: parameter.data for name, parameter in own.items()}
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in everything]
    try:
        for parameter in everything:
            parameter.requires_grad_(False)
        for parameter in own.values():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
            parameter.grad = None
        yield own
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def _present(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    known = dict(module.named_parameters())
    own = {name: known[name] for name in names}
    if any(parameter.is_meta for parameter in own.values()):
        raise Unsuitable(
            f"weights of {type(module).__name__} are offloaded, so they cannot be changed in place; load the pipeline "
            "without offload, or take a method that changes activations"
        )
    return own
