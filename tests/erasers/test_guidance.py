"""Guidance away from a concept, against a pipeline computed by hand."""

from contextlib import nullcontext

import pytest
import torch

import visae
from visae.erasers import METHODS, Request, Tools
from visae.erasers.calls import Prompted, catch, predicted
from visae.erasers.guidance import SafeGuidance
from visae.taps import tap

GIVEN = {"steps": 3, "guidance": 3.0}
SAFE = SafeGuidance(scale=40.0, threshold=0.02, warmup=0.0, momentum=0.3, decay=0.4)


@pytest.fixture(scope="module", params=["sd", "dit", "flux-guided"])
def model(request, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[request.param]
    return visae.wrap(tiny_pipelines.build(request.param), image_size=row.size, **row.options)


def outputs(model, erasure):
    """What the scheduler is given at every step of one run, and the latents it has then."""
    seen, scheduler = [], model.pipe.scheduler
    step = scheduler.step
    prompt = "3" if type(model.pipe).__name__.startswith("DiT") else "a red star"
    scheduler.step = lambda out, t, x, *a, **k: seen.append((out.clone(), x.clone())) or step(out, t, x, *a, **k)
    try:
        with erasure():
            model.generate([prompt], [5], output_type="latent", **GIVEN)
    finally:
        del scheduler.step
    return prompt, seen


def test_the_first_steps_are_the_papers_formula_in_any_layout_of_guidance(model):
    concept = "4" if type(model.pipe).__name__.startswith("DiT") else "star"
    prompt, seen = outputs(model, SAFE.build(model, Request(concept, given=GIVEN), Tools()).enter)
    module, g = getattr(model.pipe, model.denoiser.name), model.options.get("true_cfg_scale", 3.0)
    safe, nu = Prompted(model, concept, GIVEN), 0.0
    blank = Prompted(model, model.options["negative_prompt"], GIVEN) if "true_cfg_scale" in model.options else None
    caught = catch(model, [prompt], [5], 0, **GIVEN)
    with torch.no_grad():
        p = predicted(module, caught.asked)
        u = predicted(module, blank.into(caught.asked) if blank else caught.unasked)
        s = predicted(module, safe.into(caught.asked))
    mu = torch.where(p - s >= 0.02, torch.zeros_like(p), ((p - s).abs() * 40.0).clamp(max=1.0))
    gamma = mu * (s - u) + 0.3 * nu
    wanted = u + g * (p - u - gamma)
    assert 0.05 < float((mu > 0).float().mean()) < 0.95, "both sides of the threshold occur"
    torch.testing.assert_close(seen[0][0][:1], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted, u + g * (p - u), atol=1e-3)


def test_the_running_mean_enters_the_next_term():
    p, u, s = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    gamma, nu = SAFE.term(p, u, s, torch.tensor([2.0, 4.0]))
    assert gamma.tolist() == pytest.approx([0.5 + 0.6, 1.2])
    assert nu.tolist() == pytest.approx([0.4 * 2 + 0.6 * 1.1, 0.4 * 4 + 0.6 * 1.2])


def test_warming_up_leaves_the_first_steps_alone_but_builds_up_momentum(model):
    late = SafeGuidance(scale=40.0, threshold=0.02, warmup=0.5, momentum=0.3, decay=0.4)
    concept = "4" if type(model.pipe).__name__.startswith("DiT") else "star"
    _, with_it = outputs(model, late.build(model, Request(concept, given=GIVEN), Tools()).enter)
    _, plain = outputs(model, SafeGuidance(warmup=2.0).build(model, Request(concept, given=GIVEN), Tools()).enter)
    same = [torch.equal(a[0], b[0]) for a, b in zip(with_it, plain, strict=True)]
    assert same[0]
    assert not same[-1]


def test_a_tap_inside_reads_the_tokens_of_the_run_and_not_those_of_the_concept(model):
    concept, prompt = ("4", "3") if type(model.pipe).__name__.startswith("DiT") else ("star", "a red star")
    erasure = SafeGuidance(warmup=2.0).build(model, Request(concept, given=GIVEN), Tools())
    site, taken = next(iter(model.sites())), []
    for enter in (erasure.enter, nullcontext):
        with enter(), tap(model, site) as read:
            model.generate([prompt], [5], output_type="latent", **GIVEN)
        taken.append(read[site])
    assert torch.equal(*taken)


def test_a_run_without_guidance_is_refused_rather_than_left_as_it_is(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    for name in ("sld", "negative_prompt"):
        erasure = METHODS[name].build(model, Request("star", given=GIVEN), Tools())
        with pytest.raises(ValueError, match="without guidance"), erasure():
            model.generate(["a star"], [0], steps=2, guidance=1.0)


def test_a_negative_prompt_of_the_run_is_kept_behind_the_concept(tiny_pipelines):
    model = visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))
    with METHODS["negative_prompt"].build(model, Request("star", given=GIVEN), Tools())():
        inside = model.generate(["a square"], [0], negative="grey", output_type="np", **GIVEN)
    by_hand = model.generate(["a square"], [0], negative="star, grey", output_type="np", **GIVEN)
    assert (inside == by_hand).all()
