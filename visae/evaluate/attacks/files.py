"""What attacks achieved, back from JSON, so that nothing is attacked twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from visae.data.sample import Prompt
from visae.evaluate.attacks.base import Attacked, Shown


def attacked_from_dict(
    told: dict[str, Any], prompts: Sequence[Prompt], pictures: Sequence[Image.Image | None] = ()
) -> Attacked:
    """Reverse of `Attacked.to_dict`.

    Args:
        told: what it gave.
        prompts: that were attacked; JSON holds their texts and seeds alone.
        pictures: that showed the concept.

    Raises:
        ValueError: if these are other prompts.
    """
    rows = told["prompts"]
    if [(row["text"], row["seed"]) for row in rows] != [(one.text, one.seed) for one in prompts]:
        raise ValueError(f"{told['attack']} was run on {len(rows)} other prompts than the {len(prompts)} that came")
    factor, _, value = told["concept"].partition("=")

    def shown(when: str) -> Shown:
        return {judge: np.array([row[when][judge] for row in rows], bool) for judge in told["judges"]}

    return Attacked(
        told["attack"], told["box"], told["adaptive"], told["budget"], told["spent"], (factor, value), tuple(prompts),
        shown("plain"), shown("before"), shown("after"), tuple(row["revived"] for row in rows), told["settings"],
        tuple(pictures),
    )  # fmt: skip
