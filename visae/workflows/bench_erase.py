"""Every erasing method on every concept of the built-in world: the same prompts, the same seeds, one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visae.erasers import METHODS
from visae.evaluate.attacks import Attacked
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_table import Row, Table, plain_row, row
from visae.evaluate.rates import Rate
from visae.json_files import write_json
from visae.text_table import text_table
from visae.workflows.attacking import GRADIENTS, STRONGEST, TRIES, Plan, Pooled, pooled, strongest
from visae.workflows.collecting import Weights
from visae.workflows.concepts import world_task
from visae.workflows.dictionaries import Place, dictionaries
from visae.workflows.erase import TEXTS, run_arguments, some, training_data
from visae.workflows.erase_field import Field, attacked_groups, erased_together
from visae.workflows.erase_sequence import Step, erase_in_sequence, in_order, steps_table
from visae.workflows.strength import BUDGET
from visae.workflows.studio import CHECK, JUDGE
from visae.world.cells import DOMAINS, cells

HEAD = ("pipeline", "method", "domain", "targets", "mean of 3", "UA", "IRA", "CRA", "kept - plain", "gate FPR",
        "UA attacked", "time added")  # fmt: skip
CHECKED = ("pipeline", "method", "domain", "UA", "IRA", "CRA", "kept - plain", "UA attacked")
ATTACKED = ("pipeline", "method", "domain", "attack", "budget of a prompt", "targets", "UA before", "UA attacked")
_CHECKED = ("ua", "ira", "cra", "kept_change")
_RATES = ("mean", *_CHECKED, "fpr")


@dataclass(frozen=True)
class Line:
    """A method on the targets of a domain, on one pipeline, by one judge, and what attacks on some of them did."""

    pipeline: str
    row: Row
    attacks: tuple[Pooled, ...] = ()

    @property
    def ua_attacked(self) -> Rate | None:
        """UA after the strongest adaptive attack; None where none was run."""
        found = strongest(self.attacks, self.row.judge)
        return None if found is None else found.ua(judge=self.row.judge)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes: shares from 0 to 1, None where nothing was measured."""
        value = {name: rate.value for name, rate in self.row.rates.items()}
        return {
            "pipeline": self.pipeline, "method": self.row.method, "domain": self.row.domain,
            **{name: value.get(name) for name in ("ua", "ira", "cra")},
            "ua_attacked": None if (left := self.ua_attacked) is None else left.value,
            "overhead": self.row.time,
        }  # fmt: skip

    @property
    def cells(self) -> list[Any]:
        """Of the printed table."""
        time = "-" if self.row.time is None else f"{self.row.time:+.1%}"
        named = [self.pipeline, self.row.method, self.row.domain, len(self.row.targets)]
        return [*named, *self._told(_RATES), self._left, time]

    @property
    def checked(self) -> list[Any]:
        """Of the printed table of another judge, which leaves out what no judge decides."""
        return [self.pipeline, self.row.method, self.row.domain, *self._told(_CHECKED), self._left]

    def _told(self, names: Sequence[str]) -> list[str]:
        return [self.row.rates[name].percent() if name in self.row.rates else "-" for name in names]

    @property
    def _left(self) -> str:
        return "-" if self.ua_attacked is None else self.ua_attacked.percent()

    @property
    def attacked(self) -> list[list[Any]]:
        """Of the printed table of attacks."""
        return [
            [
                self.pipeline, self.row.method, self.row.domain, one.results[0].label, one.results[0].price,
                len(one.results), one.ua("before").percent(), one.ua().percent(),
            ]
            for one in self.attacks
        ]  # fmt: skip


