"""Calls of a pipeline's denoiser: caught in a run, cut to some rows, asked again with another prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visae.clock import Step
from visae.emerging import prediction
from visae.erasers.base import Unsuitable
from visae.first_calls import FirstCall
from visae.pipelines import AdaptedPipeline
from visae.store.probing import first_call


@dataclass(frozen=True)
class Caught:
    """What the denoiser was called with.

    Attributes:
        step: where the run was.
        call: the arguments.
    """

    step: Step
    call: FirstCall

    @property
    def asked(self) -> FirstCall:
        """The call's rows that follow the prompt: those of the branch `cond`, or all of a run without guidance."""
        return self.cut(*self.step.asked)

    @property
    def unasked(self) -> FirstCall | None:
        """The call's rows that follow the negative prompt; None where this call has none."""
        found = self.step.rows("uncond")
        return self.cut(*found) if found else None

    def cut(self, *rows: int) -> FirstCall:
        """The call with these rows of the batch alone.

        Raises:
            Unsuitable: if the pipeline has more than two branches, whose attention takes the batch apart.
        """
        n, wanted = len(self.step.branch), list(rows)
        if len(set(self.step.branch)) > 1 and "none" in self.step.branch:
            raise Unsuitable(
                "this pipeline's batch has a third branch (perturbed attention guidance), and its attention works on "
                "all of them at once only; switch that off, or take a method that changes activations"
            )
        if wanted == list(range(n)):
            return self.call
        return self.call.mapped(lambda _, value: value[wanted] if value.dim() and value.shape[0] == n else value)


def catch(
    pipeline: AdaptedPipeline, prompts: Sequence[Any], seeds: Sequence[int], index: int = 0, **given: Any
) -> Caught:
    """The first call of the denoiser at a step that has rows of the prompts, in a run that ends there.

    Args:
        pipeline: the pipeline.
        prompts: as the pipeline takes them.
        seeds: one of every prompt.
        index: place of the step among the distinct timesteps, from 0.
        given: further arguments of `AdaptedPipeline.generate`.

    Raises:
        ValueError: if the run has no such step.
    """
    with torch.no_grad():
        return Caught(*first_call(pipeline, prompts, seeds, given, lambda now: now.index == index and bool(now.asked)))


class Prompted:
    """What of the denoiser's arguments a prompt decides: embeddings, masks, numbers of classes.

    Found by comparing two calls that differ in nothing but the prompt, so that it holds for any denoiser.

    Args:
        pipeline: the pipeline.
        prompt: as the pipeline takes it.
        given: further arguments of `AdaptedPipeline.generate`.
    """

    def __init__(self, pipeline: AdaptedPipeline, prompt: Any, given: dict[str, Any]):
        other = catch(pipeline, [_another(prompt)], [0], **given).asked
        mine = catch(pipeline, [prompt], [0], **given).asked
        pairs = zip(_leaves(mine), _leaves(other), strict=True)
        self._texts = {
            place: own for place, (own, its) in enumerate(pairs) if own.shape != its.shape or not torch.equal(own, its)
        }

    def into(self, call: FirstCall) -> FirstCall:
        """A call, whose rows all belong to images, with this prompt in place of theirs."""
        rows, place = call.tensors[0].shape[0], -1

        def change(_name: str, value: Tensor) -> Tensor:
            nonlocal place
            place += 1
            if place not in self._texts:
                return value
            text = self._texts[place].to(value)
            return text.expand(rows, *text.shape[1:]) if text.dim() and text.shape[0] == 1 else text

        return call.mapped(change)


def predicted(module: nn.Module, call: FirstCall) -> Tensor:
    """What a denoiser gives for a call, `[n, ...]`, without learned variances; hooks on the denoiser stay out of it."""
    return prediction(module.forward(**call.arguments)[0], call.tensors[0])


def _another(prompt: Any) -> Any:
    """A prompt that asks for something else."""
    if str(prompt).isdigit():
        return "1" if int(prompt) == 0 else "0"
    return "" if prompt else "a"


def _leaves(call: FirstCall) -> list[Tensor]:
    found: list[Tensor] = []

    def note(_name: str, value: Tensor) -> Tensor:
        found.append(value)
        return value

    call.mapped(note)
    return found
