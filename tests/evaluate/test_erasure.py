"""Measuring erasure: invented answers against counts by hand, and a painter that erases as it is told."""

import json
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from visae.data.sample import Prompt
from visae.evaluate import overhead as costs
from visae.evaluate.erasure import Plain, draw
from visae.evaluate.erasure_counts import asked, counts, gate_counts
from visae.evaluate.erasure_table import Table, plain_row, row
from visae.evaluate.overhead import Overhead, overhead
from visae.evaluate.rates import rate
from visae.registry import UnknownName
from visae.world.cells import DOMAINS, cells
from visae.world.factors import SHAPES, STYLES
from visae.world.judging import clip_judged, clip_vectors, judged
from visae.world.render import render
from visae.world.sheet import _posed


def prompt(shape, style):
    labels = {"shape": (shape,)} | ({"style": (style,)} if style else {})
    return Prompt(f"a {style} {shape}", 0, "", labels)


CELLS = [(shape, style) for shape in ("star", "ring") for style in ("flat", "dots", "photo")]
INVENTED = [prompt(*cell) for cell in CELLS] + [prompt("star", None), prompt("ring", None)]
SEEN = {
    "shape": ["star", "star", "ring", "ring", "star", "ring", "star", "star"],
    "style": ["flat", "flat", "photo", "dots", "dots", "photo", "dots", "dots"],
}


def values(concepts, **more):
    found = counts(asked(INVENTED, concepts, **more), SEEN)
    return {name: None if (one := rate([tally])) is None else (one.value, one.n) for name, tally in found.items()}


def test_measures_are_what_counting_by_hand_gives():
    dots = values([("style", "dots")])
    assert dots == {
        "ua": (1 / 2, 2),  # star dots is seen flat, ring dots as it is
        "ira": (3 / 4, 4),  # flat and photo: ring flat is seen dotted
        "cra": (4 / 6, 6),  # shapes of all cells: star photo and ring dots are seen wrong
        "cra_saeuron": (1 / 2, 2),  # shapes where the style is open
        "kept": (pytest.approx(7 / 10), 10),
    }
    star = values([("shape", "star")])
    assert star["ua"] == (pytest.approx(1 / 3), 3)
    assert star["ira"] == (pytest.approx(2 / 3), 3)
    assert star["cra"] == (pytest.approx(4 / 6), 6)
    assert star["cra_saeuron"] == (pytest.approx(2 / 3), 3)  # no prompt leaves the shape open: cells without a star


def test_a_neutral_value_is_no_member_of_its_domain_and_leaves_it_open():
    dots = values([("style", "dots")], neutral=[("style", "photo")])
    assert dots["ira"] == (1 / 2, 2)
    assert dots["cra"] == (4 / 6, 6)
    assert dots["cra_saeuron"] == (1 / 2, 4)
    assert dots["kept"] == (5 / 8, 8)


def test_of_several_concepts_every_answer_that_is_asked_for_counts():
    both = values([("style", "dots"), ("shape", "star")])
    assert both["ua"] == (2 / 5, 5)
    assert both["ira"] == (pytest.approx(5 / 7), 7)
    assert both["cra"] is None
    assert both["kept"] == both["ira"]
    two = values([("style", "dots"), ("style", "flat")])
    assert (two["ua"], two["ira"], two["cra"]) == ((1 / 2, 4), (1.0, 2), (4 / 6, 6))


def test_gates_are_counted_over_cells_alone():
    of = asked(INVENTED, [("style", "dots")])
    opened = np.array([1, 1, 0, 0, 0, 0, 1, 1], bool)
    same = np.array([0, 0, 1, 1, 0, 0, 1, 1], bool)
    found = {name: rate([one]) for name, one in gate_counts(of, opened, same).items()}
    assert (found["tpr"].value, found["tpr"].n) == (1 / 2, 2)
    assert (found["fpr"].value, found["fpr"].n) == (1 / 4, 4)
    assert (found["identical_shut"].value, found["identical_shut"].n) == (pytest.approx(2 / 3), 3)
    with pytest.raises(ValueError, match="each of 8 prompts, got 3"):
        gate_counts(of, opened[:3], same)


def test_what_cannot_be_counted_is_refused_by_name():
    with pytest.raises(UnknownName, match="Did you mean 'dots'"):
        asked(INVENTED, [("style", "dotts")])
    with pytest.raises(UnknownName, match="domain of the prompts 'colour'"):
        asked(INVENTED, [("colour", "red")])
    with pytest.raises(ValueError, match="nothing is erased"):
        asked(INVENTED, [])
    with pytest.raises(ValueError, match="name the style of all 8 pictures; it named 0, and answers for shape"):
        counts(asked(INVENTED, [("style", "dots")]), {"shape": SEEN["shape"]})


