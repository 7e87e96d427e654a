"""Attacks inside `visae erase` and `visae bench erase`, on a tiny pipeline whose oracle knows what comes back."""

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import pytest

import visae
from visae.data.sample import Prompt
from visae.erasers import METHODS, Erasure, Method
from visae.evaluate.attacks import ATTACKS, Texts
from visae.registry import UnknownName
from visae.workflows import bench_erase, erase
from visae.workflows.attacking import Plan, Pooled, strongest
from visae.workflows.dictionaries import Place
from visae.workflows.studio import CHECK, JUDGE, JUDGES
from visae.world.cells import cells

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is not caught in:UserWarning"),
]

WHITE = ("prompt_words", "prompt_words_blind")
TOY = {"tries": 2, "gradients": 2, "steps": 2, "guidance": 2.0, "turns": 0, "batch": 4}


class Oracle:
    """Says what a prompt states of a plain picture; of an erased one, where words stand before a flat prompt."""

    def __init__(self, model):
        self.stated = {one.text: {f: v[0] for f, v in one.labels.items()} for p in cells_of_all() for one in p}
        self.drawn, self.erased, self.shows = 0, False, {}
        generate = model.generate

        def noted(texts, seeds, **given):
            made = generate(texts, seeds, **given)
            if given.get("output_type") == "pil":
                self.drawn += len(made)
                for picture, text in zip(made, texts, strict=True):
                    self.note(picture, text)
            return made

        model.generate = noted

    def note(self, picture, text):
        own = next(known for known in self.stated if text.endswith(known))
        shown = {"style": "flat"} | self.stated[own]
        gone = self.erased and (own == text or shown["style"] != "flat")
        told = {"shape": "none", "style": "none"} if gone else shown
        assert self.shows.setdefault(picture.tobytes(), told) == told, "two pictures are the same"

    def __call__(self, pictures):
        told = [self.shows[picture.tobytes()] for picture in pictures]
        return {factor: [one[factor] for one in told] for factor in ("shape", "style")}


def cells_of_all():
    return [cells(part).items for part in ("train", "validation", "test")]


@dataclass(frozen=True)
class Dim(Method):
    """Weakens what the denoiser says, and tells the oracle."""

    by: float = 0.5

    def build(self, pipeline, request, tools):
        @contextmanager
        def enter():
            handle = pipeline.pipe.unet.register_forward_hook(lambda _m, _a, out: (out[0] * self.by, *out[1:]))
            pipeline.oracle.erased = True
            try:
                yield
            finally:
                pipeline.oracle.erased = False
                handle.remove()

        return Erasure(enter, self.settings)


@pytest.fixture
def oracle(tiny_pipelines, monkeypatch, few_cells):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    model.oracle = Oracle(model)
    monkeypatch.setattr(Place, "load", lambda _: model)
    monkeypatch.setitem(METHODS._things, "dim", Dim())
    monkeypatch.setitem(JUDGES, JUDGE, model.oracle)
    monkeypatch.setitem(JUDGES, CHECK, model.oracle)
    return model.oracle


def refuse(prompt, concept, n):
    raise ValueError(f"no words for {concept[1]}")


def revived(prompts):
    """How many prompts come back by words before them."""
    return sum(one.labels.get("style", ("flat",)) == ("flat",) for one in prompts)


def test_attacks_are_told_in_the_summary_and_shown_on_the_page_and_not_run_twice(oracle, tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS._things, "refusing", Texts(refuse))
    options = {"concept": "shape=ring", "method": "dim", "attacks": ("refusing", "seeds", *WHITE), "attacked": 3,
               "report": tmp_path, **TOY}  # fmt: skip
    made = erase("tiny", **options)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert [one["attack"] for one in told["attacks"]] == ["seeds", *WHITE]
    assert [one["adaptive"] for one in told["attacks"]] == [False, True, False]
    assert told["warnings"] == ["the attack refusing cannot work here: no words for ring"]
    seeds, white, _ = told["attacks"]
    assert (seeds["budget"], white["budget"]) == ({"pictures": 2}, {"gradients": 4, "pictures": 2, "tokens": 5})
    prompts = made.attacks[1].prompts
    assert len(prompts) == 3
    assert all(one.labels["shape"] == ("ring",) and "style" in one.labels for one in prompts)
    assert len({one.labels["style"] for one in prompts}) == 3, "evenly spaced"
    rates = {when: white["judges"][JUDGE][when]["value"] for when in ("plain", "before", "after", "ua_attacked")}
    wanted = revived(prompts) / 3
    assert rates == pytest.approx({"plain": 1, "before": 0, "after": wanted, "ua_attacked": 1 - wanted})
    assert 0 < wanted < 1
    assert seeds["judges"][JUDGE]["after"]["value"] == 0
    text = re.sub(r"\s+", " ", made.page.read_text(encoding="utf-8"))
    for label in ("seeds (black box)", "prompt_words (white box, adaptive)", "blind (white box, not adaptive)"):
        assert label in text
        assert label in str(made)
    assert "No attack was run" not in text
    assert text.count("data:image/png") == 2 + 2, "of attacks that succeeded, the pictures"
    assert any(one and f"the first brought back by “{one}”" in text for one in made.attacks[1].revived)
    drawn, gradients = oracle.drawn, import_module("visae.evaluate.attacks.gradients").Optimised
    monkeypatch.setattr(gradients, "gradients", lambda *_: pytest.fail("attacked twice"))
    again = erase("tiny", **options)
    assert again.summary["attacks"] == made.summary["attacks"]
    assert oracle.drawn - drawn == 2 * 3 + 4, "what the refusing attack was compared with, and the time of a picture"
    shown = [[p and p.tobytes() for p in one.pictures] for one in (made.attacks[1], again.attacks[1])]
    assert shown[0] == shown[1]
    assert [p is not None for p in shown[0]] == made.attacks[1].after[JUDGE].tolist()


