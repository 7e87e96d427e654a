"""Baselines that learn: against closed forms, exact differences and losses that must fall."""

from dataclasses import replace

import pytest
import torch

import visae
from visae.erasers import METHODS, Request, Tools, Unsuitable
from visae.erasers.calls import catch, predicted
from visae.erasers.closed_form import ClosedForm
from visae.erasers.means import MeanDifference, Means
from visae.taps import tap

GIVEN = {"steps": 3, "guidance": 3.0}
REQUEST = Request("star", ("a red star", "blue star on grey"), ("a red square", "green circle"), given=GIVEN)


@pytest.fixture(scope="module")
def model(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))


@pytest.fixture(scope="module", params=["sd", "pixart-alpha"])
def crossed(request, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[request.param]
    return visae.wrap(tiny_pipelines.build(request.param), image_size=row.size, **row.options), row.block


def text_of(model, prompt):
    """What cross-attention reads of a prompt, from the pipeline's own encoder: `[t, d]`."""
    return model.pipe.encode_prompt(prompt, "cpu", 1, False)[0][0].double()


def test_uce_is_the_least_squares_solution_over_all_tokens(model):
    method = ClosedForm(guide="square", erase=0.7, preserve=1.3, ridge=0.4)
    request = replace(REQUEST, pairs=(("blue star", "blue square"),))
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    weight = model.module.get_submodule(layer).weight
    old = weight.detach().double().clone()
    with torch.no_grad():
        c = torch.cat([text_of(model, t) for t in ("star", "blue star")])
        g = torch.cat([text_of(model, t) for t in ("square", "blue square")])
        r = torch.cat([text_of(model, t) for t in REQUEST.retain])
    rows = torch.cat([0.7**0.5 * c, 1.3**0.5 * r, 0.4**0.5 * torch.eye(c.shape[1]).double()])
    aims = torch.cat([0.7**0.5 * g @ old.T, 1.3**0.5 * r @ old.T, 0.4**0.5 * old.T])
    dense = torch.linalg.lstsq(rows, aims).solution.T
    with method.build(model, request, Tools(batch=2))():
        torch.testing.assert_close(weight.double(), dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dense, old, atol=1e-3)
    assert torch.equal(weight.double(), old)


def test_uce_with_little_ridge_makes_the_concept_read_like_its_guide(model):
    layer = model.module.get_submodule("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k")
    with torch.no_grad():
        c, g = text_of(model, "star").float(), text_of(model, "square").float()
        wanted = layer(g)
        with ClosedForm(guide="square", ridge=1e-6).build(model, Request("star", given=GIVEN), Tools())():
            torch.testing.assert_close(layer(c), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("how", ["project", "subtract"])
def test_a_difference_of_means_makes_the_target_mean_the_retain_mean(crossed, how):
    model, site = crossed
    erasure = MeanDifference(how).build(model, REQUEST, Tools(site=site, batch=2))

    def first_mean(prompts, start=None):
        seen = []
        with (
            model.clock(after=lambda step: seen.append((step, taken[site].clone()))),
            tap(model, site) as taken,
            (start or erasure)(),
        ):
            model.generate(prompts, [0, 1], output_type="latent", **GIVEN)
        step, tokens = seen[0]
        rows = [i for i, branch in enumerate(step.branch) if branch == "cond"]
        rest = [i for i, branch in enumerate(step.branch) if branch != "cond"]
        return tokens[rows].double().mean((0, 1)), tokens[rest]

    plain = MeanDifference(how, strength=0.0).build(model, REQUEST, Tools(site=site, batch=2))
    target, _ = first_mean(REQUEST.target, plain)
    retain, uncond = first_mean(REQUEST.retain, plain)
    erased, rest = first_mean(REQUEST.target)
    assert (target - retain).abs().max() > 1e-3
    torch.testing.assert_close(erased, retain, rtol=1e-4, atol=1e-6)
    assert torch.equal(rest, uncond), "the other branch keeps every bit"
    kept, _ = first_mean(REQUEST.retain)
    moved = retain if how == "project" else 2 * retain - target
    torch.testing.assert_close(kept, moved, rtol=1e-4, atol=1e-6)


def test_means_between_two_levels_are_interpolated_by_log_sigma_and_kept_beyond_them():
    known = Means(
        torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    )
    assert [float(known.at(s)) for s in (0.01, 0.1, 10**-0.5, 10**0.5, 99.0)] == pytest.approx([0, 0, 0.5, 2.0, 3.0])


def test_a_difference_of_means_needs_a_site_of_the_denoiser_and_prompts(model):
    with pytest.raises(Unsuitable, match="a site of unet"):
        METHODS["mean_difference"].build(model, REQUEST, Tools(site="text_encoder.encoder.layers.0"))
    with pytest.raises(Unsuitable, match="target prompts"):
        METHODS["mean_difference"].build(model, Request("star"), Tools(site="unet.mid_block"))


@pytest.mark.parametrize(("name", "lr"), [("esd_x", 2e-3), ("esd_u", 1e-4)])
def test_fine_tuning_lowers_the_loss_on_images_that_it_has_not_seen(model, name, lr):
    method = replace(METHODS[name], iterations=15, lr=lr)
    module = model.pipe.unet
    unseen = [catch(model, ["star"], [seed], seed % 3, **GIVEN) for seed in range(100, 106)]
    with torch.no_grad():
        aims = [method.aim(module, caught, None) for caught in unseen]
        by_hand = predicted(module, unseen[0].unasked) * 2 - predicted(module, unseen[0].asked)
    torch.testing.assert_close(aims[0], by_hand)

    def loss():
        with torch.no_grad():
            errors = [(predicted(module, c.asked) - aim).square().mean() for c, aim in zip(unseen, aims, strict=True)]
        return float(sum(errors))

    erasure, before = method.build(model, REQUEST, Tools()), loss()
    with erasure():
        assert loss() < 0.9 * before
    assert loss() == before
    assert len(erasure.told["losses"]) == 15


def test_fine_tuning_variants_touch_the_weights_that_they_name(model):
    unet, steps = model.pipe.unet, {"iterations": 1, "lr": 1e-2}
    before = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    for name, crossed in (("esd_x", True), ("esd_u", False)):
        with replace(METHODS[name], **steps).build(model, REQUEST, Tools())():
            changed = {key for key, weight in unet.named_parameters() if not torch.equal(weight, before[key])}
        assert changed
        assert {".attn2." in key for key in changed} == {crossed}


def test_a_second_attention_that_sees_no_text_is_not_taken_for_cross_attention(tiny_pipelines):
    row = tiny_pipelines.PIPELINES["sd35"]
    model = visae.wrap(tiny_pipelines.build("sd35"), image_size=row.size, **row.options)
    assert any(".attn2." in name for name, _ in model.pipe.transformer.named_parameters())
    with pytest.raises(Unsuitable, match="no cross-attention"):
        METHODS["esd_x"].build(model, REQUEST, Tools())


def test_a_third_branch_of_the_batch_is_refused_where_calls_have_to_be_cut(tiny_pipelines):
    row = tiny_pipelines.PIPELINES["pag"]
    model = visae.wrap(tiny_pipelines.build("pag"), image_size=row.size, **row.options)
    for name in ("sld", "uce", "esd_u"):
        with pytest.raises(Unsuitable, match="third branch"):
            METHODS[name].build(model, REQUEST, Tools())
