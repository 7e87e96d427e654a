"""Which dictionaries a sweep makes, and what of them is worth looking at."""

from pathlib import Path

import pytest

from visae import cli
from visae.evaluate.pareto import dominated
from visae.registry import UnknownName
from visae.show.pareto import Point, pareto_figure
from visae.workflows.suite import several_seeds, suite
from visae.workflows.sweep import expand

BASE = {"site": "blocks.1", "kind": ["topk", "batch_topk"], "k": [8, 16.0], "latents": 64, "seed": [0, 1]}


def test_every_value_meets_every_other():
    found = expand(BASE)
    assert len(found) == 8
    assert {(s.kind, s.k, s.seed) for s in found} == {
        (kind, k, seed) for kind in ("topk", "batch_topk") for k in (8, 16) for seed in (0, 1)
    }
    assert all(isinstance(s.k, int) for s in found)
    assert len({s.name(32) for s in found}) == 8
    assert len({repr(s.without_seed()) for s in found}) == 4


def test_kinds_without_k_take_part_once_and_widths_win_over_expansions():
    found = expand({**BASE, "kind": ["relu_l1", "topk"], "expansion": [2, 4]})
    assert sum(s.kind == "relu_l1" for s in found) == 2
    assert len(found) == 6
    assert {s.width(32) for s in expand({"site": "x", "kind": "topk", "expansion": [2, 4.5]})} == {64, 144}


def test_cases_are_laid_over_the_base_and_crossed_by_themselves():
    cases = [{}, {"kind": "relu_l1", "options": {"l1": [0.1, 0.2]}, "seed": 5}]
    found = expand(BASE, cases)
    assert len(found) == 8 + 2
    assert [(s.seed, s.options, s.k) for s in found[8:]] == [(5, {"l1": 0.1}, None), (5, {"l1": 0.2}, None)]
    listed = expand({"site": "x", "kind": "matryoshka", "options": {"groups": [[0.5, 0.5]], "sampled": [0, 3]}})
    assert [s.options for s in listed] == [{"groups": [0.5, 0.5], "sampled": 0}, {"groups": [0.5, 0.5], "sampled": 3}]


def test_a_case_has_schemes_of_its_own_crossed_like_options():
    cases = [{}, {"kind": "relu_l1", "schemes": {"resample_every": [5, 50], "ema": 0.99}, "seed": 0}]
    found = expand({**BASE, "k": 8}, cases)
    assert [s.schemes for s in found[:4]] == [{}] * 4
    assert [s.schemes for s in found[4:]] == [{"resample_every": n, "ema": 0.99} for n in (5, 50)]
    assert [s.name(32) for s in found[4:]] == [f"blocks.1-relu_l1-f64-ema0.99-resample_every{n}-s0" for n in (5, 50)]
    (undone,) = expand(
        {"site": "x", "kind": "topk", "schemes": {"sparsity_warmup": 0.2}}, [{"schemes": {"sparsity_warmup": None}}]
    )
    assert undone.schemes == {"sparsity_warmup": None}


@pytest.mark.parametrize(
    ("schemes", "error", "told"),
    [
        ({"resample_evry": 5}, UnknownName, r"Unknown scheme 'resample_evry'. Did you mean 'resample_every'"),
        (
            {"resample_every": "often"},
            ValueError,
            "scheme resample_every cannot be 'often': Input should be a valid int",
        ),
        ({"start": "middle"}, ValueError, "scheme start cannot be 'middle': Input should be 'data' or 'random'"),
    ],
)
def test_schemes_of_a_case_that_cannot_be_are_refused_by_name(schemes, error, told):
    with pytest.raises(error, match=told):
        expand({"site": "x", "kind": "relu_l1"}, [{"schemes": schemes}])


def test_names_tell_everything_that_is_not_left_to_a_rule():
    (one,) = expand(
        {"site": "blocks.1", "kind": "topk", "k": 8, "lr": 1e-3, "normaliser": "unit", "options": {"aux": 0.1}}
    )
    assert one.name(32) == "blocks.1-topk-k8-f256-lr0.001-unit-aux0.1-s0"


@pytest.mark.parametrize(
    ("cases", "options", "told"),
    [
        ([{"knd": "topk"}], {}, r"Unknown setting of a case 'knd'. Did you mean 'kind'"),
        ([], {"axu": 1.0}, r"Unknown option of kind 'topk': 'axu'. Did you mean 'aux'"),
        ([{"kind": "tpok"}], {}, r"Unknown kind of dictionary 'tpok'. Did you mean 'topk'"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest_name(cases, options, told):
    with pytest.raises(UnknownName, match=told):
        expand({"site": "x", "kind": "topk", "options": options}, cases)


def test_an_empty_list_and_two_ways_to_name_seeds_are_refused():
    with pytest.raises(ValueError, match="kind has an empty list"):
        expand({"site": "x", "kind": []})
    assert several_seeds((3,), 2) == [3, 4]
    assert several_seeds((3, 9), 1) == [3, 9]
    with pytest.raises(ValueError, match="name the seeds, or one and how many"):
        several_seeds((3, 9), 2)


def test_the_example_is_a_sweep_that_the_command_understands():
    file = Path(__file__).parents[2] / "examples" / "sweep.yaml"
    options = cli.resolve(suite, [str(file)], "visae suite")
    assert (options["kind"], options["latents"], options["seeds"]) == (("topk", "batch_topk", "matryoshka"), (512,), 2)
    assert options["cases"][1]["options"] == {"l1": [0.05, 0.1, 0.2]}


def test_a_yaml_may_give_one_value_where_flags_take_a_list_and_unknown_keys_are_told_the_nearest(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("kind: topk\nk: 8\noptions: {aux: 0.1}\n")
    options = cli.resolve(suite, [str(file), "--site", "blocks.0", "blocks.1"], "visae suite")
    assert (options["kind"], options["k"], options["options"]) == (("topk",), (8.0,), {"aux": (0.1,)})
    assert options["site"] == ("blocks.0", "blocks.1")
    again = tmp_path / "again.yaml"
    again.write_text(cli.to_yaml(options))
    assert cli.resolve(suite, [str(again)], "visae suite") == options
    file.write_text("kinds: topk\n")
    with pytest.raises(ValueError, match=r"Unknown option 'kinds'\. Did you mean 'kind'"):
        cli.resolve(suite, [str(file)], "visae suite")


def test_a_point_is_dominated_by_another_that_is_at_least_as_good_in_both_and_better_in_one():
    points = [(8, 0.3), (16, 0.2), (16, 0.25), (20, 0.2), (8, 0.3), (4, float("nan"))]
    assert dominated(points) == [False, False, True, True, False, True]
    assert dominated([]) == []


def test_the_picture_has_a_panel_per_site_and_a_line_per_kind_hollow_where_dominated():
    points = [
        Point("topk", "blocks.1", 8, 0.3, 0.29, 0.31),
        Point("topk", "blocks.1", 64, 0.2, 0.2, 0.2),
        Point("jumprelu", "blocks.2", 64, 0.4, 0.4, 0.4, dominated=True),
    ]
    figure = pareto_figure(points, title="a title")
    assert [axis.get_title() for axis in figure.axes] == ["blocks.1", "blocks.2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["topk", "jumprelu"]
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylim()[1] > 0.4, "the panels share an axis that shows the points of all"
    faces = [
        line.get_markerfacecolor()
        for line in figure.axes[1].lines
        if line.get_marker() == "s" and len(line.get_xdata())
    ]
    assert faces == ["white"]
