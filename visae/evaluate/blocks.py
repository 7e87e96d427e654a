"""What the blocks of a denoiser do: each is taken out in turn, and the pictures of the same seeds are compared.

The question of Surkov et al., "Unpacking SDXL Turbo" (2024). A block is taken out by setting its delta to zero, so that
what flows in flows on as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from visae.evaluate.pictures import DISTANCES
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.taps import tap

Judge = Callable[[Sequence[Image.Image]], dict[str, list[str]]]
"""Names, factor by factor, what pictures show: `{"shape": ["star", ...], ...}`."""


@dataclass(frozen=True)
class Role:
    """What changes without a block.

    Attributes:
        site: its delta.
        distances: name -> distance `[n]` of every picture from the plain one, see `visae.evaluate.pictures`.
        kept: factor -> share of the pictures that show, to the judge, what the plain ones show; empty without one.
        pictures: made without the block.
    """

    site: str
    distances: dict[str, np.ndarray]
    kept: dict[str, float]
    pictures: list[Image.Image]

    def mean(self, name: str) -> float:
        """Mean distance over the pictures."""
        return float(self.distances[name].mean())


def block_sites(pipeline: AdaptedPipeline) -> list[Site]:
    """Deltas of the denoiser's blocks of attention, in the order in which they run.

    In a U-Net a block is all of the transformer at one place (`attentions.0`), elsewhere a transformer block.
    """
    sites = [s for s in pipeline.sites().values() if s.path.startswith(f"{pipeline.denoiser.name}.")]
    attentions = [s.path for s in sites if s.kind == "attn_out"]
    deltas = [s for s in sites if s.kind == "delta" and s.stream == "image"]
    deltas = [s for s in deltas if any(path.startswith(f"{s.path}.") for path in attentions)]
    if places := [s for s in deltas if s.path.rpartition(".")[0].endswith(".attentions")]:
        return places
    return [s for s in deltas if not any(s.path.startswith(f"{other.path}.") for other in deltas)]


def block_roles(
    make: Callable[[], list[Image.Image]],
    pipeline: AdaptedPipeline,
    sites: Sequence[Site],
    judge: Judge | None = None,
    after: Callable[[], object] | None = None,
) -> tuple[list[Image.Image], list[Role]]:
    """Makes the plain pictures, then the same without each block.

    Args:
        make: makes the pictures; the same ones whenever it is called.
        pipeline: that makes them.
        sites: deltas of the blocks to take out.
        judge: tells what pictures show; None compares pixels alone.
        after: called when a block is done.

    Returns:
        Plain pictures, and the role of each block.
    """
    plain, roles = make(), []
    shown = judge(plain) if judge else {}
    for site in sites:
        with tap(pipeline, site, rewrite=lambda delta: delta * 0):
            without = make()
        told = judge(without) if judge else {}
        kept = {f: float(np.mean([a == b for a, b in zip(shown[f], told[f], strict=True)])) for f in shown}
        roles.append(Role(site.name, {name: d(plain, without) for name, d in DISTANCES.items()}, kept, without))
        if after is not None:
            after()
    return plain, roles
