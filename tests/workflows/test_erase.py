"""`visae erase` and `visae bench erase`: on a painter that forgets as it is told, and on a tiny pipeline."""

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import visae
from visae.erasers import METHODS, Erasure, Method, Request, Tools, Unsuitable
from visae.erasers.strengths import STRENGTHS, variants, with_settings
from visae.evaluate.erasure import Outcome
from visae.evaluate.erasure_files import from_json, to_json
from visae.evaluate.erasure_table import Table
from visae.evaluate.harm import Harm
from visae.evaluate.overhead import Overhead
from visae.evaluate.rates import Tally
from visae.registry import UnknownName
from visae.workflows import bench_erase, erase
from visae.workflows.concepts import fewer, free_task, learning_from, neighbours, world_concepts, world_task
from visae.workflows.dictionaries import Place, default_sites
from visae.workflows.erase_field import erased_together
from visae.workflows.erase_job import Job
from visae.workflows.results import Results, kept_pictures
from visae.workflows.strength import Tried, best, choose
from visae.workflows.vocabulary import vocabulary_prompts
from visae.world.cells import cells
from visae.world.render import render
from visae.world.sheet import _posed

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is not caught in:UserWarning"),
]


OTHER = {"shape": "ring", "style": "stripes"}
"""What a painter paints in place of what it forgot."""


class Painter:
    """A pipeline that paints what `alter` makes of what a prompt states, where style is left open a flat one."""

    id, revision, texts, options = "visae:painter", "0", (), {}
    device = SimpleNamespace(type="cpu")
    denoiser = SimpleNamespace(name="unet")

    def __init__(self):
        known = [one for part in ("train", "validation", "test") for one in cells(part)]
        self.stated = {one.text: {name: found[0] for name, found in one.labels.items()} for one in known}
        self.pipe = SimpleNamespace(set_progress_bar_config=lambda **_: None, _progress_bar_config={})
        self.alter, self.drawn = dict, 0

    def sites(self):
        return {"unet.mid": SimpleNamespace(kind="output", stream="image", path="unet.mid")}

    def generate(self, texts, seeds, output_type, **_):
        self.drawn += len(texts)
        stated = [self.alter({"style": "flat"} | self.stated[text]) for text in texts]
        return [Image.fromarray(render(_posed(s, "large", **one), 64)) for one, s in zip(stated, seeds, strict=True)]


@dataclass(frozen=True)
class Forget(Method):
    """Paints another value in place of the concept: from strength 2 on; from 3 on also in place of others."""

    strength: float = 1.0
    able: bool = True

    def build(self, pipeline, request, tools):
        if not self.able:
            raise Unsuitable("painters that never forget")

        def values(texts, factor):
            return {pipeline.stated[text].get(factor) for text in texts}

        gone = {f: values(request.target, f) - values(request.retain, f) - {None} for f in OTHER}
        far = self.strength >= 3

        def alter(stated):
            return {f: OTHER[f] if self.strength >= 2 and gone.get(f) and (far or v in gone[f]) else v
                    for f, v in stated.items()}  # fmt: skip

        @contextmanager
        def enter():
            pipeline.alter, before = alter, pipeline.alter
            yield
            pipeline.alter = before

        return Erasure(enter, self.settings)


@pytest.fixture
def painter(monkeypatch):
    made = Painter()
    monkeypatch.setattr(Place, "load", lambda _: made)
    monkeypatch.setitem(METHODS._things, "forget", Forget())
    monkeypatch.setitem(METHODS._things, "never", Forget(able=False))
    monkeypatch.setitem(STRENGTHS, "forget", ("strength", (1.0, 2.0, 3.0, 4.0)))
    return made


def told_by(page):
    return re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))


