"""What methods ask for, made from dictionaries that are at hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visae.data.prompt_layouts import PromptRecord
from visae.data.prompts import Prompts
from visae.erasers.base import Tools, Unsuitable
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.select.collecting import collect_statistics
from visae.select.concept import NoLatent, select_concept
from visae.select.selection import Selection
from visae.select.statistics import PromptStatistics
from visae.store.sampling import Sampling


def tools_of(
    pipeline: AdaptedPipeline,
    saes: Mapping[str, Dictionary],
    *,
    given: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    batch: int = 8,
    seeds: Mapping[str, int] | None = None,
) -> Tools:
    """Tools with these dictionaries; statistics of prompts are kept, so that the next concept starts with them.

    Args:
        pipeline: the pipeline.
        saes: site -> dictionary; the first of the denoiser and the first within a text encoder are where methods act,
            those at inputs of text encoders where words are replaced.
        given: arguments of `AdaptedPipeline.generate` in tuning runs, e.g. `{"steps": 20, "guidance": 4.0}`.
        folder: where statistics and trained weights are kept; None keeps none.
        batch: images made at a time.
        seeds: prompt -> seed of its image, for prompts that are tuned on for several concepts: their statistics are
            then collected once for all. Others count up from the request's seed.
    """
    own = pipeline.denoiser.name
    denoising = [site for site in saes if pipeline.site(site).path.partition(".")[0] == own]
    texts = [site for site in saes if site not in denoising]
    words = tuple(site for site in texts if pipeline.site(site).kind == "input")

    def record(place: int, text: str) -> PromptRecord:
        return PromptRecord(text, str(place), seeds=(seeds[text],) if seeds and text in seeds else ())

    def statistics(site: str, prompts: Sequence[str], seed: int) -> PromptStatistics:
        options = dict(given or {})
        run = Sampling("text") if site in texts else Sampling(
            steps=options.pop("steps", None), guidance=options.pop("guidance", None),
            negative=options.pop("negative", None), options=options,
        )  # fmt: skip
        asked = Prompts("tuning", [(i, record(i, text)) for i, text in enumerate(prompts)], seed)
        kept = None if folder is None else folder / "statistics"
        return collect_statistics(pipeline, saes[site], site, run, asked, kept, batch=batch)

    return Tools(
        site=next(iter(denoising), ""), text_site=next((site for site in texts if site not in words), ""),
        word_sites=words, sae=saes.__getitem__, statistics=statistics, folder=folder, batch=batch,
    )  # fmt: skip


def concept_latents(target: PromptStatistics, retain: PromptStatistics, **options: Any) -> Selection:
    """`select_concept`, for methods.

    Raises:
        Unsuitable: if no latent means the concept: a method that finds none must not end a comparison of many.
    """
    try:
        return select_concept(target, retain, **options)
    except NoLatent as error:
        raise Unsuitable(str(error)) from error
