"""What every way to erase a concept takes and gives, so that all are evaluated alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from visae.pipelines import AdaptedPipeline
from visae.registry import Registry
from visae.sae import Dictionary
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics


class Unsuitable(ValueError):
    """A method cannot work on this pipeline, or not with what it was given; the message says why and what can."""


@dataclass(frozen=True)
class Request:
    """A concept that shall not be drawn, and what a method may learn from. Test prompts and seeds are none of it.

    Attributes:
        concept: in words, e.g. `a star`; the number of a class where the pipeline draws classes.
        target: tuning prompts that ask for the concept.
        retain: tuning prompts that do not.
        pairs: prompts with the concept, and each the same without it.
        others: tuning prompts that ask for concepts which are erased along with this one, and not for this one.
        seed: of everything that is drawn while a method is tuned.
        given: arguments of `AdaptedPipeline.generate` in tuning runs, e.g. `{"steps": 20}`.
    """

    concept: str
    target: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    seed: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.concept:
            raise ValueError("a request needs its concept in words, e.g. 'a star'; got an empty text")

    def prompts(self, which: str) -> tuple[str, ...]:
        """Tuning prompts `target` or `retain`.

        Raises:
            Unsuitable: if there are none.
        """
        found: tuple[str, ...] = getattr(self, which)
        if not found:
            raise Unsuitable(f"this method learns from {which} prompts, and the request for {self.concept!r} has none")
        return found


def _no_dictionary(site: str) -> Dictionary:
    raise Unsuitable(f"this method needs a dictionary of {site or 'a site'}; give one with Tools(sae=...)")


def _no_statistics(site: str, prompts: Sequence[str], seed: int) -> PromptStatistics:
    raise Unsuitable(
        f"this method needs statistics of {len(prompts)} prompts at {site or 'a site'} (from seed {seed}); give them "
        "with Tools(statistics=...)"
    )


@dataclass(frozen=True)
class Tools:
    """What methods may ask for beside the pipeline.

    Attributes:
        site: of the denoiser, where methods act that act at one place; empty where there is none.
        text_site: of a text encoder, likewise.
        word_sites: inputs of text encoders, where methods act that replace words.
        sae: the dictionary of a site, trained or loaded when it is asked for.
        statistics: what the codes of a site are on prompts, image `i` from the noise of seed `seed + i`.
        select: the latents of a request's concept at a site; None leaves it to the methods.
        folder: where methods keep weights that they have trained; None keeps none.
        batch: prompts that run at a time while tuning.
    """

    site: str = ""
    text_site: str = ""
    word_sites: tuple[str, ...] = ()
    sae: Callable[[str], Dictionary] = _no_dictionary
    statistics: Callable[[str, Sequence[str], int], PromptStatistics] = _no_statistics
    select: Callable[[str, Request], Selection] | None = None
    folder: Path | None = None
    batch: int = 8


@dataclass(frozen=True)
class Erasure:
    """A pipeline without a concept, as long as one is inside `with erasure():`.

    Afterwards the pipeline is bit for bit what it was, whatever was raised inside. It can be entered again.

    Attributes:
        enter: makes the context.
        settings: of the method that built it.
        told: what was found while it was built, e.g. losses; JSON can hold it.

    Example:
        >>> erasure = METHODS["uce"].build(pipeline, Request("a star"), Tools())
        >>> with erasure():
        ...     images = pipeline.generate(["a red star"], [0])
    """

    enter: Callable[[], AbstractContextManager[None]]
    settings: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> AbstractContextManager[None]:
        """The context in which the concept is gone."""
        return self.enter()


Part = Literal["denoiser", "text", "words"]
"""Where a dictionary is needed: at a site of the denoiser, within a text encoder, or at the inputs of all of them."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to erase a concept; its fields are its settings, `dataclasses.replace` changes them."""

    @property
    def needs(self) -> frozenset[Part]:
        """Where it needs dictionaries."""
        return frozenset()

    @abstractmethod
    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """Does all that is to be done once for a concept; the pipeline is afterwards what it was.

        Args:
            pipeline: whose images shall be without the concept.
            request: the concept and the tuning prompts.
            tools: dictionaries and latents, for methods that need them.

        Raises:
            Unsuitable: if the method cannot work on this pipeline.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """Name and value of every setting."""
        return asdict(self)


METHODS: Registry[Method] = Registry("erasing method")
"""Name -> method with the settings of its paper."""