def test_the_bench_attacks_what_it_measured_without_measuring_it_again(oracle, tmp_path, monkeypatch):
    options = {"pipelines": ("tiny",), "methods": ("dim",), "targets": 2, "domains": ("style", "shape"), "tune": 0,
               "out": tmp_path / "out", "json": tmp_path / "table.json", **TOY}  # fmt: skip
    bench_erase(**options)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["ua_attacked"] for row in rows] == [None, None]
    field, attacking = import_module("visae.workflows.erase_field"), import_module("visae.workflows.attacking")
    monkeypatch.setattr(field.Unit, "measure", lambda *_: pytest.fail("measured twice"))
    run, done = attacking.Assault.run, []

    def stopping(assault, built):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(assault.concept)
        return run(assault, built)

    hit = {"attacks": ("seeds", *WHITE), "attacked": 3, "attacked_targets": 1}
    with monkeypatch.context() as patch:
        patch.setattr(attacking.Assault, "run", stopping)
        with pytest.raises(KeyboardInterrupt):
            bench_erase(**options, **hit)
    assert done == [("style", "flat")] * 3
    before = oracle.drawn
    made = bench_erase(**options, **hit)
    assert oracle.drawn - before <= 3 * 3 * (2 + 2) + 4, "what was missing, and the time of a picture"
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    left = {row["domain"]: row["ua_attacked"] for row in rows}
    prompts = {one.concept: one.prompts for line in made.lines for pool in line.attacks for one in pool.results}
    assert list(prompts) == [("style", "flat"), ("shape", "triangle")]
    assert left["style"] == 0
    assert left["shape"] == pytest.approx(1 - revived(prompts["shape", "triangle"]) / 3)
    assert 0 < left["shape"] < 1
    assert "UA attacked" in str(made)
    assert "prompt_words_blind (white box, not adaptive)" in str(made)
    kept = json.loads((tmp_path / "out" / "tiny" / "table.json").read_text())["attacks"]["dim"]
    assert [one["attack"] for one in kept] == ["seeds", *WHITE] * 2
    before = oracle.drawn
    assert [line.to_dict() for line in bench_erase(**options, **hit).lines] == [line.to_dict() for line in made.lines]
    assert oracle.drawn == before


@pytest.fixture
def result():
    """Function from an attack and what it brought back to its result."""
    told = {"box": "white", "budget": {}, "spent": {}, "settings": {}, "concept": "shape=star"}

    def make(attack, adaptive, after):
        from visae.evaluate.attacks.files import attacked_from_dict

        rows = [{"text": "a", "seed": i, "revived": "", "plain": {JUDGE: True, CHECK: True},
                 "before": {JUDGE: False, CHECK: False}, "after": {JUDGE: shown, CHECK: True}}
                for i, shown in enumerate(after)]  # fmt: skip
        whole = {**told, "attack": attack, "adaptive": adaptive, "judges": {JUDGE: {}, CHECK: {}}, "prompts": rows}
        return attacked_from_dict(whole, [Prompt("a", i, "") for i in range(len(after))])

    return make


def test_the_strongest_attack_is_the_adaptive_one_that_leaves_the_least_over_all_targets(result):
    weak = Pooled([result("weak", True, [True, False]), result("weak", True, [False, False])])
    strong = Pooled([result("strong", True, [False, True]), result("strong", True, [True, False])])
    blind = Pooled([result("blind", False, [True, True])])
    assert strongest([weak, blind, strong]) is strong
    assert (weak.ua().value, strong.ua().value, strong.ua("before").value, strong.ua().n) == (0.75, 0.5, 1.0, 4)
    assert strongest([blind]) is None
    assert weak.ua(judge=CHECK).value == 0.0
    assert strongest([strong, weak], CHECK) is strong, "the first of equals"


def test_attacks_that_do_not_exist_or_may_do_nothing_are_refused_before_anything_is_done(oracle, tmp_path):
    with pytest.raises(UnknownName, match="prompt_words"):
        erase("tiny", concept="shape=ring", method="dim", attacks=("prompt_word",), report=tmp_path)
    with pytest.raises(ValueError, match="at least one picture"):
        bench_erase(pipelines=("tiny",), methods=("dim",), attacked=1, tries=0, out=tmp_path)
    assert oracle.drawn == 0
    assert Plan(("seeds",), prompts=0).on(None, "dim", {}) == []
