"""Codes over a diffusion run, and what blocks do, on a tiny pipeline with random weights."""

import numpy as np
import pytest
import torch

import visae
from visae.codes.over_time import watch
from visae.evaluate.blocks import block_roles, block_sites
from visae.sae import make_sae
from visae.taps import tap

SITE = "unet.mid_block.attentions.0"
PROMPTS, SEEDS = ["a red square", "blue star on grey"], [3, 4]


@pytest.fixture(scope="module")
def model(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"))


@pytest.fixture(scope="module")
def sae(model):
    made = make_sae("topk", model.site(SITE).d, 48, k=4)
    torch.nn.init.normal_(made.encoder.weight, generator=torch.manual_seed(1))
    return made


def test_codes_are_those_of_the_wanted_branch_at_every_step(model, sae):
    courses = watch(model, sae, SITE, PROMPTS, SEEDS, steps=4, guidance=5.0)
    assert [(c.prompt, c.seed) for c in courses] == list(zip(PROMPTS, SEEDS, strict=True))
    seen = []
    with tap(model, SITE) as taken, model.clock(lambda step: seen.append((step, taken[SITE].clone()))):
        model.generate(PROMPTS[1:], SEEDS[1:], steps=4, guidance=5.0)
    first = {step.index: (step, tokens) for step, tokens in reversed(seen)}
    assert len(courses[1].codes) == len(first) == 4
    for index, (step, tokens) in first.items():
        assert courses[1].sigmas[index] == pytest.approx(step.sigma)
        row = step.branch.index("cond")
        expected = sae.encode(tokens[row].float())
        assert torch.equal(courses[1].codes[index].indices, expected.indices)
    other = watch(model, sae, SITE, PROMPTS[1:], SEEDS[1:], steps=4, guidance=5.0, branch="uncond")[0]
    assert not torch.equal(other.codes[0].values, courses[1].codes[0].values)
    with pytest.raises(ValueError, match="never ran"):
        watch(model, sae, SITE, PROMPTS[:1], SEEDS[:1], steps=2, guidance=1.0, branch="uncond")


def test_maps_put_every_value_on_its_token_and_sums_are_of_all_tokens(model, sae):
    (course,) = watch(model, sae, SITE, PROMPTS[:1], SEEDS[:1], steps=3)
    dense = np.stack([codes.to_dense().numpy() for codes in course.codes])
    assert np.allclose(course.mass(), np.abs(dense).sum(1), atol=1e-5)
    top = course.strongest(3)
    assert top == np.argsort(-np.abs(dense).sum((0, 1)), kind="stable")[:3].tolist()
    maps = course.maps(top)
    assert maps.shape == (3, 3, *model.site(SITE).grid)
    assert np.allclose(maps.reshape(3, 3, -1), dense[:, :, top].transpose(2, 0, 1))
    assert course.heats(top).shape == (3, 3, *model.framing.input_hw)
    assert len(course.frames) == 3


def test_a_block_without_effect_changes_nothing_and_one_with_effect_is_measured(model):
    def make():
        return model.generate(PROMPTS, SEEDS, steps=2, output_type="pil")

    sites = block_sites(model)
    assert {site.kind for site in sites} == {"delta"}
    assert SITE in [site.path for site in sites]
    assert [site.path for site in sites if not site.path.rpartition(".")[0].endswith("attentions")] == []
    told = {"shape": ["square", "star"]}
    plain, roles = block_roles(make, model, sites[:2], judge=lambda _pictures: told)
    assert [role.site for role in roles] == [site.name for site in sites[:2]]
    assert all(role.kept == {"shape": 1.0} for role in roles)
    assert all(set(role.distances) == {"layout", "texture", "colour"} for role in roles)
    assert any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, roles[0].pictures, strict=True))
    again, _ = block_roles(make, model, [])
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, again, strict=True))
