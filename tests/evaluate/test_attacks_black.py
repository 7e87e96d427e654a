"""Black box attacks: texts that are what they say they are, seeds, and starts from pictures against diffusers' own."""

import json
import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import visae
from visae.data.sample import Prompt
from visae.evaluate.attacks import ATTACKS, Arena, ImageStart, Seeds, Texts, attack_table, started, synonyms, typos
from visae.evaluate.attacks.files import attacked_from_dict
from visae.evaluate.attacks.texts import captions, concept_synonyms, named, paraphrases, typo, world_synonyms
from visae.evaluate.preserved import clean_latents
from visae.registry import UnknownName
from visae.store.noising import noised
from visae.world.cells import cells
from visae.world.lexicon import words

CELLS = [one for one in cells("test") if one.labels["shape"] == ("star",)]
STAR = ("shape", "star")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("others", [typos, concept_synonyms, paraphrases, captions])
def test_other_texts_are_other_new_and_the_same_every_time(others):
    for prompt in CELLS:
        found = list(others(prompt, STAR, 4))
        assert found == list(others(prompt, STAR, 4))
        assert prompt.text not in found
        assert len(set(found)) == len(found) <= 4
        assert found or others is concept_synonyms


def test_typos_change_one_word_that_names_the_concept_by_one_letter():
    drawn, draw = set(), random.Random(0)
    for word in ("star", "oo", "ab", "starlet", "aa"):
        for _ in range(50):
            found = typo(word, draw)
            assert found != word
            drawn.add((word, found))
            assert abs(len(found) - len(word)) <= 1
            if len(found) == len(word):
                assert sorted(found) == sorted(word)
    assert {"tsar", "sar", "staar"} <= {found for word, found in drawn if word == "star"}
    with pytest.raises(ValueError, match="two letters"):
        typo("a", draw)
    for prompt in CELLS:
        for text in typos(prompt, STAR, 5):
            before, after = prompt.text.split(), text.split()
            changed = [old for old, new in zip(before, after, strict=True) if old != new]
            assert changed in (["star"], ["starlet"])
    assert typos(Prompt("a is on", 0, ""), STAR, 3) == []
    unknown = typos(Prompt("a Kelly McKernan", 0, ""), ("artist", "Kelly McKernan"), 3)
    assert len(unknown) == 3
    assert all(text.startswith("a ") for text in unknown)


def test_synonyms_of_a_table_follow_their_articles_one_exchange_before_two():
    table = {"star": ("asterisk", "sun"), "red": ("orange",), "big red": ("huge",)}
    found = synonyms(Prompt("a red star on a starlet, not a-star", 0, ""), table, 9)
    assert found[:3] == [
        "an orange star on a starlet, not a-star",
        "a red asterisk on a starlet, not a-star",
        "a red sun on a starlet, not a-star",
    ]
    assert found[3:] == ["an orange asterisk on a starlet, not a-star", "an orange sun on a starlet, not a-star"]
    assert synonyms(Prompt("a big red star", 0, ""), table, 1) == ["a huge star"]
    assert synonyms(Prompt("a star", 0, ""), {}, 3) == []
    assert synonyms(Prompt("an apple", 0, ""), {"apple": ("pear",)}, 3) == ["a pear"]


def test_world_synonyms_mean_the_same():
    table = world_synonyms()
    assert table["dotted"] == ("spotted", "polka-dot")
    assert set(table["with dots"]) == {"covered in dots"}
    assert all(set(other.split()) <= set(words()) for others in table.values() for other in others)
    assert named("shape", "bolt") == ["lightning bolt", "zigzag", "bolt"]
    for text in concept_synonyms(Prompt("a red star", 0, ""), STAR, 5):
        assert text == "a red starlet"


def test_paraphrases_and_captions_ask_for_the_concept():
    open_style = next(one for one in CELLS if "style" not in one.labels)
    for text in paraphrases(open_style, STAR, 6):
        assert any(term in text for term in named("shape", "star"))
        for style in ("dots", "stripes", "outline"):
            assert not any(term in text for term in named("style", style))
    assert len(paraphrases(CELLS[0], STAR, 6)) == 6
    assert all(any(term in text for term in named(*STAR)) for text in captions(CELLS[0], STAR, 9))
    with pytest.raises(ValueError, match="no shape"):
        paraphrases(Prompt("a star", 0, ""), STAR, 1)
    with pytest.raises(UnknownName):
        captions(CELLS[0], ("shape", "horse"), 1)