class Painter:
    """A pipeline that paints what `alter` makes of what a prompt states; an open style is left to the seed."""

    def __init__(self, prompts):
        self.stated = {one.text: {name: found[0] for name, found in one.labels.items()} for one in prompts}
        self.pipe = SimpleNamespace(set_progress_bar_config=lambda **_: None, _progress_bar_config={})
        self.alter, self.painted = dict, {}

    def generate(self, texts, seeds, output_type):
        return [self.paint(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def paint(self, text, seed):
        wanted = self.alter({"style": STYLES[seed % len(STYLES)], **self.stated[text]})
        key = (seed, *sorted(wanted.items()))
        if key not in self.painted:
            scene = _posed(seed, "large", **wanted) if wanted else None
            self.painted[key] = Image.fromarray(render(scene, 64)) if wanted else Image.new("RGB", (64, 64), "grey")
        return self.painted[key]

    @contextmanager
    def altered(self, alter):
        self.alter = alter
        try:
            yield
        finally:
            self.alter = dict


@pytest.fixture(scope="module")
def painter():
    return Painter(cells("test"))


def remembering(judge):
    """A judge that looks at no picture twice."""
    known = {}

    def tell(pictures):
        keys = [one.tobytes() for one in pictures]
        if new := {key: one for key, one in zip(keys, pictures, strict=True) if key not in known}:
            told = judge(list(new.values()))
            if isinstance(told, dict):
                known.update({key: {f: told[f][i] for f in DOMAINS} for i, key in enumerate(new)})
            else:
                known.update(zip(new, told, strict=True))
        found = [known[key] for key in keys]
        return {f: [one[f] for one in found] for f in DOMAINS} if isinstance(found[0], dict) else torch.stack(found)

    return tell


@pytest.fixture(scope="module")
def plain(painter):
    prompts = list(cells("test"))
    judges = {"judge": remembering(judged), "tiny-clip": remembering(clip_judged)}
    return Plain.of(prompts, lambda: draw(painter, prompts, batch=16), judges, remembering(clip_vectors))


def without(*concepts):
    """What a perfect eraser paints: another value in place of an erased one."""
    kept = {"shape": [s for s in SHAPES if ("shape", s) not in concepts],
            "style": [s for s in STYLES if ("style", s) not in concepts]}  # fmt: skip

    def alter(stated):
        return {f: kept[f][0] if (f, v) in concepts else v for f, v in stated.items()}

    return alter


def told(outcome, judge):
    return {name: one.value for name, one in row([outcome], judge).rates.items()}


@pytest.mark.parametrize("judge", ["judge", "tiny-clip"])
@pytest.mark.parametrize("concept", [("style", "dots"), ("shape", "star")])
def test_a_perfect_eraser_scores_full_marks_and_hurts_nothing(concept, judge, painter, plain):
    outcome = plain.measure(lambda: painter.altered(without(concept)), [concept], "perfect")
    found, ceiling = told(outcome, judge), {n: r.value for n, r in plain_row([outcome], judge).rates.items()}
    assert found["ua"] == 1
    assert ceiling["ua"] < 0.1
    assert found["ira"] == ceiling["ira"] > 0.9
    assert min(found["cra"], found["cra_saeuron"], ceiling["cra"]) > 0.9
    assert abs(found["kept_change"]) < 0.02
    assert (found["identical"], found["pixels"], found["embedding"]) == (1, 0, pytest.approx(0, abs=1e-6))
    assert outcome.harm.frechet == pytest.approx(0, abs=1e-6)
    assert outcome.domain == concept[0]


@pytest.mark.parametrize("judge", ["judge", "tiny-clip"])
def test_no_erasure_is_the_plain_pipeline_and_a_destroyed_one_shows_nothing(judge, painter, plain):
    same = plain.measure(nullcontext, [("style", "dots")], "none", keep=False)
    assert same.pictures == []
    assert told(same, judge)["ua"] == plain_row([same], judge).rates["ua"].value < 0.1
    assert (told(same, judge)["kept_change"], told(same, judge)["identical"]) == (0, 1)
    concept = ("style", "dots")
    grey = plain.measure(lambda: painter.altered(lambda _: {}), [concept], "grey")
    found = told(grey, judge)
    one_answer = {f: grey_values[0] for f, grey_values in plain.judges[judge](grey.pictures[:1]).items()}
    assert found["ua"] == (one_answer["style"] != "dots")
    assert found["ira"] == pytest.approx(1 / 7 if one_answer["style"] != "dots" else 0)
    assert found["cra"] == pytest.approx(1 / 12)
    assert found["kept_change"] < -0.7
    assert found["identical"] == 0
    assert min(found["embedding"], found["pixels"], grey.harm.frechet) > 0.05


def test_half_of_all_concepts_at_once(painter, plain):
    gone = [("style", s) for s in STYLES[1::2]] + [("shape", s) for s in SHAPES[1::2]]
    outcome = plain.measure(lambda: painter.altered(without(*gone)), gone, "perfect")
    found = told(outcome, "judge")
    assert (found["ua"], outcome.domain) == (1, "4 of style, 6 of shape")
    assert abs(found["kept_change"]) < 0.05
    assert "cra" not in found
    assert "mean" not in found


def test_what_is_harmed_beside_the_target_shows_in_the_measure_that_asks_for_it(painter, plain):
    concept = ("style", "dots")

    def neighbours(stated):  # stripes fall with dots
        return without(concept, ("style", "stripes"))(stated)

    def shapes(stated):  # with its style, a dotted thing loses its shape
        return without(concept)(stated) | ({"shape": "ring"} if stated["style"] == "dots" else {})

    near = told(plain.measure(lambda: painter.altered(neighbours), [concept]), "judge")
    across = told(plain.measure(lambda: painter.altered(shapes), [concept]), "judge")
    clean = told(plain.measure(lambda: painter.altered(without(concept)), [concept]), "judge")
    assert near["ira"] == pytest.approx(clean["ira"] - 1 / 7, abs=0.02)
    assert near["identical"] == pytest.approx(6 / 7)
    assert near["cra"] == pytest.approx(clean["cra"], abs=0.02)
    assert across["cra"] == pytest.approx(clean["cra"] - 11 / 96, abs=0.02)
    assert across["ira"] == clean["ira"]
    assert across["kept_change"] == pytest.approx(-11 / 180, abs=0.02)


def test_a_table_has_means_over_targets_beside_the_plain_pipeline_with_intervals_and_can_be_json(painter, plain):
    cost = Overhead(2.0, 2.1, 0.1, 50.0, float("nan"), 3)
    outcomes = []
    for name in STYLES[:3]:
        concept = ("style", name)
        gate = [one.asks_for([concept]) or "star" in one.labels["shape"] for one in plain.prompts]
        perfect = plain.measure(lambda c=concept: painter.altered(without(c)), [concept], "perfect",
                                opened=lambda g=gate: g, overhead=cost)  # fmt: skip
        outcomes += [perfect, plain.measure(nullcontext, [concept], "none")]
    table = Table(outcomes)
    rows = {(one.method, one.judge): one for one in table.rows()}
    assert list(rows) == [(m, j) for j in ("judge", "tiny-clip") for m in ("plain", "perfect", "none")]
    ours = rows["perfect", "judge"]
    assert len(ours.targets) == 3
    single = [told(one, "judge") for one in outcomes if one.method == "perfect"]
    for name in ("ua", "ira", "cra", "mean", "tpr", "fpr"):
        assert ours.rates[name].value == pytest.approx(np.mean([one[name] for one in single])), name
        assert ours.rates[name].low <= ours.rates[name].value <= ours.rates[name].high
    assert ours.rates["mean"].value == pytest.approx(np.mean([ours.rates[n].value for n in ("ua", "ira", "cra")]))
    assert (ours.rates["tpr"].value, ours.rates["fpr"].value) == (1, pytest.approx(1 / 12))
    assert ours.rates["identical_shut"].value == 1
    assert (ours.time, ours.memory) == (pytest.approx(0.05), None)
    assert rows["none", "judge"].rates["ua"].value == rows["plain", "judge"].rates["ua"].value
    text = str(table)
    assert "100.0 [100.0, 100.0]" in text
    assert "+5.0%" in text
    assert len([line for line in text.splitlines() if line.startswith("style ")]) == 6
    read = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert [one["method"] for one in read["rows"]] == [method for method, _ in rows]
    assert read["rows"][1]["targets"] == [[f"style={name}"] for name in STYLES[:3]]
    assert len(read["targets"]) == 12
    with pytest.raises(ValueError, match="one method on one domain"):
        row(outcomes, "judge")


def test_turns_alternate_and_only_the_run_inside_the_context_is_its_time(monkeypatch):
    clock, order, inside = [0.0], [], [False]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(costs, "peak_of", lambda job, *_, **__: (job(), 0.0)[1])

    def run():
        order.append("erased" if inside[0] else "plain")
        clock[0] += 100 if len(order) <= 2 else 1.25 if inside[0] else 1.0

    @contextmanager
    def erasure():
        inside[0], clock[0] = True, clock[0] + 0.5
        yield
        inside[0] = False

    found = overhead(run, erasure, turns=3)
    assert (found.seconds_plain, found.seconds_erased, found.seconds_entering) == (1.0, 1.25, 0.5)
    assert found.time == pytest.approx(0.25)
    assert order[:8] == ["plain", "erased", "erased", "plain", "plain", "erased", "erased", "plain"]
    assert not inside[0]
    with pytest.raises(ValueError, match="at least one turn"):
        overhead(run, erasure, turns=0)


def test_memory_that_a_context_takes_is_found():
    held = []

    @contextmanager
    def erasure():
        held.append(np.ones(10_000_000))
        yield
        held.clear()

    found = overhead(lambda: np.ones(1000), erasure, turns=1)
    assert found.memory != found.memory or 60 < found.memory < 100  # MB; NaN where the system does not tell
    assert found.to_dict()["time"] == found.time
