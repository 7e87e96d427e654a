"""The third journey, offline: a concept erased from a small text-to-image pipeline, and the page that shows it."""

from pathlib import Path

from visae.workflows.erase import Erased, erase

BUDGET = 0.05
"""Of harm: of so few pictures, one that is lost is more than the usual 2 %."""


def demo_erase(
    out: Path = Path("visae-demo-erase"),
    *,
    concept: str = "style=dots",
    images: int = 160,
    pictures: int = 32,
    method: str = "ours",
    strength: float | None = None,
) -> Erased:
    """See a concept erased from a text-to-image model, offline.

    `visae erase` at its smallest, on the small Stable Diffusion that ships with visae: trains a dictionary on the steps
    of a few images, finds the latents of the concept, chooses how strongly to turn them around, draws the same seeds
    with and without, and ends on the page. With so little training the numbers are no more than a demonstration.

    Example:
        visae demo erase my-demo --concept "a star"

    Args:
        out: folder for all that is written.
        concept: a shape or a style, e.g. `shape=star`.
        images: that the dictionary is trained on.
        pictures: validation, and test, prompts.
        method: see `visae erase --help`.
        strength: take this one instead of choosing.
    """
    return erase(
        "visae:tiny-sd", concept=concept, method=method, strength=strength, images=images, pictures=pictures,
        report=out, turns=1, budget=BUDGET,
    )  # fmt: skip
