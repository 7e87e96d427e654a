"""Prompts that say every word of a tokenizer."""

import pytest

import visae
from visae.workflows.dictionaries import default_sites
from visae.workflows.vocabulary import vocabulary_prompts, write_prompts


@pytest.mark.parametrize("name", ["sd", "flux-guided"])
def test_every_word_is_said_at_many_places_and_always_in_the_same_order(name, tiny_pipelines, tmp_path):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), image_size=row.size, **row.options)
    for site in default_sites(model)["words"]:
        length = model.site(site).n_tokens
        prompts = vocabulary_prompts(model, site, tokens=100 * length)
        assert len(prompts) >= 100
        assert prompts == vocabulary_prompts(model, site, tokens=100 * length)
        said = [prompt.split() for prompt in prompts]
        for word in tiny_pipelines.WORDS:
            places = {words.index(word) for words in said if word in words}
            assert len(places) >= 3, word
        assert write_prompts(tmp_path / "words.txt", prompts) == str(tmp_path / "words.txt")
