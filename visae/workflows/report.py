"""A page about a trained dictionary, that opens from disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visae.json_files import write_json
from visae.show import ReportInputs, build_report
from visae.store.errors import human
from visae.workflows.heatmap import CONCEPTS
from visae.workflows.run import Run, pick_device
from visae.workflows.study import Study, evaluation_sets, study


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
    images: int = 2000,
    factors: tuple[str, ...] | None = None,
    localise: tuple[str, ...] | None = None,
    top: int = 12,
    out: Path | None = None,
    image_batch: int = 64,
    workers: int = 2,
    device: str = "auto",
) -> Report:
    """Write a page about a dictionary: its metrics, its latents with their images, what they mean and where.

    One HTML file that opens from disk without a network. Labels and thresholds are chosen on one set of images and
    measured on another.

    Example:
        visae report runs/first

    Args:
        run: folder of a run, see `visae train`.
        validation: images to choose latents and thresholds on; a world's own split, else half of the training images.
        test: images to measure on and to show; likewise.
        images: at most so many images of a world in each of the two sets.
        factors: labels to look for; all that the images have if not given.
        localise: labels whose heat maps are compared with masks; all that regions are labelled with if not given.
        top: images shown for each latent.
        out: the page; `index.html` in the run's folder if not given.
        image_batch: images per forward pass.
        workers: threads that read images.
        device: `auto`, `cpu`, `cuda`, ...
    """
    opened = Run.open(run)
    model = opened.model(pick_device(device))
    sae = opened.sae(model).to(model.device)
    choose, measured = evaluation_sets(opened, validation, test, images)
    found = study(
        opened,
        model,
        sae,
        choose,
        measured,
        factors=factors,
        localise=localise,
        image_batch=image_batch,
        workers=workers,
    )
    save_selections(opened, found)
    page = build_report(_inputs(opened, found), out or opened.folder / "index.html", n_images=top)
    return Report(page, found)


def save_selections(run: Run, found: Study) -> None:
    """Keeps the latents of every label beside the dictionary, for `visae heatmap --label`."""
    write_json(run.folder / CONCEPTS, [c.selection.to_dict() for c in found.concepts])


def _inputs(run: Run, found: Study) -> ReportInputs:
    card = run.card
    metrics = {"all": found.metrics.to_dict(), **{k: m.to_dict() for k, m in found.metrics.by_kind.items()}}
    components = round(found.metrics.l0)
    metrics[f"PCA, {components} components"] = {
        "n": found.metrics_pca.n,
        "fvu": found.metrics_pca.fvu,
        "l0": components,
    }
    for row in metrics.values():
        row.pop("by_kind", None)
    return ReportInputs(
        title=f"{card.model['id']} {card.site['name']}",
        card=json.loads(card.to_json()),
        table=found.test,
        data=found.test_data,
        chosen_on=found.validation,
        metrics=metrics,
        concepts=found.concepts,
        notes=notes(run, found),
    )


def notes(run: Run, found: Study) -> Sequence[str]:
    """What a reader should know before believing the numbers."""
    card, told = run.card, []
    if not run.config.get("pretrained", True):
        told.append(
            "The model has random weights: this page shows that everything runs, not what a trained model sees."
        )
    if not found.validation.factors:
        told.append("The images have no labels, so no latent is named; sub-folders would be taken as labels.")
    elif found.test_data.name == card.data.get("name") or "split" in found.test_data.name:
        told.append("Latents are chosen on one half of the training images and measured on the other half.")
    if found.metrics.dead > 0.1:
        told.append(f"{found.metrics.dead:.0%} of the latents never fired on the {found.metrics.n:,} tokens measured.")
    return told
