"""Concepts erased one after another on a tiny pipeline, against the same done by hand."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import visae
from visae.edit import EditedSite
from visae.edit.erasing import Erasing
from visae.erasers import METHODS, tools_of
from visae.workflows import bench_erase
from visae.workflows.dictionaries import Place
from visae.workflows.erase_sequence import in_order, next_task
from visae.workflows.studio import Studio

SITE, GIVEN = "unet.mid_block.attentions.0", {"steps": 2, "guidance": 3.0}
FLAT, TRIANGLE = ("style", "flat"), ("shape", "triangle")
SMALL = {"uce": {}, "esd_x": {"iterations": 2, "lr": 1e-3}, "crisp": {"iterations": 2, "lr": 1e-2, "least": 0.0}}
"""Methods that change weights, and settings under which they do little."""
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def by_brightness(pictures):
    """A judge that knows values by the mean of a picture, so that whatever moves it changes answers."""
    order = [int(np.asarray(one).sum()) for one in pictures]
    return {"shape": [("triangle", "circle", "ring")[n % 3] for n in order],
            "style": [("flat", "checker", "stripes")[n % 3] for n in order]}  # fmt: skip


def small(pictures):
    return torch.stack([torch.as_tensor(np.asarray(one)[::8, ::8].astype(np.float32)).flatten() for one in pictures])


@pytest.fixture
def model(tiny_pipelines, dictionary, few_cells, monkeypatch):
    """A pipeline, with a dictionary and quick judges."""
    made = visae.wrap(tiny_pipelines.build("sd"), image_size=16)
    made.sae = dictionary(made.site(SITE).d, 64)
    studio, bench = import_module("visae.workflows.studio"), import_module("visae.workflows.bench_erase")
    monkeypatch.setattr(Place, "load", lambda _: made)
    monkeypatch.setattr(bench, "dictionaries", lambda *_, **__: {SITE: made.sae})
    monkeypatch.setattr(studio, "JUDGES", dict.fromkeys(("judge", "tiny-clip"), by_brightness))
    monkeypatch.setattr(studio, "clip_vectors", small)
    return made


@pytest.fixture
def drawn(monkeypatch):
    """Method and concepts -> the pictures that were measured."""
    found, measure = {}, Studio.measure

    def kept(studio, built, name, concepts, cost=None):
        outcome = measure(studio, built, name, concepts, cost)
        found[name, tuple(concepts)] = [np.asarray(one) for one in outcome.pictures]
        return outcome

    monkeypatch.setattr(Studio, "measure", kept)
    return found


def bench(folder, *methods, n=2):
    return bench_erase(
        pipelines=("tiny",), methods=methods, targets=1, domains=("style", "shape"), in_sequence=n, tune=0, turns=0,
        batch=4, out=folder, **GIVEN,
    )  # fmt: skip


def pictures(model, task):
    made = []
    for start in range(0, len(task.test), 4):
        some = task.test[start : start + 4]
        made += model.generate([p.text for p in some], [p.seed for p in some], output_type="pil", **GIVEN)
    return [np.asarray(one) for one in made]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_changed_on_top_of_the_earlier_change(name, model, drawn, tmp_path, monkeypatch):
    method = replace(METHODS[name], **SMALL[name])
    monkeypatch.setitem(METHODS._things, name, method)
    made = bench(tmp_path, name)
    task = next_task([FLAT, TRIANGLE], GIVEN)
    tools = tools_of(model, {SITE: model.sae}, given=GIVEN, batch=4, seeds=task.seeds)
    first, alone = (method.build(model, request, tools) for request in task.requests)
    with first():
        after_first, second = pictures(model, task), method.build(model, task.request, tools)
        with second():
            after_both = pictures(model, task)
        with alone():
            not_on_top = pictures(model, task)
    assert same(drawn[name, (FLAT,)], after_first)
    assert same(drawn[name, (FLAT, TRIANGLE)], after_both)
    assert not same(after_both, not_on_top)
    (kept,) = tmp_path.glob("*/sequence.json")
    rows = json.loads(kept.read_text())["rows"]
    assert [row["erased"] for row in rows] == ["style=flat", "style=flat,shape=triangle"]
    answers, wrong = by_brightness(after_both), []
    for i, one in enumerate(task.test):
        if "style" in one.labels:
            wrong += [answers[f][i] != v for f, v in (FLAT, TRIANGLE) if one.labels[f] == (v,)]
    assert rows[1]["ua"]["value"] == pytest.approx(np.mean(wrong))
    for told in ("One after another", "style=flat", "shape=triangle"):
        assert told in str(made)


def test_edits_of_codes_add_up_each_as_it_was_chosen_on_the_plain_pipeline(model, drawn, tmp_path):
    bench(tmp_path, "sauce")
    task, edits = next_task([FLAT, TRIANGLE], GIVEN), []
    tools = tools_of(model, {SITE: model.sae}, given=GIVEN, batch=4, seeds=task.seeds)
    for request in task.requests:
        edits += METHODS["sauce"].erasing(model, request, tools)[0].sites[0].edits
    for n, concepts in ((1, (FLAT,)), (2, (FLAT, TRIANGLE))):
        with Erasing(model, [EditedSite(model.sae, SITE, tuple(edits[:n]))]):
            assert same(drawn["sauce", concepts], pictures(model, task))
    assert not same(drawn["sauce", (FLAT,)], drawn["sauce", (FLAT, TRIANGLE)])


def test_every_method_goes_on_where_it_was_and_leaves_the_pipeline_as_it_was(model, drawn, tmp_path, monkeypatch):
    task = next_task([FLAT, TRIANGLE], GIVEN)
    plain = pictures(model, task)
    methods = ("uce", "mean_difference", "negative_prompt", "sld", "sauce")
    measure = Studio.measure

    def stopping(studio, built, name, concepts, cost=None):
        if (name, len(concepts)) == ("mean_difference", 2):
            raise KeyboardInterrupt
        return measure(studio, built, name, concepts, cost)

    with monkeypatch.context() as patch:
        patch.setattr(Studio, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            bench(tmp_path, *methods)
    assert same(pictures(model, task), plain)
    drawn.clear()
    made = bench(tmp_path, *methods)
    left = {(method, (FLAT, *more)) for method in methods[2:] for more in ((), (TRIANGLE,))}
    assert set(drawn) == {("mean_difference", (FLAT, TRIANGLE)), *left}, "nothing is measured twice"
    assert [(one.outcome.method, len(one.outcome.concepts)) for one in made.steps] == [
        (method, n) for method in methods for n in (1, 2)
    ]
    assert same(pictures(model, task), plain)
    drawn.clear()
    again = bench(tmp_path, *methods)
    assert not drawn
    assert [one.to_dict() for one in again.steps] == [one.to_dict() for one in made.steps]


def test_a_request_knows_what_is_erased_already_and_nothing_of_what_follows():
    order = in_order(("style", "shape"), 3)
    assert order == (FLAT, TRIANGLE, ("shape", "circle"))
    task = next_task(order, GIVEN)
    labels = {one.text: one.labels for one in task.tuned_on}
    for turn, (request, (factor, value)) in enumerate(zip(task.requests, order, strict=True)):
        assert all(labels[text][factor] == (value,) for text in request.target)
        retained = {(f, v) for text in request.retain for f, (v,) in labels[text].items()}
        assert not retained & set(order[: turn + 1])
        assert retained >= set(order[turn + 1 :])
    assert task.request == task.requests[-1]
    assert (task.concepts, len(task.seeds)) == (order, len(labels))
    with pytest.raises(ValueError, match="from 2 to 19"):
        in_order(("style", "shape"), 1)