@dataclass(frozen=True)
class EraseBench:
    """The table; prints as one.

    Attributes:
        lines: one for each pipeline, method and domain; of the plain pipeline, too.
        unsuitable: method and pipeline -> why it cannot work there.
        folder: with everything, image by image.
        steps: of concepts that were erased one after another.
        checks: the lines by the second judge.
    """

    lines: list[Line]
    unsuitable: dict[str, str]
    folder: Path
    steps: list[Step] = field(default_factory=list)
    checks: list[Line] = field(default_factory=list)

    def __str__(self) -> str:
        notes = [
            "In percent, means over targets by the judge; in brackets 95 % of resamples of the images.",
            *(f"{name}: {why}" for name, why in self.unsuitable.items()),
            f"image by image, by both judges: {self.folder}",
        ]
        attacks = [cells for line in self.lines for cells in line.attacked]
        told = [text_table(ATTACKED, attacks), "", "Of the prompts that were attacked.", ""] if attacks else []
        walked = [steps_table(self.steps), ""] if self.steps else []
        checked = [line.checked for line in self.checks]
        checks = [f"By the second judge, {CHECK}:", "", text_table(CHECKED, checked), ""] if checked else []
        table = text_table(HEAD, [line.cells for line in self.lines])
        return "\n".join([table, "", *checks, *told, *walked, *notes])