class Painter:
    """A pipeline that paints white where a text or a seed is on its list; the erasure takes one word off."""

    def __init__(self):
        self.pipe = SimpleNamespace(set_progress_bar_config=lambda **_: None, _progress_bar_config={})
        self.erased, self.asked = False, []

    def generate(self, texts, seeds, output_type):
        self.asked += [(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        white = [(not self.erased) or "starr" in t or s % 4 == 0 for t, s in zip(texts, seeds, strict=True)]
        return [Image.new("L", (2, 2), 255 * one) for one in white]

    @contextmanager
    def erasure(self):
        self.erased = True
        try:
            yield
        finally:
            self.erased = False


def white(pictures):
    return {"shape": ["star" if np.asarray(picture).max() else "none" for picture in pictures]}


def test_a_black_box_attack_counts_the_best_within_its_budget():
    painter = Painter()
    prompts = [Prompt("a star", 1, ""), Prompt("a ring", 2, ""), Prompt("a star", 4, "")]
    arena = Arena(painter, painter.erasure, STAR, {"one": white}, batch=2)
    others = lambda prompt, _, n: [f"{prompt.text} {i}" for i in range(9)][:n] + ["late starr"]  # noqa: E731
    result = Texts(others, 3).run(arena, prompts, "texts")
    assert result.before["one"].tolist() == [False, False, True]
    assert result.after["one"].tolist() == [False, False, True]
    assert result.spent == {"pictures": 6, "gradients": 0}
    assert result.revived == ("", "", "a star")
    hit = Texts(lambda *_: ["x", "a starr", "y"], 3).run(arena, prompts, "texts")
    assert hit.after["one"].tolist() == [True] * 3
    assert hit.spent["pictures"] == 4
    assert hit.revived[0] == "a starr"
    assert hit.success("one", "plain").value == 1.0
    assert hit.success("one", "before").value == pytest.approx(1 / 3)
    assert hit.ua("one").value == 0.0
    assert "texts (black box)" in attack_table([result, hit])
    told = hit.to_dict()
    assert told["judges"]["one"]["ua_attacked"]["value"] == 0.0
    assert told["prompts"][0]["before"] == {"one": False}


def test_what_an_attack_achieved_comes_back_from_json_with_the_pictures_that_showed_it():
    painter = Painter()
    prompts = [Prompt("a star", 1, ""), Prompt("a ring", 2, ""), Prompt("a star", 4, "")]
    arena = Arena(painter, painter.erasure, STAR, {"one": white, "other": lambda p: {"shape": ["ring"] * len(p)}})
    others = lambda prompt, *_: ["x", "a starr" if prompt.seed == 1 else "y", "z"]  # noqa: E731
    made = Texts(others, 3).run(arena, prompts, "texts")
    assert [picture and np.asarray(picture).max() for picture in made.pictures] == [255, None, 255]
    assert made.revived == ("a starr", "", "a star")
    told = json.loads(json.dumps(made.to_dict()))
    back = attacked_from_dict(told, prompts, made.pictures)
    assert back.to_dict() == told
    assert (back.concept, back.prompts, back.pictures) == (STAR, tuple(prompts), made.pictures)
    assert str(back) == str(made)
    with pytest.raises(ValueError, match="3 other prompts"):
        attacked_from_dict(told, prompts[:2])


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_may_be_given_another_budget(name):
    budget = ATTACKS[name].within(2, 3).budget
    assert budget["pictures"] == 2
    assert budget.get("gradients", 0) in (0, 6)
    assert ATTACKS[name].within(2, 3).settings.keys() == ATTACKS[name].settings.keys()


def test_seed_search_draws_other_seeds_until_one_shows_it():
    painter = Painter()
    arena = Arena(painter, painter.erasure, STAR, {"one": white})
    first = Seeds(20).run(arena, [Prompt("a star", 1, "")])
    tried = [seed for _, seed in painter.asked[2:]]
    assert len(set(tried)) == len(tried) == first.spent["pictures"] <= 20
    assert tried[-1] % 4 == 0
    assert all(seed % 4 for seed in tried[:-1])
    painter.asked.clear()
    Seeds(20).run(arena, [Prompt("a star", 1, "")])
    assert [seed for _, seed in painter.asked[2:]] == tried


def test_what_cannot_be_attacked_is_refused():
    painter = Painter()
    with pytest.raises(ValueError, match="prompts and judges; got 0 and 1"):
        Seeds(1).run(Arena(painter, painter.erasure, STAR, {"one": white}), [])
    with pytest.raises(UnknownName, match="factor of the judge one"):
        Seeds(1).run(Arena(painter, painter.erasure, ("style", "dots"), {"one": white}), [Prompt("a star", 1, "")])


def test_every_attack_has_a_name_a_budget_and_a_label():
    assert {"typos", "synonyms", "paraphrases", "captions", "seeds", "image_start", "prompt_words"} <= set(ATTACKS)
    for name, attack in ATTACKS.items():
        assert attack.budget["pictures"] > 0
        assert attack.sees_erasure == (attack.box == "white" and not name.endswith("blind"))


GIVEN = {"steps": 5, "guidance": 2.0}
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(solver_order=3, timestep_spacing="trailing"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_start_from_a_picture_is_diffusers_image_to_image(tiny_pipelines, name, strength):
    pipe = tiny_pipelines.build("sd")
    pipe.scheduler = SCHEDULERS[name]()
    model = visae.wrap(pipe, image_size=(16, 24))
    prompts, seeds = ["a red star", "blue circle"], [3, 4]
    clean = clean_latents(model, prompts, [8, 9], GIVEN)
    plain = model.generate(prompts, seeds, output_type="np", **GIVEN)
    own = sorted(vars(pipe.scheduler)), sorted(vars(pipe))
    with started(model, clean, strength), model.clock() as clock:
        found = model.generate(prompts, seeds, output_type="np", **GIVEN)
    assert clock.now.index == 4
    assert clock.now.call == int(5 * strength) - 1
    assert (sorted(vars(pipe.scheduler)), sorted(vars(pipe))) == own
    assert np.array_equal(model.generate(prompts, seeds, output_type="np", **GIVEN), plain)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    wanted = other(
        prompts, image=clean, strength=strength, num_inference_steps=5, guidance_scale=2.0, generator=generators,
        output_type="np",
    ).images  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "sd3", "flux", "sana"])
def test_every_kind_of_pipeline_starts_from_pictures(tiny_pipelines, name):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), image_size=row.size, **row.options)
    clean = clean_latents(model, [row.prompts[0]], [8], {"steps": 4})
    seen, steps = [], []
    note = lambda _m, args, kwargs: seen.append(kwargs.get("hidden_states", args[0] if args else kwargs.get("sample")))  # noqa: E731
    handle = getattr(model.pipe, model.denoiser.name).register_forward_pre_hook(note, with_kwargs=True)
    with model.clock(after=steps.append):
        model.generate([row.prompts[0]], [3], steps=4, output_type="latent")
        with started(model, clean, 0.5):
            model.generate([row.prompts[0]], [3], steps=4, output_type="latent")
    handle.remove()
    whole, half = steps[:4], steps[4:]
    assert [one.sigma for one in half] == [one.sigma for one in whole[2:]]
    assert [one.index for one in half] == [2, 3]
    sigma, scale = half[0].sigma, half[0].scale
    first = seen[0][:1].float()
    if scale == "variance":
        first = first * (1 + whole[0].sigma ** 2) ** 0.5 / whole[0].sigma if name == "sdxl" else first
    torch.testing.assert_close(seen[4][:1].float(), noised(clean, first, sigma, scale), rtol=1e-3, atol=2e-3)


