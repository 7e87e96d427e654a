"""Unified concept editing: keys and values of the text rewritten in closed form.

Gandikota et al., "Unified concept editing in diffusion models", 2024, equation 7 with the regularisation of its code:
for a layer W that reads text tokens, with c the tokens of what is erased, g those of what stands in for it, and r those
of what is preserved, the minimiser of

    erase sum |W' c - W g|^2 + preserve sum |W' r - W r|^2 + ridge |W' - W|^2

is W' = W A B^-1 with A = ridge I + erase sum g c^T + preserve sum r r^T and B the same with c c^T.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.calls import catch, predicted
from visae.erasers.weights import swapped
from visae.first_calls import FirstCall
from visae.pipelines import AdaptedPipeline

READERS = ("to_k", "to_v", "add_k_proj", "add_v_proj")
"""How layers that make keys and values are called in diffusers."""


@dataclass(frozen=True)
class ClosedForm(Method):
    """Unified concept editing (UCE), see the module.

    Tokens are matched place by place, with the padding, as in the paper's code: what concept and stand-in have in
    common before they differ asks for no change. Pairs of the request are erased like the concept, its retain prompts
    preserved. The defaults are those of the paper's code.

    Attributes:
        guide: what stands in for the concept; empty for no words at all.
        erase: weight of the concept.
        preserve: weight of the retain prompts.
        ridge: weight of staying close.
    """

    guide: str = ""
    erase: float = 1.0
    preserve: float = 1.0
    ridge: float = 0.5

    @torch.no_grad()
    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; needs layers that read the text alone, i.e. cross-attention."""
        module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
        names, given = text_layers(pipeline, request), dict(request.given)
        if not names:
            raise Unsuitable(
                f"{type(module).__name__} has no cross-attention: none of its layers makes keys or values of the text "
                "alone, so there is no closed form; take a method that changes other weights, or activations"
            )
        edits = [(request.concept, self.guide), *request.pairs]
        concept = text_inputs(pipeline, names, [old for old, _ in edits], tools.batch, given)
        guide = text_inputs(pipeline, names, [new for _, new in edits], tools.batch, given)
        kept = text_inputs(pipeline, names, request.retain, tools.batch, given)
        new = {}
        for name in names:
            weight = module.get_submodule(name).get_parameter("weight")
            c, g = concept[name], guide[name]
            r = kept.get(name, c[:0])
            new[f"{name}.weight"] = self.solve(weight, c, g, r).to(weight)
        return Erasure(lambda: swapped(module, new), self.settings, {"layers": names})

    def solve(self, weight: Tensor, concept: Tensor, guide: Tensor, kept: Tensor) -> Tensor:
        """The new weights `[out, d]` in float64.

        Args:
            weight: `[out, d]`.
            concept: tokens `[m, d]` of what is erased.
            guide: tokens `[m, d]` of what stands in.
            kept: tokens `[n, d]` of what is preserved.
        """
        c, g, r = concept.double(), guide.double(), kept.double()
        same = self.ridge * torch.eye(c.shape[1], dtype=c.dtype, device=c.device) + self.preserve * r.T @ r
        a, b = same + self.erase * g.T @ c, same + self.erase * c.T @ c
        return weight.double() @ torch.linalg.solve(b, a.T).T


METHODS.register("uce")(ClosedForm())


def text_layers(pipeline: AdaptedPipeline, request: Request) -> list[str]:
    """Names, inside the denoiser, of the layers that make keys and values of the text alone.

    They are those whose input for a prompt is the same for another noise at another noise level; empty where text and
    image are mixed at once.
    """
    module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
    found = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in READERS
    ]
    given = {**request.given, "steps": 2}
    first, last = (
        _inputs(module, found, catch(pipeline, [request.concept], [request.seed + index], index, **given).asked)
        for index in (0, 1)
    )
    return [name for name in found if name in first and torch.allclose(first[name], last[name], rtol=1e-4, atol=1e-5)]


def text_inputs(
    pipeline: AdaptedPipeline, names: Iterable[str], prompts: Sequence[Any], batch: int, given: dict[str, Any]
) -> dict[str, Tensor]:
    """Tokens `[n, d]` of all prompts that layers of the denoiser read, by the layers' names."""
    module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        for name, tokens in _inputs(module, names, catch(pipeline, some, [0] * len(some), **given).asked).items():
            parts.setdefault(name, []).append(tokens.flatten(0, -2))
    return {name: torch.cat(tokens) for name, tokens in parts.items()}


@torch.no_grad()
def _inputs(module: nn.Module, names: Iterable[str], call: FirstCall) -> dict[str, Tensor]:
    """What layers read in a call, `[n, t, d]` in float64."""
    seen: dict[str, Tensor] = {}
    with _watched(module, names, seen):
        predicted(module, call)
    return seen


@contextmanager
def _watched(module: nn.Module, names: Iterable[str], seen: dict[str, Tensor]) -> Iterator[None]:
    def note(name: str, tokens: Tensor) -> None:
        seen[name] = tokens.double()

    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
