"""Heat maps over time: where and when latents fire while a pipeline draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from visae.codes.over_time import Course, watch
from visae.data.prompts import load_prompts
from visae.json_files import write_json
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.show.strips import animate, strip_figure
from visae.sites import Site
from visae.text_table import text_table
from visae.workflows.run import Run, pick_device


@dataclass(frozen=True)
class Timeline:
    """What was drawn; prints as a table of when the latents fire.

    Attributes:
        sigmas: `[S]` noise level of every step.
        shares: latent -> share of its sum of values over all images that falls on each step, `[S]`.
        files: strips and animated pictures.
    """

    sigmas: list[float]
    shares: dict[int, list[float]]
    files: list[Path]

    def __str__(self) -> str:
        head = ["latent", "half fired by sigma", "most at sigma", "share there"]
        rows = []
        for latent, share in sorted(self.shares.items(), key=lambda item: int(np.argmax(item[1]))):
            half, peak = int(np.searchsorted(np.cumsum(share), 0.5)), int(np.argmax(share))
            rows.append([latent, f"{self.sigmas[half]:.3g}", f"{self.sigmas[peak]:.3g}", float(share[peak])])
        return "\n".join([text_table(head, rows), "", *map(str, self.files)])


def timeline(
    run: Path,
    prompts: str = "world:prompts?split=test",
    *,
    n: int = 4,
    out: Path | None = None,
    latents: tuple[int, ...] = (),
    strongest: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    columns: int = 8,
    moving: Literal["webp", "gif", "png"] = "webp",
    device: str = "auto",
) -> Timeline:
    """Draw when and where latents fire while a pipeline draws: strips over the emerging image, and moving pictures.

    Says of every latent by which noise level half of it has fired. Without latents to draw, those that are strongest in
    each image are taken.

    Example:
        visae timeline runs/sd prompts.txt --n 2 --latents 17 204

    Args:
        run: folder of a run that was trained on a pipeline, see `visae train`.
        prompts: a file with a prompt a line, `world:prompts?n=8`, or an entry of `datasets_cfg/` with prompts.
        n: at most so many of them.
        out: folder for the pictures; `timeline` in the run's folder if not given.
        latents: numbers of latents to draw.
        strongest: how many of each image's strongest latents to draw, where none are given.
        steps: denoising steps; those of the training if not given.
        guidance: guidance scale; that of the training if not given.
        columns: steps that a strip shows, evenly spaced; the moving picture shows all.
        moving: kind of moving picture.
        device: `auto`, `cpu`, `cuda`, ...
    """
    opened = Run.open(run)
    pipeline = opened.pipeline(pick_device(device))
    sae = opened.sae(pipeline).to(pipeline.device)
    known = opened.card.sampling
    return draw(
        pipeline,
        sae,
        Site.from_dict(opened.card.site),
        prompts,
        Path(out) if out else opened.folder / "timeline",
        n=n,
        latents=latents,
        strongest=strongest,
        steps=steps or known.get("steps"),
        guidance=known.get("guidance") if guidance is None else guidance,
        columns=columns,
        ending=f".{moving}",
    )


def draw(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str | Site,
    prompts: str | tuple[str, ...],
    out: Path,
    *,
    n: int | None = None,
    latents: tuple[int, ...] = (),
    strongest: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    columns: int = 8,
    ending: str = ".webp",
) -> Timeline:
    """Draws, for every prompt, latents at each step over the emerging image: a strip and an animated picture.

    Args:
        pipeline: that makes the images.
        sae: trained at the site.
        site: of the denoiser.
        prompts: as `load_prompts` reads them.
        out: folder for the pictures and `timeline.json`.
        n: at most so many of them; None takes all.
        latents: which; the strongest of each image if none are given.
        strongest: how many.
        steps: denoising steps.
        guidance: guidance scale.
        columns: steps that a strip shows, evenly spaced; the animated picture shows all.
        ending: of the animated pictures, `.webp`, `.gif` or `.png`.
    """
    data = load_prompts(prompts)
    wanted = [data[i] for i in range(len(data) if n is None else min(n, len(data)))]
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(wanted), desc="timeline", unit="img") as bar:
        texts, seeds = [p.text for p in wanted], [p.seed for p in wanted]
        courses = watch(pipeline, sae, site, texts, seeds, steps=steps, guidance=guidance, after=bar.update)
    files: list[Path] = []
    drawn = dict.fromkeys(latents)
    for number, course in enumerate(courses):
        own = list(latents) or course.strongest(strongest)
        drawn |= dict.fromkeys(own)
        files += draw_course(course, own, out / f"{number:04d}", columns, ending)
    made = Timeline(courses[0].sigmas.tolist(), when(courses, list(drawn)), files)
    write_json(out / "timeline.json", {"sigmas": made.sigmas, "shares": {str(k): v for k, v in made.shares.items()}})
    return made


def when(courses: list[Course], latents: list[int]) -> dict[int, list[float]]:
    """Latent -> share of its sum over all images that falls on each step."""
    total = np.sum([course.mass() for course in courses], axis=0)[:, latents]
    shares = total / np.maximum(total.sum(0), 1e-12)
    return {latent: shares[:, place].tolist() for place, latent in enumerate(latents)}


def draw_course(
    course: Course, latents: list[int], stem: Path, columns: int = 8, ending: str = ".webp"
) -> tuple[Path, Path]:
    """The strip and the animated picture of one image, written beside each other."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    heats, names = course.heats(latents), [f"latent {latent}" for latent in latents]
    shown = np.unique(np.linspace(0, len(course.frames) - 1, min(columns, len(course.frames))).round().astype(int))
    titles = [f"sigma {course.sigmas[step]:.2g}" for step in shown]
    figure = strip_figure(
        [course.frames[step] for step in shown],
        heats[:, shown],
        names,
        titles,
        title=f"{course.prompt} ({course.seed})",
    )
    strip = stem.with_name(f"{stem.name}.png")
    figure.savefig(strip, dpi=110)
    moving = stem.with_name(f"{stem.name}-moving{ending}")
    return strip, animate(moving, course.frames, heats)
