"""A concept's words at the input of text encoders: found, told apart by latents, and replaced as if never said."""

from dataclasses import replace

import pytest
import torch

import visae
from visae.erasers import METHODS, Request, tools_of
from visae.sae import make_sae
from visae.select import select_words
from visae.select.prompt_tokens import PromptTokens
from visae.select.words import word_vectors
from visae.workflows.dictionaries import default_sites

GIVEN = {"steps": 2}
REQUEST = Request(
    "star",
    ("a red star", "star on grey", "a blue star on grey"),
    ("a red square", "green circle on grey", "blue circle", "a green square"),
    (("a red star", "a red square"), ("star on blue", "circle on blue")),
    given=GIVEN,
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def one_latent_a_word(model, site, words):
    """A dictionary at the input of a text encoder in which latent i fires at word i and nowhere else."""
    part = model.site(site).path.partition(".")[0]
    tokenizer = getattr(model.pipe, part.replace("text_encoder", "tokenizer"))
    weights = getattr(model.pipe, part).get_input_embeddings().weight
    vectors = weights[[tokenizer(word).input_ids[-2] for word in words]].detach()
    sae = make_sae("relu_l1", model.site(site).d, len(words))
    sae.encoder.weight.data = torch.linalg.pinv(vectors.double()).T.float().contiguous()
    sae.encoder.bias.data.fill_(-0.5)
    return sae.eval()


@pytest.fixture(scope="module", params=["sd", "pixart-alpha", "flux-guided"])
def spoken(request, tiny_pipelines):
    """A pipeline whose words are far apart, and tools with a latent for each word at the input of each encoder."""
    row = tiny_pipelines.PIPELINES[request.param]
    pipe = tiny_pipelines.build(request.param)
    for name, part in pipe.components.items():
        if name.startswith("text_encoder"):
            part.get_input_embeddings().weight.data *= 50
    model = visae.wrap(pipe, image_size=row.size, **row.options)
    sites = default_sites(model)["words"]
    return model, tools_of(model, {s: one_latent_a_word(model, s, tiny_pipelines.WORDS) for s in sites}, given=GIVEN)


def images(model, *prompts):
    return [torch.as_tensor(model.generate([prompt], (3,), output_type="np", **GIVEN)) for prompt in prompts]


def test_prompts_are_drawn_as_if_another_word_stood_in_the_concepts_place_and_others_to_the_bit(spoken):
    model, tools = spoken
    assert tools.word_sites
    erasing, selections = replace(METHODS["ours"], guard=False).erasing(model, REQUEST, tools)
    assert [one.latents for one in selections] == [(6,)] * len(tools.word_sites)
    assert all(one.coverage == 1.0 for one in selections)
    assert all(one.chosen_on["words"] == ["star"] for one in selections)
    assert len({one.chosen_on["instead"] for one in selections} & {"square", "circle"}) == 1
    told = images(model, "a star on red", "a square on red", "a circle on red", "a square on blue")
    with erasing:
        without = images(model, "a star on red", "a square on blue")
    near = min(float((without[0] - other).abs().max()) for other in told[1:3])
    assert near < 0.02 * float((told[0] - told[1]).abs().max())
    assert torch.equal(without[1], told[3])


def test_words_that_retain_prompts_use_are_not_the_concepts_and_a_concept_without_own_words_is_refused(spoken):
    model, tools = spoken
    site = tools.word_sites[0]
    sae = tools.sae(site)

    def words(pairs, target, retain):
        both = (tools.statistics(site, texts, 0) for texts in (target, retain))
        return select_words(model, sae, site, pairs, *both, concept="star")

    found = words((("a red star", "a square"),), ("a red star",), ("a red circle", "a square"))
    assert found.selection.latents == (6,)
    assert len(found.named) == 1
    with pytest.raises(ValueError, match="no word belongs to star alone"):
        words((("a red star", "a square"),), ("a red star",), ("a red star", "a square"))


def test_a_word_that_says_it_all_stands_in_sooner_than_one_of_several(spoken):
    model, tools = spoken
    site = tools.word_sites[0]

    def instead(*pairs):
        both = (tools.statistics(site, texts, 0) for texts in (("a star",), ("a red square", "blue circle")))
        return select_words(model, tools.sae(site), site, pairs, *both).selection.chosen_on["instead"]

    assert instead(("a star", "a red circle"), ("a star", "a square")) == "square"
    assert instead(("a star", "a red circle")) in ("red", "circle")


def test_all_text_encoders_get_the_same_word(spoken):
    model, tools = spoken
    pairs = (("a star", "a red circle"), ("a star", "a circle"))
    asked = Request("star", ("a star",), ("blue square",), pairs, given=GIVEN)
    _, selections = replace(METHODS["ours"], guard=False).erasing(model, asked, tools)
    assert {one.chosen_on["instead"] for one in selections} == {"circle"}


def test_what_prompts_of_other_erased_concepts_say_is_no_word_of_this_one(spoken):
    model, tools = spoken
    asked = Request("star", ("a blue star",), ("a circle",), (("a blue star", "a square"),), given=GIVEN)
    for others, words in ((), {"blue", "star"}), (("a blue square",), {"star"}):
        _, selections = replace(METHODS["ours"], guard=False).erasing(model, replace(asked, others=others), tools)
        assert all(set(one.chosen_on["words"]) == words for one in selections)


def test_the_fit_parts_words_from_places_and_says_the_mean_where_nothing_was_seen():
    torch.manual_seed(0)
    words, places = torch.randn(7, 5), torch.randn(9, 5)
    ids = torch.randint(0, 7, (40, 9))
    content = torch.rand(40, 9) < 0.7
    content[:, 8] = False
    fitted, found = word_vectors([PromptTokens(ids, content, words[ids] + places)])
    for word in range(7):
        torch.testing.assert_close(fitted[word] + found[:8], words[word] + places[:8], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[8], found[:8].mean(0))
