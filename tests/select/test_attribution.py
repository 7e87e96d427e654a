"""Scores that ask the pipeline: gradients against finite differences, and directions from a prompt."""

import pytest
import torch

import visae
from visae.clock import noise_scale
from visae.data import load_prompts
from visae.sae import initialise, make_sae
from visae.select import Selection, collect_statistics, gradient_attribution, prompt_direction, select_concept
from visae.store import Sampling, Stream
from visae.store.noising import Denoiser, noised
from visae.store.probing import collection
from visae.taps import tap

RUN = Sampling(steps=2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


def built(tiny_pipelines, name):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), name=name, image_size=row.size, **row.options)
    return model, row


def dictionary(rows, kind="topk"):
    sae = make_sae(kind, rows.shape[1], 32, k=4)
    initialise(sae, rows)
    return sae.eval().requires_grad_(False)


def apart(model, sae, site, run, slot, target, retain, factor, latent):
    """L of one pair, with a latent's codes multiplied: through nothing but a rewrite and the denoiser."""
    given = run.arguments()
    clean = model.generate([target.text], [target.seed], output_type="latent", **given).float()
    denoisers = [Denoiser(model, [one.text], [target.seed], given) for one in (target, retain)]
    noisy = noised(clean, denoisers[0].noise(clean, slot.step), slot.sigma, noise_scale(model.pipe.scheduler))
    row = next(r for r, branch in enumerate(denoisers[0].step.branch) if branch != "uncond")

    def rewrite(tokens):
        x = tokens[row, len(site.prefix) :]
        codes = sae.encode(x)
        more = torch.where(codes.indices == latent, codes.values * (factor - 1), 0.0)
        out = tokens.clone()
        out[row, len(site.prefix) :] += sae.decode(codes.with_values(codes.values + more)) - sae.decode(codes)
        return out

    with torch.no_grad():
        other = denoisers[1](noisy, slot.timestep)[0][row]
        with tap(model, site, rewrite=rewrite):
            mine = denoisers[0](noisy, slot.timestep)[0][row]
    count = noisy.shape[1]
    difference = mine.double() - other.double()
    difference = difference[:count] if difference.dim() == 3 else difference
    return float(difference.square().mean() / 2)


@pytest.mark.parametrize("name", ["sd", "pixart-alpha", "flux", "flux-guided"])
def test_a_score_is_what_the_contrast_gains_when_a_latents_codes_grow(name, tiny_pipelines):
    model, row = built(tiny_pipelines, name)
    site, run = model.site(row.block), None
    run = collection(model, site, RUN)
    target, retain = load_prompts(["a red star", "a star"]), load_prompts(["blue on grey", "a green circle"])
    stream = Stream(model, row.block, target, dtype="float32", workers=0, sampling=run)
    sae = dictionary(torch.cat([chunk.rows for chunk in stream.chunks()]))
    scores = gradient_attribution(model, sae, row.block, run, target.items, retain.items, batch=2, progress=False)
    assert scores.shape == (2, 32)
    slot = run.slots[1]
    for latent in scores[1].abs().argsort(descending=True)[:2].tolist():
        growth = [
            apart(model, sae, site, run, slot, a, b, 1 + h, latent) * sign
            for a, b in zip(target, retain, strict=True)
            for h, sign in ((0.05, 1), (-0.05, -1))
        ]
        assert float(scores[1, latent]) == pytest.approx(sum(growth) / 0.1 / 2, rel=0.05)
    pairs = zip(target, retain, strict=True)
    alone = [gradient_attribution(model, sae, row.block, run, [a], [b], progress=False) for a, b in pairs]
    torch.testing.assert_close(scores, (alone[0] + alone[1]) / 2, rtol=1e-2, atol=float(scores.abs().max()) * 1e-3)


@pytest.fixture(scope="module")
def sd(tiny_pipelines):
    return built(tiny_pipelines, "sd")


def test_prompts_that_do_not_differ_give_no_latent_a_score_and_nothing_stays_behind(sd):
    model, row = sd
    prompts = load_prompts(["a red star"]).items
    sae = dictionary(torch.randn(64, model.site(row.block).d, generator=torch.Generator().manual_seed(0)), "abs_topk")
    weights = list(model.pipe.unet.parameters())
    scores = gradient_attribution(
        model, sae, row.block, Sampling(steps=2, branch="both"), prompts, prompts, progress=False
    )
    assert scores.shape == (2, 64)
    assert (scores == 0).all()
    assert all(weight.grad is None for weight in weights)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.pipe.unet.modules())
    with pytest.raises(ValueError, match="got 1 target and 0 retain prompts"):
        gradient_attribution(model, sae, row.block, RUN, prompts, [])


def test_latents_are_selected_by_their_gradients(sd):
    model, row = sd
    sides = [load_prompts(texts) for texts in (["a red star"], ["blue"])]
    sae = dictionary(torch.randn(64, model.site(row.block).d, generator=torch.Generator().manual_seed(0)))
    scores = gradient_attribution(model, sae, row.block, RUN, sides[0].items, sides[1].items, progress=False)
    both = [collect_statistics(model, sae, row.block, RUN, side, progress=False) for side in sides]
    found = select_concept(
        *both, scores=scores, score="gradient_attribution", top_m=1, per_level=False, concept="a star"
    )
    assert found.score == "gradient_attribution"
    assert found.latents == (int(scores.mean(0).argmax()),)


def test_a_prompts_direction_is_its_positive_pre_activations_place_by_place(sd, tmp_path):
    model, _ = sd
    name, text = "text_encoder.encoder.layers.1", "a red star"
    stream = Stream(model, name, load_prompts([text]), dtype="float32", sampling=Sampling("text"))
    rows = next(iter(stream.chunks())).rows
    sae = dictionary(rows)
    for one in (sae, sae.fold()):
        found = prompt_direction(model, one, name, text)
        codes = next(one.pre_activations(rows)).clamp(min=0) * (1 if one.gain is None else one.gain)
        torch.testing.assert_close(found.evidence["positions"], codes[:, list(found.latents)])
        weights = torch.zeros(32).index_copy(0, torch.tensor(found.latents), torch.tensor(found.weights))
        torch.testing.assert_close(weights, codes[1:5].mean(0))  # three words and the token that ends them
        assert list(found.weights) == sorted(found.weights, reverse=True)
        assert len(found.latents) > one.encode(rows[1:5]).l0().max()  # no sparsity rule
        vector = weights @ one.directions()
        torch.testing.assert_close(vector, (codes @ one.directions())[1:5].mean(0), rtol=1e-4, atol=1e-5)
    found.save(tmp_path / "direction.json")
    assert torch.equal(Selection.load(tmp_path / "direction.json").evidence["positions"], found.evidence["positions"])
    with pytest.raises(ValueError, match="does not run"):
        prompt_direction(model, sae, "unet.mid_block.attentions.0", text)
    with pytest.raises(ValueError, match="is signed"):
        prompt_direction(model, dictionary(rows, "abs_topk"), name, text)
