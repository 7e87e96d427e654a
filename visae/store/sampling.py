"""How tokens are collected from a pipeline: what the user asks for, and what a pipeline makes of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

Mode = Literal["generate", "noise", "text"]


@dataclass(frozen=True)
class Sampling:
    """What is asked of a pipeline.

    Attributes:
        mode: `generate` collects while images are made from prompts, `noise` from given images with noise added at
            every collected timestep (one call of the denoiser each), `text` from the text encoders alone.
        steps: denoising steps; None takes the pipeline's default.
        guidance: guidance scale; None takes the pipeline's default.
        negative: negative prompt of all images.
        collect: places among the distinct timesteps, from 0, or from -1 backwards; empty collects all.
        branch: of guidance: tokens of the prompt, of the negative prompt, or both; a run without guidance has one.
        options: what else the pipeline's call understands, e.g. `{"max_sequence_length": 128}`.
    """

    mode: Mode = "generate"
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    collect: tuple[int, ...] = ()
    branch: Literal["cond", "uncond", "both"] = "cond"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """One of the places from which every item brings tokens.

    Attributes:
        step: place among the distinct timesteps, from 0; -1 for text encoders.
        timestep: in the scheduler's own unit; NaN for text encoders.
        sigma: noise level, see `visae.clock`; NaN for text encoders.
        branch: a number of `visae.clock.CODES`.
    """

    step: int
    timestep: float
    sigma: float
    branch: int


@dataclass(frozen=True)
class Collection:
    """What a pipeline makes of a `Sampling`: everything of it that decides rows, for stores and cards.

    Attributes:
        mode: see `Sampling`.
        pipeline: class of the pipeline.
        scheduler: class and configuration.
        steps: denoising steps.
        guidance: guidance scale; None where the pipeline has none.
        negative: see `Sampling`.
        branch: see `Sampling`.
        options: see `Sampling`.
        scale: what sigma means, see `visae.clock`.
        image_hw: height and width of the images in pixels.
        slots: where every item brings tokens from; steps rise, of one step the unconditional branch comes first.
        versions: of the packages that ran; told, but not part of what decides.
    """

    mode: Mode
    pipeline: str
    scheduler: dict[str, Any]
    steps: int
    guidance: float | None
    negative: str | None
    branch: str
    options: dict[str, Any]
    scale: str
    image_hw: tuple[int, int]
    slots: tuple[Slot, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """Number of the slot of a step and a branch."""
        return {(slot.step, slot.branch): number for number, slot in enumerate(self.slots)}

    @property
    def timed(self) -> bool:
        """Whether tokens have a noise level."""
        return self.mode != "text"

    def column(self, name: str, tokens: int) -> np.ndarray:
        """`step`, `sigma` or `branch` of every row of an item that brings so many tokens from every slot, `[t]`."""
        dtype = {"step": np.int16, "sigma": np.float32, "branch": np.int8}[name]
        return np.repeat(np.array([getattr(slot, name) for slot in self.slots], dtype), tokens)

    def arguments(self) -> dict[str, Any]:
        """Of `AdaptedPipeline.generate`."""
        given = {"steps": self.steps, "guidance": self.guidance, "negative": self.negative}
        return {name: value for name, value in given.items() if value is not None} | self.options

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is not a number is null."""
        slots = [{k: None if v != v else v for k, v in asdict(slot).items()} for slot in self.slots]
        return {**asdict(self), "image_hw": list(self.image_hw), "slots": slots}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Collection":
        """Reverse of `to_dict`."""
        slots = (Slot(**{k: float("nan") if v is None else v for k, v in slot.items()}) for slot in data["slots"])  # type: ignore[arg-type]
        return cls(**{**data, "image_hw": tuple(data["image_hw"]), "slots": tuple(slots)})
