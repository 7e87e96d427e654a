"""Methods that edit codes: what each does to tokens at its site, against arithmetic by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import visae
from visae.erasers import METHODS, Request, Unsuitable, tools_of
from visae.erasers.codes import Known
from visae.taps import tap

SITE, GIVEN = "unet.mid_block.attentions.0", {"steps": 2, "guidance": 3.0}
REQUEST = Request("star", ("a red star", "blue star on grey"), ("a red square", "green circle"), given=GIVEN)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))


@pytest.fixture(scope="module")
def sae(model, dictionary):
    return dictionary(model.site(SITE).d, 64)


def images(model):
    return torch.as_tensor(model.generate(["a red star", "green circle"], (3, 4), output_type="np", **GIVEN))


def test_released_saeuron_moves_tokens_by_twice_its_error_even_where_nothing_is_edited(model, sae):
    tools = tools_of(model, {SITE: sae}, given=GIVEN, batch=2)
    method, change = METHODS["saeuron"], {}
    for released in (False, True):
        erasing, _ = replace(method, released=released, factor=0.0).erasing(model, REQUEST, tools)
        with erasing, tap(model, SITE, lasting=True) as taken:
            model.generate(["a red star"], [3], steps=1, guidance=3.0)
            change[released] = taken[SITE].clone()
    with tap(model, SITE) as taken:
        model.generate(["a red star"], [3], steps=1, guidance=3.0)
        x = taken[SITE].clone()
    error = sae(x.flatten(0, 1)).view_as(x) - x
    torch.testing.assert_close(change[True] - change[False], 2 * error, rtol=1e-3, atol=1e-3)


def test_saeuron_multiplies_what_is_above_its_mean_by_the_mean_on_the_concept(model, sae):
    tools = tools_of(model, {SITE: sae}, given=GIVEN, batch=2)
    erasing, (selection,) = METHODS["saeuron"].erasing(model, REQUEST, tools)
    facts, latents = selection.evidence, list(selection.latents)
    with tap(model, SITE) as taken, model.clock() as clock:
        model.generate(["a red star"], [3], steps=2, guidance=3.0)
        x, sigma = taken[SITE].clone(), clock.now.sigma
    level = int((facts["levels"] - sigma).abs().argmin())
    f = sae.encode(x.flatten(0, 1)).to_dense()[:, latents].view(*x.shape[:2], -1)
    counts = (f > facts["everywhere"][level]) & facts["active"][level]
    wanted = torch.where(counts, -facts["target"][level] * f - f, 0) @ sae.directions()[latents]
    (edit,) = erasing.sites[0].edits
    moment = visae.edit.Moment(sae, x, ("uncond", "cond"), torch.tensor([0, 0]), sigma, 1, 1, (4, 6))
    torch.testing.assert_close(edit.delta(moment, erasing.sites[0].memories[0]), wanted, rtol=1e-3, atol=1e-4)
    assert counts.any()
    assert not counts.all()


@pytest.mark.parametrize("name", ["itd", "crisp"])
def test_a_concept_that_no_latent_means_is_unsuitable_rather_than_the_end_of_a_comparison(name, model, sae, dictionary):
    site = "text_encoder.encoder.layers.1"
    saes = {SITE: sae, site: dictionary(model.site(site).d, 64, seed=1)}
    nothing = replace(REQUEST, target=REQUEST.retain, pairs=())
    with pytest.raises(Unsuitable, match="no latent is left for star"):
        METHODS[name].build(model, nothing, tools_of(model, saes, given=GIVEN, batch=2))


def test_itd_leaves_prompts_below_its_gate_bit_for_bit(model, dictionary):
    site = "text_encoder.encoder.layers.1"
    text = dictionary(model.site(site).d, 64, seed=1)
    tools = tools_of(model, {site: text}, given=GIVEN, batch=2)
    method, plain = replace(METHODS["itd"], kept=10), images(model)
    known = Known(model, REQUEST, tools, site, text)
    (edit,) = method.edits(known, method.select(known))
    scores = known.scores(edit, "target")
    assert edit.gate.threshold == pytest.approx(0.99 * scores.min())
    between = replace(edit.gate, threshold=float(sum(known.scores(edit, "target")[:1])) * 1e9)
    with visae.edited(model, text, site, edit.whether(between)):
        assert torch.equal(images(model), plain)
    with visae.edited(model, text, site, edit.whether(replace(edit.gate, threshold=0.0))) as editing:
        both = images(model)
    assert editing.opened().all()
    assert not torch.equal(both, plain)


@pytest.mark.parametrize("swapped", [False, True], ids=["apart", "not apart"])
def test_the_guard_opens_midway_between_retain_and_target_prompts_and_never_below_all_retain_ones(model, sae, swapped):
    request = replace(REQUEST, target=REQUEST.retain, retain=REQUEST.target) if swapped else REQUEST
    tools = tools_of(model, {SITE: sae}, given=GIVEN, batch=2)
    known, method = Known(model, request, tools, SITE, sae), METHODS["ours"]
    (edit,) = method.edits(known, method.select(replace(known, request=REQUEST)))
    retain, target = (known.scores(edit, which) for which in ("retain", "target"))
    middle = (retain.max() + np.median(target)) / 2
    assert (middle > retain.max()) is not swapped
    assert edit.gate.threshold == pytest.approx(max(retain.max(), middle))


def test_erase_takes_a_selection_and_refuses_that_of_another_dictionary(model, sae, dictionary, tmp_path):
    tools = tools_of(model, {SITE: sae}, given=GIVEN, batch=2)
    _, (selection,) = METHODS["sauce"].erasing(model, REQUEST, tools)
    plain = images(model)
    selection.save(tmp_path / "star.json")
    with visae.erase(model.pipe, sae, tmp_path / "star.json", factor=-5.0):
        inside = images(model)
    assert not torch.equal(inside, plain)
    assert torch.equal(images(model), plain)
    with visae.erase(model, sae, list(selection.latents), site=SITE, factor=-5.0):
        torch.testing.assert_close(images(model), inside, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="in a dictionary with the weights"):
        visae.erase(model, dictionary(model.site(SITE).d, 64, seed=9), selection)
    with pytest.raises(ValueError, match="name the site"):
        visae.erase(model, sae, [1, 2])