def bench_erase(
    *,
    pipelines: tuple[str, ...] = ("visae:tiny-sd",),
    methods: tuple[str, ...] = (),
    domains: tuple[str, ...] = ("style", "shape"),
    targets: int | None = None,
    together: tuple[int, ...] = (),
    in_sequence: int | None = None,
    tune: int = 1,
    budget: float = BUDGET,
    sae: dict[str, str] = {},  # noqa: B006 (read only)
    text_sae: dict[str, str] = {},  # noqa: B006 (read only)
    images: int = 400,
    phrasings: int = 1,
    seeds: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    turns: int = 3,
    attacks: tuple[str, ...] = STRONGEST,
    attacked: int = 0,
    attacked_targets: int | None = None,
    tries: int = TRIES,
    gradients: int = GRADIENTS,
    batch: int = 8,
    out: Path = Path("bench-erase"),
    json: Path | None = None,
    image_size: tuple[int, int] | None = None,
    weights: Weights = "float32",
    device: str = "auto",
) -> EraseBench:
    """Compare erasing methods on all shapes and styles of the built-in world, on the same prompts and seeds.

    The plain pictures are drawn once. Strengths are chosen once for each method and domain, on validation prompts of a
    few targets, within a budget of harm; everything in the table is measured on test prompts. Every result is kept as
    soon as it is there: stopped at any moment, the same command goes on where it was, and does no target twice.

    Example:
        visae bench erase --targets 4 --methods ours saeuron uce --json erase.json

    Args:
        pipelines: on which; those that ship with visae, or others that draw the built-in world.
        methods: by name; all that there are if not given.
        domains: whose values are erased, `style` and `shape`.
        targets: of each domain, evenly spaced; all if not given.
        together: also erase so many at once, shapes and styles in proportion, e.g. `--together 2 4 10` (10 is half).
        in_sequence: also erase so many one after another, each where the earlier ones are gone already, and measure
            after each what is gone of all so far and what is left of the rest; kept in `sequence.json`.
        tune: targets of each domain on which each method's strength is chosen; 0 takes the methods' own settings.
        budget: of harm while choosing, see `visae erase --help`.
        sae: pipeline and run on a site of its denoiser, e.g. `--sae visae:tiny-sd runs/sd`; trained if not given.
        text_sae: the same on a site of its text encoder.
        images: captions that dictionaries are trained on, where none are given.
        phrasings: texts of every shape in every style.
        seeds: test images of every text.
        steps: denoising steps; those of the dictionary's training, else 20.
        guidance: guidance scale; that of the dictionary's training, else 4 for shipped pipelines and others' own.
        turns: of timing, on the first target of each domain; 0 leaves it out.
        attacks: on what is erased, see `visae erase --help`; `ua_attacked` is that of the strongest adaptive one.
        attacked: test prompts of each target that are attacked, evenly spaced; 0 none. It costs: with the default
            tries, gradients and 20 steps, each such prompt takes, by each method, up to about as long as 50 pictures;
            4 of each of 20 targets, with pictures of 0.3 seconds, are up to 20 minutes for a method.
        attacked_targets: of each domain, evenly spaced; all that are run if not given.
        tries: pictures that an attack may draw of each prompt, see `visae erase --help`.
        gradients: before each of them, likewise.
        batch: pictures made at a time.
        out: folder for everything that is kept.
        json: write the table here: `{"rows": [{"pipeline", "method", "domain", "ua", "ira", "cra", "ua_attacked",
            "overhead"}]}`, shares from 0 to 1, null where not measured.
        image_size: height and width of the pictures; the pipelines' own if not given.
        weights: type of the pipelines' weights; on a GPU, `float16` or `bfloat16`.
        device: `auto`, `cpu`, `cuda`, ...
    """
    chosen = {name: METHODS[name] for name in methods or tuple(METHODS)}
    plan = Plan(attacks, attacked, tries, gradients)
    lines: list[Line] = []
    checks: list[Line] = []
    walked: list[Step] = []
    unsuitable: dict[str, str] = {}
    for name in pipelines:
        place, folder = Place(name, image_size, weights, device), Path(out) / name.replace("/", "_").replace(":", "-")
        pipeline = place.load()
        own, text = (Path(known[name]) if name in known else None for known in (sae, text_sae))
        given = run_arguments(own, steps, guidance, name.startswith("visae:"))
        groups = erased_together(domains, targets, together)
        first = world_task(groups[0], given, phrasings, seeds)
        saes = dictionaries(
            place, pipeline, chosen.values(), folder, runs={"denoiser": some(own), "text": some(text)},
            data=training_data(first, folder, images), texts=training_data(first, folder, TEXTS),
            said=[one.text for one in cells("train", phrasings).items], given=given, batch=batch,
        )  # fmt: skip
        bench = Field(pipeline, saes, given, folder, batch, phrasings, seeds, turns)
        strong = bench.strengths(chosen, domains, targets, tune, budget)
        found = bench.run(strong, groups, plan, attacked_groups(groups, attacked_targets))
        unsuitable |= {f"{method} on {name}": why for method, why in found.unsuitable.items()}
        lines += table_lines(name, found.outcomes, found.attacked)
        checks += table_lines(name, found.outcomes, found.attacked, CHECK)
        told = {method: [one.to_dict() for one in its] for method, its in found.attacked.items() if its}
        write_json(folder / "table.json", {**Table(found.outcomes).to_dict(), "attacks": told})
        if in_sequence is not None:
            several = {method: strong[method, "several"] for method in chosen}
            found = erase_in_sequence(bench, several, in_order(domains, in_sequence))
            unsuitable |= {f"{method} on {name}": why for method, why in found.unsuitable.items()}
            mine = [Step(name, one) for one in found.outcomes]
            write_json(folder / "sequence.json", {"rows": [one.to_dict() for one in mine]})
            walked += mine
    done = EraseBench(lines, unsuitable, Path(out), walked, checks)
    if json is not None:
        single = [line.to_dict() for line in lines if line.row.domain in DOMAINS and line.row.method != "plain"]
        write_json(json, {"rows": single})
    return done


def table_lines(
    pipeline: str, outcomes: Sequence[Outcome], attacked: Mapping[str, Sequence[Attacked]], judge: str = JUDGE
) -> list[Line]:
    """One for each method and domain by a judge, the plain pipeline first.

    Args:
        pipeline: its name.
        outcomes: of all methods.
        attacked: method -> what attacks on single concepts achieved.
        judge: whose answers count.
    """
    lines = []
    for domain in dict.fromkeys(one.domain for one in outcomes):
        mine = [one for one in outcomes if one.domain == domain]
        lines.append(Line(pipeline, plain_row(list({one.concepts: one for one in mine}.values()), judge)))
        for method in dict.fromkeys(one.method for one in mine):
            hit = pooled([one for one in attacked.get(method, ()) if one.concept[0] == domain])
            lines.append(Line(pipeline, row([one for one in mine if one.method == method], judge), tuple(hit)))
    return lines
