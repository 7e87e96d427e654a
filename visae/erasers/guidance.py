"""Safe latent diffusion: guidance away from a concept, only where the image is about to show it.

Schramowski et al., "Safe Latent Diffusion: mitigating inappropriate degeneration in diffusion models", 2023 (numbers of
its equations in brackets). With e(x, .) the denoiser's output for the prompt p, for the concept S and for the negative
prompt or none,

    phi   = scale (e(x, p) - e(x, S))                                                             [6]
    mu    = min(1, |phi|) where e(x, p) - e(x, S) < threshold, else 0                             [5]
    gamma = mu (e(x, S) - e(x)) + momentum nu                                                     [4, 7]
    nu   <- decay nu + (1 - decay) gamma                                                          [8]
    out   = e(x) + g (e(x, p) - e(x) - gamma), without gamma while warming up                     [3]

(Equation 5 has max in print; the authors' code and text bound it by 1.) Everything is linear in the outputs, so that it
holds for predictions of noise, v and flow alike.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.clock import StepClock, shadowed
from visae.emerging import prediction
from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.calls import Caught, Prompted, catch, predicted
from visae.first_calls import FirstCall
from visae.pipelines import AdaptedPipeline
from visae.readings import arguments


@dataclass(frozen=True)
class SafeGuidance(Method):
    """Safe latent diffusion, see the module; the defaults are the paper's configuration `medium`.

    It costs a call of the denoiser with one row of every image at every step.

    Attributes:
        scale: of the difference between prompt and concept.
        threshold: differences above it are left alone.
        warmup: share of the steps without effect (the paper gives steps of 50).
        momentum: how much of the running mean is added.
        decay: of the running mean.
    """

    scale: float = 1000.0
    threshold: float = 0.01
    warmup: float = 0.2
    momentum: float = 0.3
    decay: float = 0.4

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; needs a pipeline that is guided as it is called."""
        given = dict(request.given)
        if set(catch(pipeline, [request.concept], [0], **given).step.branch) == {"none"}:
            raise Unsuitable(
                f"{type(pipeline.pipe).__name__} runs without guidance here, and safe guidance is a part of it; set "
                "its guidance scale above 1, or take a method that changes weights or activations"
            )
        concept = Prompted(pipeline, request.concept, given)

        @contextmanager
        def enter() -> Iterator[None]:
            with pipeline.clock() as clock, _Guide(self, pipeline, concept, clock).running():
                yield

        return Erasure(enter, self.settings)

    def term(self, prompt: Tensor, blank: Tensor, concept: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken away (gamma) and the next running mean (nu), in float32.

        Args:
            prompt: the denoiser's output for the prompt.
            blank: for the negative prompt or none.
            concept: for the concept.
            nu: the running mean.
        """
        prompt, blank, concept = prompt.float(), blank.float(), concept.float()
        away = prompt - concept
        mu = torch.where(away < self.threshold, (self.scale * away).abs().clamp(max=1), torch.zeros_like(away))
        gamma = mu * (concept - blank) + self.momentum * nu
        return gamma, self.decay * nu + (1 - self.decay) * gamma


METHODS.register("sld")(SafeGuidance())
METHODS.register("sld_strong")(SafeGuidance(2000.0, 0.025, 0.14, 0.5, 0.7))
METHODS.register("sld_max")(SafeGuidance(5000.0, 1.0, 0.0, 0.5, 0.7))


class _Guide:
    """The hooks of one `with`.

    In a batch of both branches gamma is taken from the prompt's rows, before the pipeline combines them. Where prompt
    and negative prompt are two calls, the first has left when the second comes: there gamma is taken from the combined
    output as the scheduler is given it, times g, which is read off the outputs: `out = e(x) + g (e(x, p) - e(x))`.
    """

    def __init__(self, method: SafeGuidance, pipeline: AdaptedPipeline, concept: Prompted, clock: StepClock):
        self.method, self.pipe, self.concept, self.clock = method, pipeline.pipe, concept, clock
        self.module: nn.Module = getattr(pipeline.pipe, pipeline.denoiser.name)
        self.safe: Tensor | None = None
        self.nu = torch.zeros(())
        self.calls: dict[str, Tensor] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as hooks:
            before = self.module.register_forward_pre_hook(self._before, with_kwargs=True)
            hooks.callback(before.remove)
            after = self.module.register_forward_hook(self._after, with_kwargs=True)
            hooks.callback(after.remove)
            hooks.enter_context(shadowed(self.pipe.scheduler, "step", self._step))
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Asks for the concept, before the call itself, so that what is tapped inside is that of the call."""
        caught = Caught(self.clock.now, FirstCall(arguments(module, args, kwargs)))
        branches = set(caught.step.branch)
        if branches == {"none"}:
            raise ValueError(
                f"{type(self.pipe).__name__} runs without guidance, of which safe guidance is a part; set its guidance "
                "scale above 1"
            )
        if caught.step.call == 0:
            self.nu, self.calls = torch.zeros(()), {}
        if "cond" in branches:
            self.safe = predicted(module, self.concept.into(caught.cut(*caught.step.rows("cond"))))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        caught = Caught(self.clock.now, FirstCall(arguments(module, args, kwargs)))
        given = prediction(out[0], caught.call.tensors[0])
        cond, uncond = caught.step.rows("cond"), caught.step.rows("uncond")
        if not (cond and uncond):
            self.calls["cond" if cond else "uncond"] = given
            return None
        gamma = self._gamma(given[cond], given[uncond])
        if gamma is None:
            return None
        changed = out[0].clone()
        prediction(changed, caught.call.tensors[0])[cond] = (given[cond].float() - gamma).to(changed.dtype)
        if isinstance(out, tuple):
            return (changed, *out[1:])
        return type(out)(**{**out, next(iter(out)): changed})

    def _step(self, original: Callable[..., Any], model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        if {"cond", "uncond"} <= self.calls.keys():
            prompt, blank = self.calls.pop("cond"), self.calls.pop("uncond")
            gamma = self._gamma(prompt, blank)
            if gamma is not None:
                apart = prompt.float() - blank.float()
                g = ((model_output.float() - blank.float()) * apart).sum() / apart.square().sum().clamp(min=1e-20)
                model_output = (model_output.float() - g * gamma).to(model_output.dtype)
        return original(model_output, *args, **kwargs)

    def _gamma(self, prompt: Tensor, blank: Tensor) -> Tensor | None:
        """What is to be taken away; None while warming up."""
        assert self.safe is not None
        gamma, self.nu = self.method.term(prompt, blank, self.safe, self.nu.to(self.safe.device))
        now = self.clock.now
        return None if now.index < self.method.warmup * now.count else gamma
