"""The cells of the erasure protocol: complete, balanced, true, and shared by no two parts."""

from collections import Counter

import pytest

from visae.data import load_prompts
from visae.data.prompts import PARTS, part_of_text
from visae.registry import UnknownName
from visae.workflows.concepts import world_task
from visae.world.cells import FIRST_SEED, cells
from visae.world.factors import COLOURS, SHAPES, STYLES
from visae.world.lexicon import ADJECTIVES, NOUNS, PHRASES
from visae.world.training.latents import withheld_combinations
from visae.world.tuning import tuning


def value(prompt, factor):
    return prompt.labels.get(factor, (None,))[0]


@pytest.fixture(scope="module")
def prompts():
    return list(cells("test", phrasings=4))


def test_every_shape_meets_every_style_and_an_open_one_equally_often(prompts):
    often = Counter((value(one, "shape"), value(one, "style")) for one in prompts)
    assert often == {(shape, style): 4 for shape in SHAPES for style in (*STYLES, None)}
    assert len({one.seed for one in prompts}) == len(prompts)
    assert len({one.text for one in prompts}) > 0.97 * len(prompts)


@pytest.mark.parametrize("factor", ["shape", "style"])
def test_every_shape_and_style_meets_all_colours_and_backgrounds_about_equally(factor, prompts):
    for other, most in (("colour", 0.2), ("background", 0.3)):
        for name in SHAPES if factor == "shape" else STYLES:
            often = Counter(value(one, other) for one in prompts if value(one, factor) == name)
            assert len(often) == (8 if other == "colour" else 4), (name, other)
            assert max(often.values()) <= most * sum(often.values()), (name, often)


def test_texts_say_what_labels_state_and_nothing_of_an_open_style(prompts):
    styles = {name: (*ADJECTIVES["style"][name], *PHRASES["style"][name]) for name in STYLES}
    for one in prompts:
        assert any(noun in one.text for noun in NOUNS["shape"][value(one, "shape")])
        assert any(word in one.text for word in ADJECTIVES["colour"][value(one, "colour")])
        if style := value(one, "style"):
            assert any(word in one.text for word in styles[style])
        else:
            assert "style" not in one.labels
            assert not any(word in one.text for words in styles.values() for word in words if word != "flat")


def test_no_text_and_no_seed_is_in_two_parts_and_none_where_other_prompts_lie():
    found = {part: list(cells(part, phrasings=2, seeds=2)) for part in PARTS}
    for part, mine in found.items():
        assert all(part_of_text(one.text) == part for one in mine)
        others = [one for other, prompts in found.items() if other != part for one in prompts]
        assert not {one.seed for one in mine} & {one.seed for one in others}
        assert not {one.text for one in mine} & {one.text for one in others}
        assert min(one.seed for one in mine) == FIRST_SEED[part] > 10**8
        assert max(one.seed for one in mine) < 2**32
        assert len({(one.text, one.seed) for one in mine}) == len(mine) == 108 * 4


def test_no_cell_asks_for_a_combination_that_pipelines_were_not_trained_on(prompts):
    asked = {tuple(value(one, factor) for factor in ("shape", "style", "colour")) for one in prompts}
    assert not asked & set(withheld_combinations())
    assert {colour for *_, colour in asked} == set(COLOURS)


def test_a_spec_names_them_and_wrong_ones_are_refused(prompts):
    again = load_prompts("world:cells?phrasings=4")
    assert [one.text for one in again] == [one.text for one in prompts]
    assert load_prompts(again.name).fingerprint == again.fingerprint != load_prompts("world:cells").fingerprint
    assert prompts[0].asks_for([("style", "dots"), ("shape", "triangle")])
    assert not prompts[0].asks_for([("style", "dots")])
    for spec, told in (("world:cells?split=tests", "test"), ("world:cells?phrasing=2", "phrasings")):
        with pytest.raises(UnknownName, match=f"Did you mean '{told}'"):
            load_prompts(spec)
    with pytest.raises(ValueError, match="phrasings is a whole number of at least 1"):
        load_prompts("world:cells?phrasings=0")
    with pytest.raises(ValueError, match="count from 1, got 1 and 0"):
        cells(seeds=0)


@pytest.mark.parametrize("concepts", [[("style", "dots")], [("shape", "star"), ("style", "flat")]])
def test_what_is_tuned_on_knows_nothing_of_the_test_and_pairs_differ_in_the_concept_alone(concepts, prompts):
    found = tuning(concepts, "train", phrasings=2)
    texts = {one.text for one in (*found.target, *found.retain)} | {text for pair in found.pairs for text in pair}
    assert all(part_of_text(text) == "train" for text in texts)
    assert not texts & {one.text for one in prompts}
    assert not {one.seed for one in (*found.target, *found.retain)} & {one.seed for one in prompts}
    assert all(one.asks_for(concepts) for one in found.target)
    assert not any(one.asks_for(concepts) for one in found.retain)
    assert len(found.target) + len(found.retain) == 216
    said = [words for factor, name in concepts for words in (*NOUNS.get(factor, {}).get(name, ()),
            *ADJECTIVES.get(factor, {}).get(name, ()), *PHRASES.get(factor, {}).get(name, ()))]  # fmt: skip
    for first, second in found.pairs:
        assert first != second
        assert any(words in first for words in said)
        kept = first.replace(" an ", " a ").split(), second.replace(" an ", " a ").split()
        shared = [word for word in kept[0] if word in kept[1]]
        assert len(shared) >= len(kept[0]) - 4, (first, second)
    left = {"style": 8, "shape": 12}
    others = [left[f] - sum(g == f for g, _ in concepts) for f, _ in concepts]
    assert len(found.pairs) == 2 * sum(others)


def test_no_concept_stands_in_for_another_that_is_erased_along_with_it():
    joint = [("shape", "star"), ("shape", "ring"), ("style", "flat")]
    task = world_task(joint, {})
    for concept, request in zip(joint, task.requests, strict=True):
        assert len(request.pairs) == (7 if concept == ("style", "flat") else 10)
        assert set(request.others) == set(task.request.target) - set(request.target) != set()
        seconds = [f" {second} " for _, second in request.pairs]
        gone = [word for f, name in joint if f == concept[0] for told in (NOUNS, ADJECTIVES)
                for word in told.get(f, {}).get(name, ())]  # fmt: skip
        assert gone
        assert not [second for second in seconds for word in gone if f" {word} " in second]


def test_nothing_is_tuned_on_test_prompts_or_on_what_does_not_exist():
    with pytest.raises(ValueError, match="tune on 'train' or 'validation'"):
        tuning([("style", "dots")], "test")
    with pytest.raises(ValueError, match="at least one concept"):
        tuning([])
    with pytest.raises(UnknownName, match="Did you mean 'dots'"):
        tuning([("style", "dot")])
    with pytest.raises(UnknownName, match="domain of the world 'colour'"):
        tuning([("colour", "red")])
