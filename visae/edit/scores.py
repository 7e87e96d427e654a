"""What a gate says about prompts, without any edit: what its threshold is calibrated on."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from visae.edit.apply import EditedSite, edited_sites
from visae.edit.edits import Edit
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.sites import Site
from visae.store.batches import split_into
from visae.store.probing import first_call


@torch.no_grad()
def gate_scores(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str | Site,
    edit: Edit,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    given: dict[str, Any] | None = None,
) -> np.ndarray:
    """The largest score `[P]` that an edit's gate gives to each prompt in a run in which nothing is edited.

    At a site of a text encoder, runs end where the denoiser would begin.

    Args:
        pipeline: the pipeline.
        sae: the dictionary of the site.
        site: where.
        edit: with a gate, whose threshold does not matter.
        prompts: one of every image.
        seeds: one of every image.
        batch: images made at a time.
        given: further arguments of `AdaptedPipeline.generate`.

    Raises:
        ValueError: if the edit has no gate.
    """
    if edit.gate is None:
        raise ValueError("an edit without a gate has no scores; give it one with Edit.whether(gate)")
    shut = edit.whether(replace(edit.gate, threshold=math.inf))
    found, place = [], pipeline.site(site)
    text = place.path.partition(".")[0] != pipeline.denoiser.name
    options: dict[str, Any] = {"output_type": "latent", **(given or {})}
    for part in tqdm(list(split_into(range(len(prompts)), batch)), desc="gate", unit="batch", leave=False):
        asked, noise = [prompts[i] for i in part], [seeds[i] for i in part]
        with edited_sites(pipeline, [EditedSite(sae, place, (shut,))]) as editing:
            if text:
                first_call(pipeline, asked, noise, options)
            else:
                with quiet(pipeline.pipe):
                    pipeline.generate(asked, noise, **options)
            found.append(editing.scores().numpy())
    return np.concatenate(found)
