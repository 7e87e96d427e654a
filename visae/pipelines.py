"""Adapted pipelines: a diffusers pipeline, its parts by name, their sites, its clock, and images from seeds."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from visae.adapted import Adapted
from visae.clock import Step, StepClock
from visae.compiling import refuse_compiled
from visae.discover import Catalogue
from visae.first_calls import FirstCall, first_calls
from visae.geometry import Framing
from visae.naming import Naming
from visae.registry import UnknownName
from visae.sites import Site
from visae.trace_parts import call_denoiser, latent_grid, trace_denoiser, trace_text


@dataclass(frozen=True)
class Part:
    """A part of a pipeline whose inside can be tapped.

    Attributes:
        name: of the pipeline's component, e.g. `unet`, which is also how its sites' names begin.
        naming: how it calls its own parts.
    """

    name: str
    naming: Naming


@dataclass(eq=False)
class AdaptedPipeline(Adapted):
    """A pipeline of diffusers with everything that visae must know about it; adapters build these.

    Attributes:
        id: name that `load_model` understands, e.g. `diffusers:stabilityai/sdxl-turbo`.
        pipe: the pipeline, which stays as it is.
        framing: size of the images; an image that is given is scaled to cover it and cropped.
        denoiser: the part that runs at every step.
        texts: the text encoders, in the order in which the pipeline runs them.
        options: arguments of every call of the pipeline, where it is not told otherwise.
    """

    id: str
    pipe: Any
    framing: Framing
    denoiser: Part
    texts: tuple[Part, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clocks: list[StepClock] = []
        for part in self.parts:
            refuse_compiled(self.module, part.name)
        for component in self.pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Text encoders and denoiser."""
        return (*self.texts, self.denoiser)

    @property
    def module(self) -> nn.Module:
        """A module that holds the pipeline's present parts by name, and does nothing else."""
        holder = nn.Module()
        for part in self.parts:
            holder.add_module(part.name, getattr(self.pipe, part.name))
        return holder

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's weights."""
        weights = getattr(self.pipe, self.denoiser.name).parameters()
        return next((p.dtype for p in weights if p.is_floating_point()), torch.float32)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AdaptedPipeline":
        """Moves the pipeline; its revision stays that of the weights as loaded."""
        if dtype is not None and dtype != self.dtype:
            _ = self.revision
        modules = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        if all(p.dtype == dtype for module in modules for p in module.parameters() if p.is_floating_point()):
            dtype = None  # diffusers warns of every cast, of one to the same type too
        if device is not None or dtype is not None:
            self.pipe.to(*(place for place in (device, dtype) if place is not None))
        return self

    @cached_property
    def first_calls(self) -> dict[str, FirstCall]:
        """How the pipeline calls each part first, for an empty prompt."""
        names = [part.name for part in self.parts]
        return first_calls(self.pipe, names, self.denoiser.name, self._request([self._blank], [0], {}))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the denoiser takes; cells of a packed sequence count as such."""
        sample = self.first_calls[self.denoiser.name].tensors[0]
        rows, columns = latent_grid(sample, self.framing.input_hw)
        return sample.shape[1 if sample.dim() == 4 else 2], rows, columns

    @torch.no_grad()
    def denoise(self, latents: Tensor) -> Any:
        """What the denoiser gives for latents `[n, c, h, w]` where the pipeline calls it first, for an empty prompt."""
        return call_denoiser(self.module, self.denoiser.name, self.first_calls[self.denoiser.name], latents)

    @cached_property
    def catalogues(self) -> dict[str, Catalogue]:
        """Sites of each part, found by one traced forward of it the first time that one is asked for."""
        found = {}
        for part in self.parts:
            call = self.first_calls.get(part.name)
            if call is None:
                continue
            if part is self.denoiser:
                traced = trace_denoiser(self.module, part.name, call, self.framing.input_hw)
            else:
                traced = trace_text(self.module, part.name, call)
            found[part.name] = Catalogue(self.module, traced, part.naming)
        return found

    def sites(self) -> dict[str, Site]:
        """Sites by name, in the order in which the pipeline runs them."""
        return {name: site for catalogue in self.catalogues.values() for name, site in catalogue.sites.items()}

    def site(self, name: str | Site) -> Site:
        """The site of a name, of a module path (with or without a suffix), or of a `Site` from a card.

        Raises:
            UnknownName: if the pipeline has no such place.
            ValueError: if the place holds no tokens, or other tokens than the `Site` says.
        """
        path = name.path if isinstance(name, Site) else name
        catalogue = self.catalogues.get(path.partition(".")[0])
        if catalogue is None:
            raise UnknownName("site", path, self.sites(), f"Names begin with {', '.join(self.catalogues)}.")
        return catalogue.recall(name) if isinstance(name, Site) else catalogue.find(name)

    @contextmanager
    def clock(self, after: Callable[[Step], None] | None = None, *, lasting: bool = False) -> Iterator[StepClock]:
        """A clock that tells step, noise level and branch at every call of the denoiser inside the `with`.

        Args:
            after: called with the `Step` whenever the denoiser has run.
            lasting: see `visae.taps.tap`.

        Example:
            >>> with pipeline.clock() as clock, tap(pipeline, "unet.mid_block") as taken:
            ...     pipeline.generate(["a red square"], [0], steps=20)
            >>> clock.now.sigma
        """
        clock = StepClock(self.pipe, self.denoiser.name, after=after)
        with clock.running(lasting):
            self._clocks.append(clock)
            try:
                yield clock
            finally:
                self._clocks.remove(clock)

    def generate(
        self,
        prompts: Sequence[Any],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        height: int | None = None,
        width: int | None = None,
        **options: Any,
    ) -> Any:
        """Images of prompts by the pipeline itself; an image depends on its prompt and seed, not on its batch.

        Args:
            prompts: texts, or numbers of classes, also as texts, where the pipeline makes images of classes; where it
                makes images of nothing, only how many there are matters.
            seeds: one for every image: as many as prompts, times `num_images_per_prompt` where that is given.
            steps: denoising steps; None takes the pipeline's default.
            guidance: guidance scale; None takes the pipeline's default.
            negative: negative prompt of all images.
            height: in pixels; None takes the pipeline's own.
            width: likewise.
            options: what else the pipeline's call understands, e.g. `output_type`, `true_cfg_scale`.

        Returns:
            What the pipeline gives as its images.

        Raises:
            ValueError: if prompts and seeds do not match, or the pipeline cannot take an argument.
        """
        given = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "negative_prompt": None if negative is None else [negative] * len(prompts),
            "height": height,
            "width": width,
        }
        request = self._request(prompts, seeds, {name: v for name, v in given.items() if v is not None} | options)
        with ExitStack() as making:
            for clock in self._clocks:
                making.enter_context(clock.making(len(seeds)))
            return self.pipe(**request).images

    @property
    def _takes(self) -> set[str]:
        return set(inspect.signature(type(self.pipe).__call__).parameters)

    @property
    def _blank(self) -> Any:
        return "" if "prompt" in self._takes else 0

    def _request(self, prompts: Sequence[Any], seeds: Sequence[int], given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        given = {**self.options, **given}
        copies = given.get("num_images_per_prompt", 1)
        if len(seeds) != len(prompts) * copies or not len(prompts):
            raise ValueError(
                f"every image needs a seed of its own: {len(prompts)} prompts with {copies} images each "
                f"came with {len(seeds)} seeds"
            )
        takes, (height, width) = self._takes, self.framing.input_hw
        sized = {"height": given.get("height", height), "width": given.get("width", width)}
        if not sized.keys() <= takes:
            if (sized["height"], sized["width"]) != (height, width):
                raise ValueError(f"{type(self.pipe).__name__} makes images of {height} x {width} pixels only")
            sized, given = {}, {name: v for name, v in given.items() if name not in sized}
        if "use_resolution_binning" in takes:
            sized["use_resolution_binning"] = False  # the image then has the size that was asked for
        if unknown := given.keys() - takes:
            raise ValueError(f"{type(self.pipe).__name__} does not take {', '.join(sorted(unknown))}")
        named = next((name for name in ("prompt", "class_labels") if name in takes), None)
        asked: dict[str, Any] = {"batch_size": len(prompts)} if named is None else {named: list(prompts)}
        if named == "class_labels":
            asked = {named: [self._class_number(prompt) for prompt in prompts]}
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        return {**sized, **given, **asked, "generator": generators}

    def _class_number(self, prompt: Any) -> int:
        if not str(prompt).isdigit():
            raise ValueError(f"{type(self.pipe).__name__} makes images of numbered classes; {prompt!r} is not a number")
        return int(prompt)