def test_erase_takes_what_erases_most_within_the_budget_and_shows_it(painter, tmp_path):
    options = {"method": "forget", "report": tmp_path, "pictures": 12, "turns": 0, "attacks": ()}
    made = erase("visae:painter", concept="a star", **options)
    assert [one.strength for one in made.tried] == [1.0, 2.0, 3.0], "what harms far too much ends the search"
    assert [one.within for one in made.tried] == [True, True, False]
    assert made.summary["settings"]["strength"] == 2.0
    rates = Table([made.outcome]).rows()[1].rates
    assert (rates["ua"].value, rates["ira"].value, rates["cra"].value) == (1.0, 1.0, 1.0)
    assert rates["identical"].value == 1.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["concept"] == "shape=star"
    assert summary["prompts"] == {"tuning": 108, "validation": 12, "test": 12}
    text = told_by(made.page)
    assert text.count("data:image/png") == 2
    titles = ("The same seeds, plain and erased", "What is gone, what is left", "How strongly", "No attack was run")
    for told in (*titles, "100.0 [100.0, 100.0]", "visae erase visae:painter --concept &#34;a star&#34;", "lost: ira"):
        assert told in text, told
    drawn = painter.drawn
    again = erase("visae:painter", concept="shape=star", **options)
    assert painter.drawn - drawn <= 8, "but for the time of a picture, nothing is drawn twice"
    assert again.summary["measured"] == made.summary["measured"]


