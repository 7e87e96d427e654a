"""Registries: lookups, suggestions, duplicates."""

import pytest

from visae.registry import Registry, UnknownName


def test_an_unknown_name_is_answered_with_the_nearest_known_ones():
    registry: Registry[int] = Registry("shape")
    registry.register("square")(4)
    registry.register("triangle")(3)
    with pytest.raises(UnknownName) as caught:
        registry["sqare"]
    assert str(caught.value) == "Unknown shape 'sqare'. Did you mean 'square'? Known: square, triangle."
    assert isinstance(caught.value, KeyError)


def test_long_lists_are_cut_and_counted():
    assert "... (100 in all)" in str(UnknownName("n", "x", [f"name{i}" for i in range(100)]))


def test_an_empty_registry_says_so():
    with pytest.raises(UnknownName, match="Known: none"):
        Registry("thing")["a"]


def test_a_name_can_be_registered_once_only_and_the_error_names_the_owner():
    registry: Registry[str] = Registry("shape")
    registry.register("square")("first")
    with pytest.raises(ValueError, match="shape 'square' is registered already, by 'first'"):
        registry.register("square")("second")
    assert (list(registry), len(registry), registry["square"]) == (["square"], 1, "first")
