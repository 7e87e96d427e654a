"""Look into a trained dictionary with data: which latents mean a label, and whether their heat lies on it.

Everything is chosen on one set of images (validation) and measured on another (test).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from visae import store
from visae.codes import CodeTable
from visae.data import UnreadableImage, load_data, load_prompts
from visae.data.prompts import part_of
from visae.data.sample import ImageData, PromptData
from visae.data.splits import split
from visae.evaluate import Metrics, evaluate_sae
from visae.evaluate.localise_concepts import ConceptLocalisation, localise_concepts
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary, pca
from visae.select import Selection, best_latents, measure
from visae.show import Concept
from visae.store import ActivationSource, Collection
from visae.tokens import TokenPolicy
from visae.workflows.drawn import Drawn
from visae.workflows.run import Run, other_split


@dataclass(frozen=True)
class Study:
    """What was found in a dictionary.

    Attributes:
        validation: codes of the images that latents and thresholds were chosen on.
        test: codes of the images that everything was measured on.
        validation_data: those images.
        test_data: those images.
        metrics: of the dictionary on the test images.
        metrics_pca: of as many principal components as the dictionary has codes per token (fitted on validation).
        concepts: every label with its latents, how well they tell it, and where their heat lies if there are masks.
    """

    validation: CodeTable
    test: CodeTable
    validation_data: ImageData
    test_data: ImageData
    metrics: Metrics
    metrics_pca: Metrics
    concepts: list[Concept] = field(default_factory=list)

    @property
    def localised(self) -> list[ConceptLocalisation]:
        """Labels whose heat maps were compared with masks."""
        return [c.localisation for c in self.concepts if c.localisation is not None]

    def share_with_f1(self, factors: Sequence[str], at_least: float = 0.9) -> float:
        """Share of the values of some factors that some latent tells with at least this F1 on test images."""
        scores = [c.measured.f1 for c in self.concepts if c.selection.factor in factors]
        return sum(f1 >= at_least for f1 in scores) / len(scores) if scores else 0.0


def prompt_sets(run: Run, validation: str | None, test: str | None, prompts: int) -> tuple[PromptData, PromptData]:
    """Prompts to choose on and prompts to measure on, without a text in common.

    Raises:
        ValueError: if one of the two is not given and the training prompts are not the part `train` of a set.
    """
    name = run.card.data["name"]
    parts = [given or part_of(name, part, prompts) for given, part in ((validation, "validation"), (test, "test"))]
    if None in parts:
        raise ValueError(
            f"{name} is not the training part of a set of prompts, so there is nothing to measure on; name prompts "
            "with validation= and test=, or train on PROMPTS?split=train"
        )
    choose, measured = (load_prompts(part) for part in parts if part is not None)
    return choose, measured


def evaluation_sets(run: Run, validation: str | None, test: str | None, images: int) -> tuple[ImageData, ImageData]:
    """Images to choose on and images to measure on, without an image in common.

    A world has splits of its own; other data are halved (whole groups together), a given name is taken as it is.
    """
    name = run.data().name
    if name.startswith("world:") and validation is None and test is None:
        return tuple(load_data(other_split(name, part, images)) for part in ("validation", "test"))  # type: ignore[return-value]
    if validation is not None and test is not None:
        return load_data(validation), load_data(test)
    if (validation is None) != (test is None):
        raise ValueError(
            "give both validation and test, or neither: latents are chosen on one and measured on the other"
        )
    halves = split(run.data(), {"validation": 0.5, "test": 0.5}, seed=0)
    return halves["validation"], halves["test"]


def study(
    run: Run,
    model: AdaptedModel | AdaptedPipeline,
    sae: Dictionary,
    validation: ImageData | PromptData,
    test: ImageData | PromptData,
    *,
    factors: Sequence[str] | None = None,
    localise: Sequence[str] | None = None,
    localise_images: int = 200,
    image_batch: int = 64,
    workers: int = 2,
) -> Study:
    """Builds the code tables of two sets of images and asks them everything.

    Args:
        run: where the tables are kept.
        model: the model.
        sae: the dictionary.
        validation: images to choose on; prompts of a pipeline, whose images are made and kept.
        test: images, or prompts, to measure on.
        factors: labels to look for; all that the data have if None.
        localise: factors whose heat maps are compared with masks; all that regions are labelled with if None.
        localise_images: at most so many images of each label.
        image_batch: images per forward pass.
        workers: threads that read images.
    """
    sources = (
        _source(run, model, validation, "validation", image_batch, workers),
        _source(run, model, test, "test", image_batch, workers),
    )
    validation, test = _shown(run, model, validation, image_batch), _shown(run, model, test, image_batch)
    tables = _table(run, sae, sources[0], "validation"), _table(run, sae, sources[1], "test")
    collected = sources[1].meta.collected
    metrics = evaluate_sae(sae, sources[1].chunks(), scale=collected.scale if collected else "variance")
    components = pca((chunk.rows for chunk in sources[0].chunks()), max(1, min(sae.d, round(metrics.l0))))
    concepts = find_concepts(tables[0], tables[1], factors)
    if sources[1].has_regions and tables[1].geometry is not None:
        known = {key for labels in sources[1].region_labels for region in labels for key in region}
        places = known if localise is None else known & set(localise)
        wanted = [c.selection for c in concepts if c.selection.factor in places]
        found = _locate(wanted, tables, sources, (validation, test), localise_images) if wanted else []
        where = {(one.factor, one.value): one for one in found}
        concepts = [replace(c, localisation=where.get((c.selection.factor, c.selection.value))) for c in concepts]
    return Study(
        tables[0], tables[1], validation, test, metrics, evaluate_sae(components, sources[1].chunks()), concepts
    )


def _locate(
    wanted: list[Selection],
    tables: tuple[CodeTable, CodeTable],
    sources: tuple[ActivationSource, ActivationSource],
    data: tuple[ImageData, ImageData],
    images: int,
) -> list[ConceptLocalisation]:
    """Compares heat maps with masks; each pair is validation, test."""
    return localise_concepts(wanted, tables[0], tables[1], sources[0], sources[1], data[0], data[1], max_images=images)


def _shown(run: Run, model: AdaptedModel | AdaptedPipeline, data: ImageData | PromptData, batch: int) -> ImageData:
    """The images of a data set; those that a pipeline makes of prompts."""
    if not isinstance(model, AdaptedPipeline) or not run.card.sampling:
        return data  # type: ignore[return-value]
    prompts: PromptData = data  # type: ignore[assignment]
    folder = run.folder / "codes" / f"images-{data.fingerprint[:8]}"
    return Drawn(model, prompts, Collection.from_dict(run.card.sampling), folder, batch)


def _source(
    run: Run,
    model: AdaptedModel | AdaptedPipeline,
    data: ImageData | PromptData,
    name: str,
    batch: int,
    workers: int,
) -> ActivationSource:
    """Every token of the images: on disk where they are read several times, streamed else.

    They are read several times where there are masks, and where a pipeline must make the images for it.
    """
    site = run.card.site["name"]
    policy = TokenPolicy(kinds=tuple(run.card.policy["kinds"]))
    if isinstance(model, AdaptedPipeline):
        folder = run.folder / "codes" / f"{name}-activations-{data.fingerprint[:8]}"
        return store.extract(
            model, site, data, folder, policy=policy, batch=batch, workers=workers,
            sampling=Collection.from_dict(run.card.sampling),
        )  # fmt: skip
    if not _has_regions(data):
        return store.Stream(model, site, data, policy, dtype="float32", batch=batch, workers=workers)
    folder = run.folder / "codes" / f"{name}-activations-{data.fingerprint[:8]}"
    return store.extract(model, site, data, folder, policy=policy, dtype="float32", batch=batch, workers=workers)


def _has_regions(data: ImageData | PromptData) -> bool:
    """Whether the first image that can be read has regions."""
    for item in range(len(data)):
        try:
            return getattr(data[item], "regions", None) is not None
        except UnreadableImage:
            continue
    return False


def _table(run: Run, sae: Dictionary, source: ActivationSource, name: str) -> CodeTable:
    """The code table of a set of images, built unless it is there already."""
    folder = Path(run.folder) / "codes" / f"{name}-{source.meta.content_hash}-{run.card.weights[:8]}"
    return CodeTable.load(folder) if folder.exists() else CodeTable.build(sae, source, folder)


def find_concepts(validation: CodeTable, test: CodeTable, factors: Sequence[str] | None = None) -> list[Concept]:
    """The best latent of every label by F1 on validation, measured on test; labels shown always or never are out."""
    found = []
    for factor in factors if factors is not None else validation.factors:
        for selection in best_latents(validation, factor).values():
            shown = test.shows(factor)[test.factors[factor].index(selection.value)][test.labelled(factor)]
            if 0 < shown.sum() < len(shown):
                found.append(Concept(selection, measure(selection, test)))
    return found