@pytest.mark.usefixtures("few_cells")
def test_the_bench_writes_a_row_for_each_method_and_domain_and_goes_on_where_it_was(painter, tmp_path, monkeypatch):
    options = {"pipelines": ("visae:painter",), "methods": ("forget", "never"), "targets": 2, "out": tmp_path / "out",
               "json": tmp_path / "table.json", "turns": 1, "together": (2,)}  # fmt: skip
    field = import_module("visae.workflows.erase_field")
    measure, done = field.Unit.measure, []

    def stopping(unit, built):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit.job.task.name)
        return measure(unit, built)

    with monkeypatch.context() as patch:
        patch.setattr(field.Unit, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            bench_erase(**options)
    assert not (tmp_path / "table.json").exists()
    painter.drawn = 0
    made = bench_erase(**options)
    first = painter.drawn
    rows = json.loads((tmp_path / "table.json").read_text())
    assert list(rows) == ["rows"]
    assert [(row["method"], row["domain"]) for row in rows["rows"]] == [("forget", "style"), ("forget", "shape")]
    for row in rows["rows"]:
        assert set(row) == {"pipeline", "method", "domain", "ua", "ira", "cra", "ua_attacked", "overhead"}
        assert (row["ua"], row["ira"], row["cra"], row["ua_attacked"]) == (1.0, 1.0, 1.0, None)
        assert isinstance(row["overhead"], float)
    assert made.unsuitable == {"never on visae:painter": "painters that never forget"}
    assert "1 of style, 1 of shape" in str(made)
    assert "plain" in str(made)
    assert [(line.row.judge, line.row.method) for line in made.checks] == [
        ("tiny-clip", line.row.method) for line in made.lines
    ]
    shown = str(made).split("By the second judge, tiny-clip")[1].splitlines()
    assert sum("visae:painter" in line for line in shown[:12]) >= len(made.checks)
    painter.drawn = 0
    again = bench_erase(**options)
    assert painter.drawn == 0 < first, "what is kept needs no picture at all"
    assert [line.to_dict() for line in again.lines] == [line.to_dict() for line in made.lines]


def test_results_belong_to_the_dictionaries_that_the_method_reads_and_to_no_others(painter, tmp_path):
    tools = Tools(site="unet.mid", text_site="text.one", word_sites=("text.input",))
    task = world_task([("shape", "star")], {"steps": 2})
    one = Job(painter, task, tools, {"steps": 2}, tmp_path, 4, {"unet.mid": "a", "text.one": "b", "text.input": "c"})
    other = replace(one, saes=one.saes | {"text.one": "d"})
    for name, changes in (("ours", False), ("saeuron", False), ("itd", True), ("uce", False)):
        settings = METHODS[name].settings
        assert (one.about("test", name, settings) != other.about("test", name, settings)) == changes, name
    words = {**METHODS["ours"].settings, "guard": False}
    unguarded = replace(one, saes=one.saes | {"unet.mid": "d"})
    assert one.about("test", "ours", words) == unguarded.about("test", "ours", words)


def test_the_best_strength_is_the_largest_gain_within_the_budget_else_the_least_harm():
    tried = [Tried(s, gain, {"ira": lost, "cra": 0.0}, lost <= 0.02)
             for s, gain, lost in ((1.0, 0.5, 0.0), (2.0, 0.9, 0.02), (3.0, 0.9, 0.01), (4.0, 1.0, 0.3))]  # fmt: skip
    assert best(tried).strength == 3.0
    assert best(tried[-1:]).strength == 4.0
    assert best([tried[3], Tried(5.0, 1.0, {"ira": 0.2}, False)]).strength == 5.0
    with pytest.raises(ValueError, match="no strength"):
        best([])


def test_strengths_that_were_tried_are_not_tried_again(tmp_path):
    candidates, calls = variants("saeuron"), []

    def measure(method):
        calls.append(method.factor)
        return -method.factor, {"ira": -method.factor / 100}

    results = Results(tmp_path)
    first = choose(candidates, measure, 0.06, results, {"concept": "star"})
    assert first[0].strength == -5.0
    assert calls == list(STRENGTHS["saeuron"][1])[:4], (
        "what does more than three times the allowed harm ends the search"
    )
    assert choose(candidates, measure, 0.1, results, {"concept": "star"})[0].strength == -10.0
    assert len(calls) == 5
    choose(candidates, measure, 0.1, results, {"concept": "ring"})
    assert len(calls) == 10


def test_settings_are_those_of_the_method_and_of_its_types():
    assert with_settings("ours", {"top_m": 3.0, "factor": -2}).settings["top_m"] == 3
    with pytest.raises(UnknownName, match="top_m"):
        with_settings("ours", {"topm": 3.0})
    with pytest.raises(ValueError, match="not a number"):
        with_settings("ours", {"score": 3.0})
    with pytest.raises(ValueError, match="no strength to choose"):
        variants("negative_prompt", strength=2.0)
    assert all(setting in METHODS[name].settings for name, (setting, _) in STRENGTHS.items())


def test_words_name_concepts_of_the_world_only_where_they_may():
    assert world_concepts("a star", True) == (("shape", "star"),)
    assert world_concepts("polka-dot", True) == (("style", "dots"),)
    assert world_concepts("a star", False) == world_concepts("a dog", True) == ()
    assert world_concepts("shape=star,style=dots", False) == (("shape", "star"), ("style", "dots"))
    with pytest.raises(UnknownName, match="'star'"):
        world_concepts("shape=stra", False)


def test_prompts_of_a_file_are_split_into_parts_that_share_nothing(tmp_path):
    (tmp_path / "r.txt").write_text("\n".join(f"a dog number {i}" for i in range(7)))
    task = free_task("a star", None, tmp_path / "r.txt", {"steps": 2}, seeds=2)
    parts = [task.tuned_on, task.validation, task.test]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            assert not {p.text for p in one} & {p.text for p in other}
            assert not {p.seed for p in one} & {p.seed for p in other}
    assert all(("a star" in p.text) == p.asks_for(task.concepts) for part in parts for p in part)
    assert task.request.retain == ("a dog number 0", "a dog number 3", "a dog number 6")
    with pytest.raises(ValueError, match="--retain"):
        free_task("a star", None, None, {})


def test_a_concept_of_the_world_learns_from_the_users_prompts_but_never_from_the_reports(tmp_path):
    task = world_task([("shape", "star")], {})
    (tmp_path / "r.txt").write_text("\n".join(["a red ring", task.test[0].text]))
    mine = learning_from(task, None, tmp_path / "r.txt")
    assert mine.request.retain == mine.requests[0].retain == ("a red ring",)
    assert mine.request.target == task.request.target
    assert len(mine.seeds) == len(task.request.target) + 1
    some = fewer(task, 10)
    assert [sum(one.asks_for(task.concepts) for one in part) for part in (some.test, some.validation)] == [5, 5]
    assert [task.test[i].labels["shape"][0] for i in neighbours(task, 2)] == ["bolt", "triangle"]


def test_several_at_once_are_spaced_over_both_domains():
    groups = erased_together(("style", "shape"), 2, (2, 10))
    assert [value for ((_, value),) in groups[:4]] == ["flat", "checker", "triangle", "circle"]
    assert [sum(f == "style" for f, _ in group) for group in groups[4:]] == [1, 4]
    assert [len(set(group)) for group in groups[4:]] == [2, 10]
    with pytest.raises(ValueError, match="from 2 to 19"):
        erased_together(("style", "shape"), None, (20,))


def test_an_outcome_comes_back_from_json_number_by_number():
    tallies = {"ua": Tally(np.array([1.0, 0.0]), np.array([1.0, 1.0]))}
    costs = Overhead(1.0, 1.1, 0.1, float("nan"), 3.0, 2)
    made = Outcome("m", (("shape", "star"),), {"judge": tallies}, {"judge": tallies}, Harm(tallies, 0.5), {}, costs)
    back = from_json(json.loads(json.dumps(to_json(made))))
    assert to_json(back) == to_json(made)
    assert (back.concepts, back.overhead.time, back.harm.frechet) == (made.concepts, costs.time, 0.5)
    assert back.overhead.peak_plain != back.overhead.peak_plain


def test_pictures_that_are_kept_come_back_to_the_bit(tmp_path):
    made = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (4, 6, 3), np.uint8)) for i in range(2)]
    for make in (lambda: made, lambda: pytest.fail("made again")):
        found = kept_pictures(tmp_path / "p", 2, make)
        assert all(np.array_equal(a, b) for a, b in zip(found, made, strict=True))


