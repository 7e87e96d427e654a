"""The page of an erasure: the same seeds side by side, what is gone and what is left, latents, every setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visae.codes.over_time import watch
from visae.edit import EditedSite
from visae.evaluate.attacks import Attacked
from visae.evaluate.erasure import Outcome, Plain
from visae.evaluate.erasure_table import Row, Table
from visae.pipelines import AdaptedPipeline
from visae.select.selection import Selection
from visae.show import grid_figure, label_figure
from visae.show.page import build_page
from visae.show.sections import Picture, Section
from visae.workflows.concepts import Task, neighbours
from visae.workflows.results import plainly
from visae.workflows.strength import Tried
from visae.workflows.studio import Built

SHOWN, HEATED, LATENTS, LISTED, REVIVED = 8, 3, 4, 24, 4
"""Pictures side by side, under heat; latents beside each other, in the table; pictures of an attack side by side."""
_PERCENT = {"ua": "UA", "ira": "IRA", "cra": "CRA", "cra_saeuron": "CRA as SAeUron", "kept": "kept",
            "kept_change": "kept - plain", "identical": "identical"}  # fmt: skip
_GATE = {"tpr": "opens for the concept", "fpr": "opens for others", "identical_shut": "identical where shut"}


@dataclass(frozen=True)
class Story:
    """What the page tells.

    Attributes:
        pipeline: the pipeline.
        task: the concepts and their prompts.
        plain: the test pictures as they are.
        outcome: the same under the erasure.
        built: the erasure.
        tried: strengths on the validation prompts.
        told: everything that the summary holds.
        attacked: what attacks achieved.
    """

    pipeline: AdaptedPipeline
    task: Task
    plain: Plain
    outcome: Outcome
    built: Built
    tried: Sequence[Tried]
    told: dict[str, Any]
    attacked: Sequence[Attacked] = ()


def write_story(story: Story, folder: Path) -> Path:
    """Writes the page and, in `figures`, the pictures in it."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sections = [side_by_side(story, figures), measured(story), *gates(story), *strengths(story)]
    for number, selection in enumerate(story.built.selections):
        sections.append(latents(story, selection, figures / f"latents-{number}.png"))
    sections.append(attacks(story, figures))
    told = story.told
    options = told["options"]
    repeat = f'visae erase {options["pipe"]} --concept "{options["concept"]}" --method {options["method"]} ...'
    title = f"{story.task.name} erased from {told['pipeline']['id']} by {told['method']}"
    return build_page(
        folder / "index.html", title, sections, brand="visae erase", notes=told["warnings"],
        settings={k: v for k, v in plainly(told).items() if k not in ("measured", "selections", "attacks")},
        repeat=repeat,
    )  # fmt: skip