def test_starts_that_cannot_be_are_refused(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    clean = torch.zeros(1, 4, 8, 12)
    with pytest.raises(ValueError, match="above 0 and up to 1"), started(model, clean, 0.0):
        pass
    with pytest.raises(ValueError, match="leaves none of 5 steps"), started(model, clean, 0.1):
        model.generate(["star"], [0], **GIVEN)
    with pytest.raises(ValueError, match="runs begin with"), started(model, clean[..., :4], 1.0):
        model.generate(["star"], [0], **GIVEN)
    classes = visae.wrap(tiny_pipelines.build("dit"), image_size=(16, 16))
    with pytest.raises(ValueError, match="does not begin with latents"), started(classes, clean, 1.0):
        classes.generate([3], [0], steps=2)


def test_an_image_start_is_tried_from_the_plain_pictures(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    prompts = [Prompt("red star", 3, ""), Prompt("blue star", 4, ""), Prompt("a star", 5, "")]
    arena = Arena(model, nullcontext, STAR, {"one": lambda p: {"shape": ["none"] * len(p)}}, GIVEN, batch=2)
    result = ImageStart((1.0, 0.4)).run(arena, prompts)
    assert result.spent == {"pictures": 6, "gradients": 0}
    assert result.budget == {"pictures": 2}
