"""A page about a trained dictionary, that opens from disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visae.json_files import write_json
from visae.show import ReportInputs, build_report
from visae.show.sections import Section
from visae.store.errors import human
from visae.workflows.heatmap import CONCEPTS
from visae.workflows.run import Run, pick_device
from visae.workflows.study import Study, evaluation_sets, prompt_sets, study


@dataclass(frozen=True)
class Report:
    """The page and what it tells.

    Attributes:
        page: the HTML file.
        study: the numbers in it.
    """

    page: Path
    study: Study

    def __str__(self) -> str:
        return f"{self.study.metrics.summary()}\nwritten: {self.page} ({human(self.page.stat().st_size)})"


def report(
    run: Path,
    *,
    validation: str | None = None,
    test: str | None = None,
    images: int | None = None,
    factors: tuple[str, ...] | None = None,
    localise: tuple[str, ...] | None = None,
    top: int = 12,
    out: Path | None = None,
    image_batch: int | None = None,
    workers: int = 2,
    device: str = "auto",
) -> Report:
    """Write a page about a dictionary: its metrics, its latents with their images, what they mean and where.

    One HTML file that opens from disk without a network. Labels and thresholds are chosen on one set of images and
    measured on another. Of a dictionary on a pipeline the images are those that it makes of prompts, a latent's heat is
    its largest value over the steps, and the page says how well each noise level is coded.

    Example:
        visae report runs/first

    Args:
        run: folder of a run, see `visae train`.
        validation: images to choose latents and thresholds on; a world's own split, else half of the training images.
        test: images to measure on and to show; likewise.
        images: at most so many images of a world, or prompts of a pipeline, in each of the two sets; 2000 images, 96
            prompts if not given.
        factors: labels to look for; all that the images have if not given.
        localise: labels whose heat maps are compared with masks; all that regions are labelled with if not given.
        top: images shown for each latent.
        out: the page; `index.html` in the run's folder if not given.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read images.
        device: `auto`, `cpu`, `cuda`, ...
    """
    opened = Run.open(run)
    found = look(
        opened, validation, test, images, device, factors=factors, localise=localise, image_batch=image_batch,
        workers=workers,
    )  # fmt: skip
    save_selections(opened, found)
    return Report(write_page(opened, found, out or opened.folder / "index.html", top), found)


def look(run: Run, validation: str | None, test: str | None, images: int | None, device: str, **options: Any) -> Study:
    """Loads what a run was trained on and studies its dictionary; options are those of `study`."""
    place, drawing = pick_device(device), bool(run.card.sampling)
    model = run.pipeline(place) if drawing else run.model(place)
    sets = prompt_sets if drawing else evaluation_sets
    choose, measured = sets(run, validation, test, images or (96 if drawing else 2000))
    batch = options.pop("image_batch") or (8 if drawing else 64)
    return study(run, model, run.sae(model).to(model.device), choose, measured, image_batch=batch, **options)


def write_page(run: Run, found: Study, page: Path, top: int = 12, sections: Sequence[Section] = ()) -> Path:
    """The page of a study, with further sections."""
    return build_report(_inputs(run, found, sections), page, n_images=top)


def save_selections(run: Run, found: Study) -> None:
    """Keeps the latents of every label beside the dictionary, for `visae heatmap --label`."""
    write_json(run.folder / CONCEPTS, [c.selection.to_dict() for c in found.concepts])


def _inputs(run: Run, found: Study, sections: Sequence[Section] = ()) -> ReportInputs:
    card = run.card
    parts = {**found.metrics.by_kind, **{f"sigma {name}": m for name, m in found.metrics.by_sigma.items()}}
    if len(found.metrics.by_branch) > 1:
        parts |= {f"branch {name}": m for name, m in found.metrics.by_branch.items()}
    metrics = {"all": found.metrics.to_dict(), **{name: m.to_dict() for name, m in parts.items()}}
    components = round(found.metrics.l0)
    metrics[f"PCA, {components} components"] = {
        "n": found.metrics_pca.n,
        "fvu": found.metrics_pca.fvu,
        "l0": components,
    }
    for row in metrics.values():
        for name in ("by_kind", "by_sigma", "by_branch"):
            row.pop(name, None)
    return ReportInputs(
        title=f"{card.model['id']} {card.site['name']}",
        card=json.loads(card.to_json()),
        table=found.test,
        data=found.test_data,
        chosen_on=found.validation,
        metrics=metrics,
        concepts=found.concepts,
        notes=notes(run, found),
        sections=sections,
    )


def notes(run: Run, found: Study) -> Sequence[str]:
    """What a reader should know before believing the numbers."""
    card, told = run.card, []
    if not run.config.get("pretrained", True):
        told.append(
            "The model has random weights: this page shows that everything runs, not what a trained model sees."
        )
    if not found.validation.factors:
        told.append(
            "The prompts have no labels, so no latent is named; a table of prompts can bring them."
            if card.sampling
            else "The images have no labels, so no latent is named; sub-folders would be taken as labels."
        )
    elif card.sampling:
        told.append("The images are those that the pipeline makes; their labels are what the prompts ask for.")
    elif found.test_data.name == card.data.get("name") or "split" in found.test_data.name:
        told.append("Latents are chosen on one half of the training images and measured on the other half.")
    if found.metrics.dead > 0.1:
        told.append(f"{found.metrics.dead:.0%} of the latents never fired on the {found.metrics.n:,} tokens measured.")
    return told
