"""What a pipeline makes of a `Sampling`, seen in a run that stops before the denoiser."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from visae.clock import CODES, Branch, Step, noise_level, noise_scale
from visae.first_calls import FirstCall, Stopped, quiet
from visae.pipelines import AdaptedPipeline
from visae.readings import arguments
from visae.sites import Site
from visae.store.sampling import Collection, Mode, Sampling, Slot


def collection(model: AdaptedPipeline, site: Site, sampling: Sampling) -> Collection:
    """What a pipeline makes of what is asked: it starts one image and stops at the first call of the denoiser.

    Raises:
        ValueError: for steps or a branch that the run does not have, or a site that does not run in this mode.
    """
    check_site(model, site, sampling.mode)
    pipe = model.pipe
    steps = _default(model, "num_inference_steps", sampling.steps)
    guidance = _default(model, "guidance_scale", sampling.guidance)
    own = ("num_inference_steps", "guidance_scale")
    options = {name: value for name, value in {**model.options, **sampling.options}.items() if name not in own}
    known = {"steps": steps, "guidance": guidance, "negative": sampling.negative}
    given = {name: value for name, value in known.items() if value is not None} | options
    first, _ = first_call(model, ["0"], [0], given)
    timesteps = list(dict.fromkeys(np.asarray(pipe.scheduler.timesteps.detach().cpu(), np.float64).tolist()))
    wanted = _steps(sampling, len(timesteps))
    codes = _branches(sampling, first)
    slots = tuple(Slot(i, timesteps[i], noise_level(pipe.scheduler, timesteps[i]), c) for i in wanted for c in codes)
    if sampling.mode == "text":
        slots = (Slot(-1, float("nan"), float("nan"), CODES["none"]),)
    return Collection(
        mode=sampling.mode,
        pipeline=type(pipe).__name__,
        scheduler={"class": type(pipe.scheduler).__name__, **_plain(pipe.scheduler.config)},
        steps=steps,
        guidance=guidance,
        negative=sampling.negative,
        branch=sampling.branch,
        options=_plain(options),
        scale=noise_scale(pipe.scheduler),
        image_hw=model.framing.input_hw,
        slots=slots,
        versions={"diffusers": version("diffusers"), "torch": torch.__version__.partition("+")[0]},
    )


def first_call(
    model: AdaptedPipeline,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    given: Mapping[str, Any],
    wanted: Callable[[Step], bool] = lambda _: True,
) -> tuple[Step, FirstCall]:
    """The first call of the denoiser that is wanted in a run with these arguments of `generate`, which ends there.

    Raises:
        ValueError: if the run has none.
    """
    caught: list[FirstCall] = []

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        if wanted(clock.now):
            caught.append(FirstCall(arguments(module, args, kwargs)))
            raise Stopped

    denoiser: nn.Module = getattr(model.pipe, model.denoiser.name)
    with model.clock() as clock:
        handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with quiet(model.pipe):
                model.generate(prompts, seeds, **given)
        finally:
            handle.remove()
        if not caught:
            raise ValueError(f"a run of {clock.now.count} distinct timesteps has no such call of {model.denoiser.name}")
        return clock.now, caught[0]


def check_site(model: AdaptedPipeline, site: Site, mode: Mode) -> None:
    """Refuses a site that does not run in a mode of collecting.

    Raises:
        ValueError: if it belongs to a text encoder and the mode is another than `text`, or the reverse.
    """
    part = site.path.partition(".")[0]
    texts = [text.name for text in model.texts]
    if (part in texts) != (mode == "text"):
        what = "the text encoders, which run once: collect them alone (mode 'text')" if part in texts else (
            f"{part}, which the mode 'text' does not run: choose a site of {', '.join(texts) or 'a text encoder'}"
        )  # fmt: skip
        raise ValueError(f"site {site.name!r} belongs to {what}")


def _steps(sampling: Sampling, count: int) -> list[int]:
    wrong = [step for step in sampling.collect if not -count <= step < count]
    if wrong:
        raise ValueError(f"a run of {count} distinct timesteps has steps 0 to {count - 1}, asked to collect {wrong[0]}")
    return sorted({step % count for step in sampling.collect}) or list(range(count))


def _branches(sampling: Sampling, first: Step) -> list[int]:
    """Codes of the branches to collect; a pipeline that calls its denoiser twice shows one of them at first."""
    present: set[Branch] = set(first.branch) - {"none"}
    if not present:
        if sampling.branch == "uncond":
            raise ValueError("this run has no unconditional branch: set guidance above 1, or collect the branch 'cond'")
        return [CODES["none"]]
    names: tuple[Branch, ...] = ("uncond", "cond") if sampling.branch == "both" else (sampling.branch,)
    return [CODES[name] for name in names]


def _default(model: AdaptedPipeline, name: str, given: Any) -> Any:
    """What is given, else what the pipeline is always called with, else its own; None where it takes no such thing."""
    parameters = inspect.signature(type(model.pipe).__call__).parameters
    if given is not None or name not in parameters:
        return given
    default = model.options.get(name, parameters[name].default)
    return None if default is inspect.Parameter.empty else default


def _plain(value: Any) -> Any:
    """A configuration as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # a limit that limits nothing, as in solvers' settings; JSON has no such number
    return value if isinstance(value, str | int | float | bool | None) else str(value)
