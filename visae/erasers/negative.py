"""The concept as negative prompt, the baseline that needs nothing but guidance."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from visae.clock import shadowed
from visae.erasers.base import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.calls import catch
from visae.pipelines import AdaptedPipeline


@dataclass(frozen=True)
class NegativePrompt(Method):
    """Guides away from the concept (Ho & Salimans, "Classifier-free diffusion guidance", 2022).

    In `out = e(x, negative) + g (e(x, prompt) - e(x, negative))` the negative prompt is the concept, before any that a
    run has already. It acts on runs by `AdaptedPipeline.generate`, and only while they are guided.
    """

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`; needs a pipeline that takes negative prompts and is guided as it is called."""
        name = type(pipeline.pipe).__name__
        if "negative_prompt" not in inspect.signature(type(pipeline.pipe).__call__).parameters:
            raise Unsuitable(f"{name} takes no negative prompt; take a method that changes weights or activations")
        caught = catch(pipeline, [request.concept], [0], **{**request.given, "negative": request.concept})
        if set(caught.step.branch) == {"none"}:
            raise Unsuitable(
                f"{name} runs without guidance here, so a negative prompt would change nothing (is it distilled?); set "
                "its guidance scale above 1 (true_cfg_scale for FLUX), or take a method that changes weights"
            )

        @contextmanager
        def enter() -> Iterator[None]:
            with shadowed(pipeline, "generate", _without(pipeline, request.concept)):
                yield

        return Erasure(enter, self.settings)


METHODS.register("negative_prompt")(NegativePrompt())


def _without(pipeline: AdaptedPipeline, concept: str) -> Callable[..., Any]:
    def generate(original: Callable[..., Any], *args: Any, negative: str | None = None, **more: Any) -> Any:
        known = {**pipeline.options, **more}.get("negative_prompt") if negative is None else negative
        more.pop("negative_prompt", None)
        images = original(*args, negative=f"{concept}, {known}" if known else concept, **more)
        if getattr(pipeline.pipe, "do_classifier_free_guidance", None) is False:
            raise ValueError(
                f"{type(pipeline.pipe).__name__} ran without guidance, so the negative prompt {concept!r} had no "
                "effect; set its guidance scale above 1"
            )
        return images

    return generate