@pytest.fixture(scope="module")
def folder(tiny_pipelines, tmp_path_factory):
    place = tmp_path_factory.mktemp("erase")
    tiny_pipelines.build("sd").save_pretrained(place / "sd")
    (place / "r.txt").write_text("\n".join(f"a {c} {s}" for c in ("red", "blue") for s in ("square", "circle", "a")))
    (place / "t.txt").write_text("\n".join(f"a {c} star" for c in ("red", "blue", "green", "grey", "a", "on")))
    return place


def test_a_dictionary_is_trained_and_an_exported_erasure_draws_what_the_page_shows(folder, monkeypatch):
    module = import_module("visae.workflows.dictionaries")
    monkeypatch.setattr(module, "RECIPE", {"kind": "relu_l1", "latents": 64, "batch": 64, "workers": 0})
    monkeypatch.setattr(module, "WORDS", {})
    monkeypatch.setattr(module, "vocabulary_prompts", partial(vocabulary_prompts, tokens=500))
    options = {"concept": "a star", "retain": str(folder / "r.txt"), "target": str(folder / "t.txt"), "steps": 2,
               "guidance": 3.0, "strength": -30.0, "settings": {"false_positives": 1.0}, "batch": 2, "turns": 0,
               "image_size": (16, 24), "device": "cpu", "report": folder / "out"}  # fmt: skip
    made = erase(f"diffusers:{folder / 'sd'}", **options)
    assert made.outcome.erased == {}
    assert made.summary["moved"]["target"] > 0
    text = told_by(made.page)
    assert text.count("data:image/png") == 3, "targets, neighbours, heat maps"
    for told in ("The latents of concept=a star", "No judge knows this concept", "mean with the concept",
                 "No judge knows this concept, so none could tell what it achieved"):  # fmt: skip
        assert told in text
    pipe = import_module("diffusers").DiffusionPipeline.from_pretrained(folder / "sd")
    task = free_task("a star", folder / "t.txt", folder / "r.txt", {})
    texts, seeds = [p.text for p in task.test], [p.seed for p in task.test]
    other = visae.wrap(pipe, image_size=(16, 24))
    drawn = []
    with visae.load_erasure(folder / "out" / "erasure", other):
        for i in (0, 2):
            drawn += other.generate(texts[i : i + 2], seeds[i : i + 2], steps=2, guidance=3.0, output_type="pil")
    assert all(np.array_equal(a, b) for a, b in zip(made.outcome.pictures, drawn, strict=True))
    again = erase(f"diffusers:{folder / 'sd'}", **options)
    assert again.summary["measured"] == made.summary["measured"]
    assert all(np.array_equal(a, b) for a, b in zip(again.outcome.pictures, made.outcome.pictures, strict=True))


@pytest.mark.parametrize("name", ["sd", "dit", "flux-guided"])
def test_every_pipeline_has_sites_to_train_on(name, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), image_size=row.size, **row.options)
    sites = default_sites(model)
    (own,) = sites["denoiser"]
    assert model.site(own).grid is not None
    assert model.site(own).path.startswith(model.denoiser.name)
    assert [model.site(text).stream for text in sites["text"]] == ["text"] * bool(model.texts)
    starts = [model.site(text) for text in sites["words"]]
    assert [site.path.partition(".")[0] for site in starts] == [part.name for part in model.texts]
    assert {site.kind for site in starts} <= {"input"}


def test_a_request_for_several_erases_each_by_itself():
    task = world_task([("shape", "star"), ("style", "dots")], {})
    assert len(task.requests) == 2
    assert all(isinstance(one, Request) for one in task.requests)
    erased = {text for one in task.requests for text in one.target}
    assert not erased & set(task.request.retain)
    assert task.requests[0].retain == task.request.retain
