"""How much collecting from a pipeline costs beyond bare generation, and how much an edit that changes nothing."""

import statistics
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from visae.data.prompts import load_prompts
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.sites import Site
from visae.store.batches import split_into
from visae.store.making import Making, making
from visae.store.sampling import Sampling
from visae.store.timing import Seconds, take_turns
from visae.taps import tap


def bench_generate(
    model: AdaptedPipeline,
    site: str | Site,
    *,
    images: int = 4,
    batch: int = 4,
    steps: int = 20,
    repeats: int = 5,
    progress: bool = False,
) -> dict[str, Any]:
    """Seconds of collecting one site, and of an edit that gives back what it gets, against bare generation.

    All make the same images to their latents, in batches of the same size. *Bare* calls the pipeline and nothing else;
    *collect* brings the site's tokens of every step, in both branches of the guidance where there are two, in float16
    to the CPU; *identity* rewrites the site with its own tokens at every step. Of each turn's jobs, which take turns in
    going first, medians are compared.

    Args:
        model: the pipeline.
        site: where tokens are read and rewritten.
        images: per turn.
        batch: images made at a time.
        steps: denoising steps.
        repeats: turns of each.
        progress: show a bar.

    Returns:
        Numbers of the run; `collect_overhead` and `identity_overhead` are the extra time over bare generation (0.05 is
        5 %).
    """
    place = model.site(site)
    prompts = load_prompts(["0"] * images)
    made = making(model, [place], prompts, None, "float16", Sampling(steps=steps))
    if {slot.branch for slot in made.meta.collected.slots} != {-1}:  # type: ignore[union-attr]
        made = making(model, [place], prompts, None, "float16", Sampling(steps=steps, branch="both"))
    jobs = {
        "bare": partial(_bare, model, made, batch),
        "collect": partial(_collect, made, batch),
        "identity": partial(_identity, model, made, batch),
    }
    seconds: Seconds = {}
    _bare(model, made, batch)
    for turn in tqdm(range(repeats), desc="bench extract", disable=not progress):
        take_turns(seconds, turn, jobs)
    bare, collect, identity = (statistics.median(seconds[name]) for name in jobs)
    where = {"model": model.id, "site": place.name, "device": str(model.device), "threads": torch.get_num_threads()}
    size = {"images": images, "batch": batch, "steps": steps, "repeats": repeats}
    return {
        "bench": "extract", **where, **size,
        "bare_s": round(bare, 4), "collect_s": round(collect, 4), "identity_s": round(identity, 4),
        "collect_overhead": round(collect / bare - 1, 4), "identity_overhead": round(identity / bare - 1, 4),
    }  # fmt: skip


def _bare(model: AdaptedPipeline, made: Making, batch: int) -> None:
    known = made.meta.collected
    assert known is not None
    for part in made.reader.batches(split_into(range(made.meta.n_items), batch), workers=0):
        texts = [prompt.text for prompt in part.prompts]
        with torch.no_grad(), quiet(model.pipe):
            options = {"output_type": "latent"} | known.arguments()
            model.generate(texts, [prompt.seed for prompt in part.prompts], **options)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _collect(made: Making, batch: int) -> None:
    with made.start() as forward:
        for part in made.reader.batches(split_into(range(made.meta.n_items), batch), workers=0):
            forward(part).wait()


def _identity(model: AdaptedPipeline, made: Making, batch: int) -> None:
    with tap(model, made.sites[0], rewrite=lambda tokens: tokens):
        _bare(model, made, batch)
