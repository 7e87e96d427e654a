"""Erase a concept from a pipeline: learn what it is, choose how strongly, measure, export, and show it on a page."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visae.codes.build import fingerprint
from visae.erasers import Tools, tools_of
from visae.erasers.base import Part
from visae.erasers.strengths import variants, with_settings
from visae.evaluate.attacks import Attacked, attack_table
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_table import Table
from visae.json_files import write_json
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.workflows.attacking import GRADIENTS, PROMPTS, TRIES, USUAL, Plan, announced, defended
from visae.workflows.collecting import Weights
from visae.workflows.concepts import Task, fewer, free_task, learning_from, world_concepts, world_task
from visae.workflows.dictionaries import Place, default_sites, dictionaries
from visae.workflows.erase_job import Job
from visae.workflows.erase_page import Story, write_story
from visae.workflows.results import plainly
from visae.workflows.run import Run
from visae.workflows.strength import BUDGET, Tried, verdict
from visae.workflows.studio import Built
from visae.workflows.vocabulary import write_prompts

TEXTS = 4000
"""Captions of the built-in world that dictionaries of text encoders are trained on."""
STEPS, GUIDANCE = 20, 4.0
"""Of pictures where nothing says otherwise; the guidance is that of the shipped pipelines."""


@dataclass(frozen=True)
class Erased:
    """What was done; prints as tables.

    Attributes:
        folder: with all that was written.
        summary: the numbers.
        outcome: on the test prompts.
        tried: strengths on the validation prompts; empty where there was nothing to choose.
        page: to look at.
        attacks: on what was erased.
    """

    folder: Path
    summary: dict[str, Any]
    outcome: Outcome
    tried: list[Tried]
    page: Path
    attacks: list[Attacked] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        if self.tried:
            names = list(self.tried[0].harm)
            rows = [[t.strength, t.gain, *(t.harm[n] for n in names), t.within] for t in self.tried]
            lines += [text_table(["strength", "gone", *(f"lost {n}" for n in names), "within budget"], rows), ""]
        lines.append(str(Table([self.outcome])) if self.outcome.erased else _told(self.summary["moved"]))
        lines += ["", attack_table(self.attacks), ""] if self.attacks else []
        lines += [f"warning: {one}" for one in self.summary["warnings"]]
        if found := self.summary["export"]:
            code = f"visae.load_erasure({found!r}, pipe).install()" if Path(found).is_dir() else f"LoRA weights {found}"
            lines.append(f"for other processes: {code}")
        return "\n".join([*lines, duration(self.summary["seconds"]), "", f"Open {self.page}"])


def _told(moved: Mapping[str, float]) -> str:
    return (
        f"pictures of the concept moved {moved['target']:.2f}, others {moved['retain']:.2f} (1: as far as pictures of "
        "different prompts are from each other)"
    )


def erase(
    pipe: str,
    *,
    concept: str,
    retain: str | None = None,
    target: str | None = None,
    method: str = "ours",
    settings: dict[str, float] = {},  # noqa: B006 (read only)
    strength: float | None = None,
    budget: float = BUDGET,
    report: Path = Path("erased"),
    sae: Path | None = None,
    text_sae: Path | None = None,
    word_sae: tuple[Path, ...] = (),
    data: str | None = None,
    images: int = 400,
    pictures: int | None = None,
    phrasings: int = 1,
    seeds: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    turns: int = 3,
    attacks: tuple[str, ...] = USUAL,
    attacked: int = PROMPTS,
    tries: int = TRIES,
    gradients: int = GRADIENTS,
    batch: int = 8,
    image_size: tuple[int, int] | None = None,
    weights: Weights = "float32",
    device: str = "auto",
) -> Erased:
    """Make a text-to-image model unable to draw a concept, measure what is gone and what is left, and show it.

    Trains the dictionaries that the method needs, or takes yours; finds out from tuning prompts what the concept is;
    chooses how strongly to erase on other prompts, within a budget of harm; draws test prompts from the same seeds with
    and without; attacks the erasure; and writes a page (`index.html`), the numbers (`summary.json`) and, of methods
    that edit codes, a folder `erasure` that any diffusers script loads. Stopped at any moment, the same command goes on
    where it was.

    Concepts of the built-in world, `shape=star` or `style=dots`, bring prompts, labels and judges; of the shipped
    pipelines words will do. Everything else needs `--retain`, and is measured by how far pictures move.

    Example:
        visae erase visae:tiny-sd --concept "a star" --report out
        visae erase diffusers:~/models/sd15 --concept "a dog" --retain prompts.txt --sae runs/sd15 --report out

    Args:
        pipe: a pipeline, e.g. `visae:tiny-sd`, `diffusers:~/models/sd15`.
        concept: in words, or of the built-in world; several there are joined by commas: `shape=star,style=dots`.
        retain: prompts that do without the concept, see `visae extract --help`. Every third of them is tuned on, is for
            choosing a strength, is for the report; of a concept of the built-in world, which has its own, all are
            tuned on.
        target: prompts that ask for it, likewise; sentences around the concept if not given.
        method: `ours`, or one of those to compare with, e.g. `saeuron`, `itd`, `dsg`, `uce`, `negative_prompt`.
        settings: of the method, e.g. `--settings top_m 4`.
        strength: take this one instead of choosing, e.g. `--strength -8`; what it is depends on the method.
        budget: of harm, from 0 to 1: the share of right answers that may be lost in the concept's domain and in the
            others; without a judge, how far other pictures may move (1: as far as different prompts are apart).
        report: folder for all that is written.
        sae: a run on a site of the denoiser, see `visae train`; trained in the folder if the method needs one.
        text_sae: a run on a site of the text encoder, likewise.
        word_sae: runs on the inputs of the text encoders, likewise.
        data: prompts that such dictionaries are trained on; captions of the built-in world for its concepts, else the
            tuning prompts. Those at inputs of text encoders see every word of the vocabulary and the tuning prompts.
        images: how many captions of the built-in world that is.
        pictures: at most so many validation, and test, prompts, half of them with the concept; all if not given.
        phrasings: texts of every shape in every style.
        seeds: test images of every text.
        steps: denoising steps; those of the dictionary's training, else 20.
        guidance: guidance scale; that of the dictionary's training, else 4 for shipped pipelines and others' own.
        turns: of timing the pictures with and without; 0 leaves it out.
        attacks: that try to have the concept back, of those in `visae.evaluate.attacks`; none with `--attacks` alone,
            and none on concepts that no judge knows.
        attacked: test prompts of each concept that each attack is tried on, evenly spaced.
        tries: pictures that an attack may draw of each; it stops at the first that shows the concept to all judges.
        gradients: that an attack which computes some may compute before each of these, each as long as about five
            calls of the denoiser. UnlearnDiffAtk's own budget is `--tries 50 --gradients 40`.
        batch: pictures made at a time.
        image_size: height and width of the pictures; the pipeline's own if not given.
        weights: type of the pipeline's weights; on a GPU, `float16` or `bfloat16`.
        device: `auto`, `cpu`, `cuda`, ...
    """
    begun, out = time.perf_counter(), Path(report)
    asked = {name: value for name, value in locals().items() if name not in ("begun", "out")}
    plan = Plan(attacks, attacked, tries, gradients)
    base, place = with_settings(method, settings), Place(pipe, image_size, weights, device)
    pipeline = place.load()
    shipped = pipeline.id.startswith("visae:")
    given, found = run_arguments(sae, steps, guidance, shipped), world_concepts(concept, shipped)
    if found:
        task = learning_from(world_task(found, given, phrasings, seeds), target, retain)
    else:
        task = free_task(concept, target, retain, given, seeds)
    task = fewer(task, pictures)
    runs: dict[Part, Sequence[Path]] = {"denoiser": some(sae), "text": some(text_sae), "words": word_sae}
    saes = dictionaries(
        place, pipeline, [base], out, runs=runs, data=data or training_data(task, out, images),
        texts=data or training_data(task, out, TEXTS), said=[one.text for one in task.tuned_on], given=given,
        batch=batch,
    )  # fmt: skip
    tools = acting(pipeline, saes, task, out, batch)
    job = Job(pipeline, task, tools, given, out, batch, {site: fingerprint(one) for site, one in saes.items()})
    chosen, tried = job.choose(method, variants(method, base, strength), budget)
    built = job.built(chosen)
    outcome = job.test(method, built, turns)
    studio, assaults = job.studio("test"), plan.on(job, method, built.settings)
    announced(assaults)
    defence = defended(assaults, lambda: built)
    told: dict[str, Any] = {
        "pipeline": {"id": pipeline.id, "revision": pipeline.revision}, "concept": task.name, "method": method,
        "settings": built.settings, "budget": budget, "tried": [one.to_dict() for one in tried],
        "measured": Table([outcome]).to_dict(), "selections": [one.to_dict() for one in built.selections],
        "run": given, "prompts": {"tuning": len(task.tuned_on), "validation": len(task.validation),
                                  "test": len(task.test)},
        "found": {name: value for name, value in built.told.items() if name != "selections"}, "moved": None,
        "attacks": [one.to_dict() for one in defence.results],
        "warnings": [*warnings_of(built, tried), *defence.told], "export": built.told.get("file"), "options": asked,
    }  # fmt: skip
    if not outcome.erased:
        gain, lost = verdict(outcome, studio.plain)
        told["moved"] = {"target": gain, "retain": lost["moved"]}
    if built.erasing is not None:
        told["export"] = str(export(built, out / "erasure"))
    told["seconds"] = time.perf_counter() - begun
    write_json(out / "summary.json", plainly(told))
    page = write_story(Story(pipeline, task, studio.plain, outcome, built, tried, told, defence.results), out)
    return Erased(out, told, outcome, tried, page, defence.results)


def run_arguments(sae: Path | None, steps: int | None, guidance: float | None, shipped: bool) -> dict[str, Any]:
    """Steps and guidance: as given, else as the dictionary was trained, else the usual ones."""
    known = Run.open(sae).card.sampling if sae is not None else {}
    usual = known.get("guidance", GUIDANCE if shipped else None)
    found = {"steps": steps or known.get("steps") or STEPS, "guidance": usual if guidance is None else guidance}
    return {name: value for name, value in found.items() if value is not None}


def some(run: Path | None) -> Sequence[Path]:
    """A run or none, as `dictionaries` takes them."""
    return () if run is None else (run,)


def training_data(task: Task, folder: Path, images: int) -> str:
    """What dictionaries are trained on where nobody says."""
    if task.world:
        return f"world:prompts?split=train&n={images}&objects=1"
    return write_prompts(folder / "prompts.txt", (one.text for one in task.tuned_on))


def acting(pipeline: AdaptedPipeline, saes: Mapping[str, Dictionary], task: Task, folder: Path, batch: int) -> Tools:
    """What methods ask for; those that need a place but no dictionary get the usual one."""
    tools = tools_of(pipeline, saes, given=task.request.given, folder=folder, batch=batch, seeds=task.seeds)
    return tools if tools.site else replace(tools, site=default_sites(pipeline)["denoiser"][0])


def export(built: Built, folder: Path) -> Path:
    """Writes the edits for other processes, in place of those that an earlier call wrote."""
    assert built.erasing is not None
    if (folder / "erasure.json").is_file():
        shutil.rmtree(folder)
    return built.erasing.export(folder)


def warnings_of(built: Built, tried: list[Tried]) -> list[str]:
    """What a reader should know before believing the numbers."""
    told = [one.gap for one in built.selections if one.gap]
    if tried and not any(one.within for one in tried):
        told.append("no strength stays within the budget of harm; the least harmful was taken")
    return told