def side_by_side(story: Story, figures: Path) -> Section:
    """The same prompts and seeds, with the concept and without."""
    asked = [i for i, one in enumerate(story.task.test) if one.asks_for(story.task.concepts)]
    step = max(1, len(asked) // SHOWN)
    shown = {"target": asked[::step][:SHOWN], "neighbours": neighbours(story.task, SHOWN)}
    captions = {"target": "prompts that ask for the concept", "neighbours": "prompts that do not, the nearest first"}
    pictures = []
    for name, places in shown.items():
        if not places:
            continue
        rows = [[kind[i] for i in places] for kind in (story.plain.pictures, story.outcome.pictures)]
        titles = [_short(story.task.test[i].text) for i in places]
        figure = grid_figure(
            rows, [[None] * len(places)] * 2, row_titles=["plain", "erased"], column_titles=titles
        )  # fmt: skip
        figure.savefig(figures / f"{name}.png", dpi=110)
        pictures.append(Picture.of(figures / f"{name}.png", captions[name]))
    text = [
        "Above as the pipeline draws them, below with the concept erased; each column is one test prompt and one seed. "
        "They are evenly spaced, not chosen."
    ]
    return Section("The same seeds, plain and erased", text, pictures=pictures)


def measured(story: Story) -> Section:
    """The table with intervals, or how far pictures moved where no judge knows the concept."""
    of = story.told["prompts"]
    seen = f"{of['test']} test prompts, whose texts and seeds nothing was tuned on. In brackets 95 % of resamples."
    if not story.outcome.erased:
        moved = story.told["moved"]
        rows: list[list[Any]] = [["pictures of the concept", moved["target"]], ["other pictures", moved["retain"]]]
        text = [
            f"{seen} No judge knows this concept, so nothing here says whether it is gone: look at the pictures above.",
            "Moved: root mean square of pixels from the plain picture, 1 as far as pictures of other prompts are.",
        ]
        return Section("What moved", text, ["test prompts", "moved"], rows)
    table = Table([story.outcome]).rows()
    names = [name for name in _PERCENT if any(name in one.rates for one in table)]
    head = ["judge, pictures", *(_PERCENT[name] for name in names), "Frechet", "time added"]
    rows = [[f"{one.judge}, {one.method}", *_cells(one, names)] for one in table]
    text = [
        f"{seen} UA: what asks for the concept and is seen as something else. IRA, CRA: what is seen right of the same "
        "kind, and of the other. Kept: all that is not erased.",
        "Two judges of different families: a classifier, and tiny-clip zero-shot. All in percent; of the last ones, 0 "
        "is the plain picture.",
    ]
    return Section("What is gone, what is left", text, head, rows)


def _cells(row: Row, names: Sequence[str]) -> list[Any]:
    time = None if row.time is None else f"{row.time:+.1%}"
    return [*(row.rates[name].percent() if name in row.rates else None for name in names), row.frechet, time]


def gates(story: Story) -> list[Section]:
    """How often the gates opened, where all edits have one."""
    if not story.outcome.gate or not story.outcome.erased:
        return []
    rates = next(one for one in Table([story.outcome]).rows() if one.method != "plain").rates
    rows = [[text, rates[name].percent(), rates[name].n] for name, text in _GATE.items() if name in rates]
    text = ["Where the gate stays shut nothing is edited, and the picture is the plain one to the bit."]
    return [Section("The gate", text, ["of test pictures", "percent", "n"], rows)]


def strengths(story: Story) -> list[Section]:
    """What was tried."""
    if not story.tried:
        return []
    names = list(story.tried[0].harm)
    rows = [[t.strength, t.gain, *(t.harm[name] for name in names), "yes" if t.within else "no"] for t in story.tried]
    text = [
        f"On {story.told['prompts']['validation']} validation prompts. Allowed: {story.told['budget']:g} of each loss; "
        "taken is what erases most within that."
    ]
    return [Section("How strongly", text, ["strength", "gone", *(f"lost: {n}" for n in names), "within"], rows)]


def latents(story: Story, selection: Selection, file: Path) -> Section:
    """The latents with their evidence, and over plain test pictures where their site has a grid."""
    facts = selection.evidence
    rows = []
    for place, latent in enumerate(selection.latents[:LISTED]):
        levels = facts["active"][:, place] if "active" in facts else None
        means = [float(facts[name][levels, place].mean()) if levels is not None and name in facts else None
                 for name in ("target", "retain")]  # fmt: skip
        counted = None if levels is None else f"{int(levels.sum())} of {len(levels)}"
        rows.append([latent, selection.scores[place], selection.thresholds[place], *means, counted])
    caught = "not measured" if selection.coverage is None else f"{selection.coverage:.1%}"
    text = [
        f"Chosen by {selection.score} at {selection.site}, on tuning prompts; coverage {caught} of those with the "
        "concept. Means are over tokens, at the noise levels where a latent counts.",
        *_words(selection),
        *([f"The first {LISTED} of {len(selection.latents)} latents."] if len(selection.latents) > LISTED else []),
    ]
    head = ["latent", "score", "threshold", "mean with the concept", "mean without", "noise levels"]
    assert story.built.erasing is not None
    site = next(one for one in story.built.erasing.sites if story.pipeline.site(one.site).name == selection.site)
    pictures = []
    if story.pipeline.site(site.site).grid is not None:
        heat(story, site, selection, file)
        pictures.append(Picture.of(file, "plain test pictures, and the largest value over all steps of each latent"))
    return Section(f"The latents of {selection.name}", text, head, rows, pictures)


def _words(selection: Selection) -> list[str]:
    """Of latents that were selected for words."""
    known = selection.chosen_on
    if "words" not in known:
        return []
    return [
        f"They tell the words {', '.join(known['words'])} from all others; in their place stands {known['instead']}."
    ]


def heat(story: Story, site: EditedSite, selection: Selection, file: Path) -> None:
    """Draws where latents fire in pictures with the concept, and in one without."""
    asked = [one for one in story.task.test if one.asks_for(story.task.concepts)][: HEATED - 1]
    some = [*asked, *(story.task.test[i] for i in neighbours(story.task, HEATED - len(asked)))]
    shown = list(selection.latents[:LATENTS])
    courses = watch(
        story.pipeline, site.sae, site.site, [one.text for one in some], [one.seed for one in some],
        steps=story.told["run"].get("steps"), guidance=story.told["run"].get("guidance"),
    )  # fmt: skip
    heats = [course.heats(shown).max(1) for course in courses]
    figure = label_figure([course.frames[-1] for course in courses], heats, [f"latent {latent}" for latent in shown])
    figure.savefig(file, dpi=110)


def attacks(story: Story, figures: Path) -> Section:
    """What brought the concept back, or that nobody tried to."""
    if not story.attacked:
        why = "" if story.outcome.erased else " No judge knows this concept, so none could tell what it achieved."
        text = [
            f"No attack was run.{why} How often paraphrases, optimised prompts or other noise bring the concept back, "
            "this page does not say."
        ]
        return Section("Attacks", text)
    rows: list[list[Any]] = [
        [
            _on(story, one), judge, len(one.prompts), one.success(judge, "plain").percent(),
            one.success(judge, "before").percent(), one.success(judge).percent(), one.ua(judge).percent(), one.price,
        ]
        for one in story.attacked
        for judge in one.after
    ]  # fmt: skip
    head = ["attack", "judge", "prompts", "shows it: plain", "erased", "attacked", "UA attacked", "budget of a prompt"]
    text = [
        "Each attack draws test prompts that ask for the concept until a picture shows it or its budget is spent. In "
        "percent of the prompts, in brackets 95 % of resamples; UA attacked is what is left of the erasure.",
        "A black box attack sees pictures alone. A white box attack computes gradients, an adaptive one through the "
        "erasure; of one that is not, a failure is no proof that the erasure withstands attacks.",
    ]
    pictures = []
    for number, one in enumerate(story.attacked):
        if places := _by_attack(one):
            file, by = figures / f"attack-{number}.png", one.revived[places[0]]
            revived(story, one, file)
            pictures.append(Picture.of(file, f"{_on(story, one)}: the first brought back by “{by}”"))
    return Section("Attacks", text, head, rows, pictures)


def _on(story: Story, one: Attacked) -> str:
    several = len(story.task.concepts) > 1
    return f"{one.label} on {'='.join(one.concept)}" if several else one.label


def _by_attack(one: Attacked) -> list[int]:
    """Prompts that show the concept to the first judge under the attack, but not by themselves."""
    judge = next(iter(one.after))
    return np.flatnonzero(one.after[judge] & ~one.before[judge]).tolist()


def revived(story: Story, one: Attacked, file: Path) -> None:
    """Draws pictures as they are, erased, and as an attack brought the concept back."""
    places = _by_attack(one)[:REVIVED]
    tests = [story.task.test.index(one.prompts[i]) for i in places]
    attacked = [picture for i in places if (picture := one.pictures[i]) is not None]
    rows = [*([kind[i] for i in tests] for kind in (story.plain.pictures, story.outcome.pictures)), attacked]
    titles = [_short(one.prompts[i].text) for i in places]
    figure = grid_figure(
        rows, [[None] * len(places)] * 3, row_titles=["plain", "erased", "attacked"], column_titles=titles,
        captions=[*([""] * len(places) for _ in range(2)), [_short(one.revived[i]) for i in places]],
    )  # fmt: skip
    figure.savefig(file, dpi=110)


def _short(text: str) -> str:
    return text if len(text) < 24 else f"{text[:22]}..."
