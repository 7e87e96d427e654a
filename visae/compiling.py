"""Hooks and `torch.compile`: networks that are compiled already ignore new hooks, so they are refused."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

F = TypeVar("F", bound=Callable[..., Any])


def refuse_compiled(module: nn.Module, path: str = "") -> None:
    """Raises ValueError where a module, or one on the way down to `path`, is compiled: hooks would be ignored there."""
    parts = path.split(".") if path else []
    for depth in range(len(parts) + 1):
        walked = ".".join(parts[:depth]) or "the model"
        current = module.get_submodule(".".join(parts[:depth]))
        if type(current).__name__ == "OptimizedModule":
            raise ValueError(
                f"{walked} is compiled (torch.compile), so taps would be ignored or force a recompile; "
                "pass the module from before compiling, which is model._orig_mod"
            )
        if getattr(current, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{walked} is compiled in place (module.compile()), so taps would be ignored; pass a "
                "module that was not compiled, e.g. a copy.deepcopy from before module.compile()"
            )
        if any(hasattr(vars(current).get(name), "_torchdynamo_orig_callable") for name in ("forward", "_old_forward")):
            raise ValueError(
                f"the forward of {walked} is compiled (torch.compile(module.forward)), so taps would be ignored; "
                "put the original back: del module.forward"
            )
        if isinstance(current, torch.jit.ScriptModule):
            raise ValueError(
                f"{walked} is a TorchScript module, whose inside cannot be tapped; pass the Python module "
                "from before torch.jit.script or torch.jit.trace"
            )


def shielded(hook: F, lasting: bool) -> F:
    """The hook itself; a lasting one as `torch.compile` leaves it out of its graphs, so that what it reads is new."""
    return torch.compiler.disable(hook) if lasting else hook  # type: ignore[no-any-return]
