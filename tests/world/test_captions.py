"""Captions are true, say what their facts say, and come in many forms."""

from dataclasses import replace
from itertools import pairwise

import pytest

from visae.registry import UnknownName
from visae.world import Caption, World, prompts
from visae.world.factors import FACTORS
from visae.world.lexicon import ADJECTIVES, GROUNDS, NOUNS, PHRASES, words


def test_captions_are_true() -> None:
    for world in (World("train", 300, objects=(1, 3)), World("train", 100, variant="homonym")):
        for i in range(len(world)):
            scene = world.scene(i)
            for j in range(3):
                caption = world.caption(i, j)
                assert caption.holds(scene), caption


def test_a_false_caption_does_not_hold() -> None:
    world = World("train", 100, objects=1)
    for i in range(100):
        scene = world.scene(i)
        shape = scene.things[0].shape
        other = next(s for s in FACTORS["shape"] if s != shape)
        assert Caption("", ({"shape": shape},)).holds(scene)
        assert not Caption("", ({"shape": other},)).holds(scene)
        assert not Caption("", ({"shape": shape}, {"shape": shape})).holds(scene)
        assert not Caption("", ({"shape": shape},), count="two").holds(scene)


def test_an_object_is_counted_once() -> None:
    scene = World("train", 50, objects=2).scene(0)
    red = replace(scene.things[0], shape="star", colour="red"), replace(scene.things[1], shape="ring", colour="blue")
    scene = replace(scene, things=red)
    assert Caption("", ({"shape": "star", "colour": "red"}, {"colour": "blue"})).holds(scene)
    assert not Caption("", ({"shape": "star", "colour": "blue"},)).holds(scene)
    assert not Caption("", ({"shape": "star"}, {"colour": "red"})).holds(scene)


def test_what_is_said_is_what_the_facts_say() -> None:
    world = World("train", 400)
    for i in range(400):
        caption = world.caption(i)
        text = f" {caption.text.replace(',', ' ')} "
        for stated in caption.things:
            for factor, value in stated.items():
                said = (*NOUNS.get(factor, {}).get(value, ()), *ADJECTIVES.get(factor, {}).get(value, ()))
                said += PHRASES.get(factor, {}).get(value, ())
                assert any(f" {phrase} " in text for phrase in said), (caption, factor)
        if caption.background:
            assert any(phrase in text for phrase in GROUNDS[caption.background])


def test_what_is_not_stated_is_not_said() -> None:
    world = World("train", 400)
    nouns = {noun: shape for shape, known in NOUNS["shape"].items() for noun in known}
    for i in range(400):
        caption = world.caption(i)
        spoken = {shape for noun, shape in nouns.items() if f" {noun} " in f" {caption.text} "}
        assert spoken == {stated["shape"] for stated in caption.things if "shape" in stated}


def test_captions_are_many_and_leave_factors_out() -> None:
    world = World("train", 30)
    for i in range(10):
        assert len({world.caption(i, j).text for j in range(30)}) > 20
    stated = [set(world.caption(i, j).things[0]) for i in range(30) for j in range(10) if world.caption(i, j).things]
    for factor in ("shape", "style", "colour", "size", "position", "rotation", "family"):
        share = sum(factor in known for known in stated) / len(stated)
        assert 0.02 < share < 0.95, factor
    assert world.caption(3, 2) == World("train", 99).caption(3, 2)


def test_articles_fit() -> None:
    world = World("train", 300, objects=(1, 3))
    for i in range(300):
        tokens = world.caption(i).text.split()
        for article, word in pairwise(tokens):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), tokens


def test_no_noun_adjective_or_phrase_means_two_things() -> None:
    for table in (NOUNS, ADJECTIVES, PHRASES):
        said = [phrase for factor in table.values() for known in factor.values() for phrase in known]
        assert len(said) == len(set(said))


@pytest.mark.parametrize("factor", ["shape", "family", "style", "colour", "size", "position", "background", "count"])
def test_prompts_state_their_value(factor: str) -> None:
    known = set(words())
    lists = [prompts(factor, value) for value in FACTORS[factor]]
    assert all(len(texts) >= 4 for texts in lists)
    everything = [text for texts in lists for text in texts]
    assert len(set(everything)) == len(everything)
    assert {word for text in everything for word in text.split()} <= known


def test_prompts_refuse_what_has_no_words() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'colour'"):
        prompts("color", "red")
    with pytest.raises(UnknownName, match="Did you mean 'red'"):
        prompts("colour", "redd")
