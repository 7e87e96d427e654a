"""Erased stable diffusion: fine-tuning away from a concept.

Gandikota et al., "Erasing concepts from diffusion models", 2023: with e* the pipeline as it was,

    | e(x, c) - (e*(x) - eta (e*(x, c) - e*(x))) |^2    is made small on images x that the model itself draws of c.

All of it is linear in the outputs, so that it holds for predictions of noise, v and flow alike.
"""

import random
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.calls import Caught, Prompted, catch, predicted
from visae.erasers.closed_form import text_layers
from visae.erasers.weights import learning, swapped
from visae.pipelines import AdaptedPipeline


@dataclass(frozen=True)
class FineTuning(Method):
    """Erased stable diffusion (ESD), see the module; the defaults are the paper's.

    Attributes:
        which: weights that learn: of the `cross` attention to the text (ESD-x, for what a prompt names), all `others`
            (ESD-u, for what may appear unasked), or `all`.
        on: draws images of the `concept` in words, as in the paper, or of the `target` prompts.
        eta: how far beyond the unconditional output the aim lies.
        guidance: of the runs that draw images, where the pipeline is guided.
        iterations: gradient steps, on one image each.
        lr: learning rate of Adam. The paper's is for Stable Diffusion; small models learn little at it.
    """

    which: Literal["cross", "others", "all"] = "cross"
    on: Literal["concept", "target"] = "concept"
    eta: float = 1.0
    guidance: float = 3.0
    iterations: int = 1000
    lr: float = 1e-5

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; `told` has the loss of every iteration."""
        module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
        names, given = self._names(pipeline, request, module), self._given(pipeline, request)
        prompts = (request.concept,) if self.on == "concept" else request.prompts("target")
        first = catch(pipeline, [prompts[0]], [0], **given)
        blank = Prompted(pipeline, "", given) if first.unasked is None else None
        before = {name: module.get_parameter(name).data for name in names}
        draw, losses = random.Random(request.seed), []
        with learning(module, names) as weights:
            optimiser = torch.optim.Adam(weights.values(), lr=self.lr)
            for _ in tqdm(range(self.iterations), desc="fine-tuning", unit="step"):
                prompt, index, seed = draw.choice(prompts), draw.randrange(first.step.count), draw.randrange(2**31)
                caught = catch(pipeline, [prompt], [seed], index, **given)
                with torch.no_grad(), swapped(module, before):
                    aim = self.aim(module, caught, blank)
                with torch.enable_grad():
                    loss = nn.functional.mse_loss(predicted(module, caught.asked), aim)
                    optimiser.zero_grad()
                    loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
            learned = {name: weight.detach().clone() for name, weight in weights.items()}
        return Erasure(lambda: swapped(module, learned), self.settings, {"losses": losses})

    def aim(self, module: nn.Module, caught: Caught, blank: Prompted | None) -> Tensor:
        """What the output for the prompt shall become, by the weights that the module has now.

        Args:
            module: the denoiser.
            caught: a call.
            blank: no words at all, for calls without rows of the negative prompt.
        """
        plain = caught.unasked if blank is None else blank.into(caught.asked)
        assert plain is not None
        free = predicted(module, plain)
        return free - self.eta * (predicted(module, caught.asked) - free)

    def _names(self, pipeline: AdaptedPipeline, request: Request, module: nn.Module) -> list[str]:
        readers = {name.rpartition(".")[0] for name in text_layers(pipeline, request)}
        known = {
            name: any(name.startswith(f"{reader}.") for reader in readers) for name, _ in module.named_parameters()
        }
        wanted = [name for name, cross in known.items() if self.which == "all" or cross == (self.which == "cross")]
        if not wanted:
            raise Unsuitable(
                f"{type(module).__name__} has no cross-attention, i.e. none that reads the text alone, so there are no "
                "weights of that kind to train; take the variant that trains the others, or all"
            )
        return wanted

    def _given(self, pipeline: AdaptedPipeline, request: Request) -> dict[str, Any]:
        """Arguments of the runs that draw images."""
        given = dict(request.given)
        guided = set(catch(pipeline, [request.concept], [0], **given).step.branch) != {"none"}
        if guided and "guidance_scale" in signature(type(pipeline.pipe).__call__).parameters:
            given["guidance"] = self.guidance
        return given


METHODS.register("esd_x")(FineTuning())
METHODS.register("esd_u")(FineTuning("others"))
