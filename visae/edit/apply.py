"""Edits at work: while a context is entered, or for as long as they are installed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from visae.adapted import Adapted
from visae.clock import Branch, Step, StepClock
from visae.edit.edits import Edit
from visae.edit.gates import Memory
from visae.edit.moment import Moment
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.sites import Site
from visae.taps import tap


@dataclass(eq=False)
class EditedSite:
    """Edits at one site; they all see the codes as they were, so that their order does not matter.

    Attributes:
        sae: the dictionary trained there.
        site: name or `Site`.
        edits: what is done.
    """

    sae: Dictionary
    site: str | Site
    edits: tuple[Edit, ...]
    memories: tuple[Memory, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.memories = tuple(Memory() for _ in self.edits)
        for edit in self.edits:
            if beyond := [latent for latent in edit.latents if not 0 <= latent < self.sae.n_latents]:
                raise ValueError(f"latent {beyond[0]} is none of the dictionary's 0 to {self.sae.n_latents - 1}")


class Editing:
    """What runs inside `edited`; tells afterwards whom gates let through.

    Attributes:
        sites: where edits are made.
        on: whether they are made at all; may be set between runs.
    """

    def __init__(self, model: Adapted, sites: Sequence[EditedSite]):
        self.model, self.sites, self.on = model, list(sites), True
        self.clock: StepClock | None = None
        self._encoded: dict[str, int] = {}

    def opened(self, site: int = 0, edit: int = 0) -> Tensor:
        """`[B]` bool: images of the latest run for which an edit's gate was open."""
        return self.sites[site].memories[edit].open

    def scores(self, site: int = 0, edit: int = 0) -> Tensor:
        """`[B]` the largest score that an edit's gate gave to each image of the latest run."""
        return self.sites[site].memories[edit].largest

    def denoised(self, _: Step) -> None:
        """The denoiser has run: what text encoders say next belongs to another run."""
        self._encoded.clear()

    def rewrite(self, edited: EditedSite, site: Site, tokens: Tensor) -> Tensor:
        """The tokens `[n, t, d]` of a call with all edits in them, or the very same where there are none."""
        step, branch = self._where(site, len(tokens))
        sigma, index, call = (step.sigma, step.index, step.call) if step else (None, 0, self._calls(site))
        samples, images = _samples(branch)
        if call == 0:
            for memory in edited.memories:
                memory.begin(images)
        acting = [(e, m) for e, m in zip(edited.edits, edited.memories, strict=True) if e.acts(sigma, index)]
        rows = [r for r, name in enumerate(branch) if any(_concerns(edit, name) for edit, _ in acting)]
        if not rows or not self.on:
            return tokens
        prefix = 0 if site.grid is None else len(site.prefix)  # text sites are nothing but tokens before a grid
        moment = Moment(
            edited.sae, tokens[rows, prefix:].float(), tuple(branch[row] for row in rows),
            torch.tensor([samples[row] for row in rows]), sigma, index, call,
            site.grid if tokens.shape[1] == site.n_tokens else None,
        )  # fmt: skip
        found = [delta for edit, memory in acting if (delta := edit.delta(moment, memory)) is not None]
        if not found:
            return tokens
        # Less the negative, because x - 0.0 keeps every bit of x, and x + 0.0 makes 0.0 of -0.0.
        new = moment.x - (0.0 - torch.stack(found).sum(0))
        out = tokens.clone()
        out[rows, prefix:] = new.to(tokens.dtype)
        return out

    def _where(self, site: Site, rows: int) -> tuple[Step | None, tuple[Branch, ...]]:
        """The step, of a denoiser, and the branch of every row."""
        part = site.path.partition(".")[0]
        if not isinstance(self.model, AdaptedPipeline):
            return None, _all("none", rows)
        if part == self.model.denoiser.name:
            assert self.clock is not None
            return self.clock.now, self.clock.now.branch
        self._encoded[site.name] = self._encoded.get(site.name, 0) + 1
        return None, _all("cond" if self._encoded[site.name] == 1 else "uncond", rows)

    def _calls(self, site: Site) -> int:
        """Number of a text encoder's call in its run; every call of a model that sees images is a run of its own."""
        return self._encoded.get(site.name, 1) - 1


def _all(branch: Branch, rows: int) -> tuple[Branch, ...]:
    return (branch,) * rows


def _concerns(edit: Edit, branch: Branch) -> bool:
    return edit.branches in ("both", "opposed") or branch in ("none", edit.branches)


def _samples(branch: Sequence[Branch]) -> tuple[list[int], int]:
    """Number of the image of every row, by its place among the rows of its branch, and how many images there are."""
    seen: dict[Branch, int] = {}
    numbers = []
    for name in branch:
        numbers.append(seen.get(name, 0))
        seen[name] = numbers[-1] + 1
    return numbers, max(seen.values(), default=0)


@contextmanager
def edited_sites(model: Adapted, sites: Sequence[EditedSite], *, lasting: bool = False) -> Iterator[Editing]:
    """Edits several sites at once in every run inside the `with`; afterwards, nothing is left.

    Args:
        model: an adapted model or pipeline, not compiled.
        sites: each once.
        lasting: see `visae.taps.tap`.

    Raises:
        ValueError: if a site is named twice.
    """
    places = [model.site(one.site) for one in sites]
    if len({place.name for place in places}) < len(places):
        raise ValueError("a site is named twice: give all its edits at once")
    editing = Editing(model, sites)
    rewrites = {
        place.name: partial(editing.rewrite, one, place) for one, place in zip(editing.sites, places, strict=True)
    }
    watched = model.clock(editing.denoised, lasting=lasting) if isinstance(model, AdaptedPipeline) else nullcontext()
    with watched as editing.clock, tap(model, *places, rewrite=rewrites, lasting=lasting, any_size=True):
        yield editing


@contextmanager
def edited(model: Adapted, sae: Dictionary, site: str | Site, *edits: Edit) -> Iterator[Editing]:
    """Edits what flows through a site in every run inside the `with`; afterwards, nothing is left.

    Edits are deltas, `x' = x + (f' - f) D` in float32, cast back: no edit, strength 0, or a gate that stays shut leave
    every bit as it was, and so do all tokens, steps and branches that are not chosen. Differentiable.

    Args:
        model: an adapted model or pipeline (`visae.load_model`, `visae.wrap`), not compiled.
        sae: the dictionary trained at the site.
        site: name or `Site`.
        *edits: what is done.

    Yields:
        What tells whom gates let through.

    Example:
        >>> with edited(pipeline, sae, "unet.mid_block.attentions.0", ablate([17]).who("cond")):
        ...     pipeline.generate(["a red square"], [0])
    """
    with edited_sites(model, [EditedSite(sae, site, edits)]) as editing:
        yield editing
