"""Erasure that lasts: adapters as files of diffusers, and latents that no longer fire without any hook."""

from dataclasses import replace

import pytest
import torch

import visae
from visae.erasers import METHODS, Request, Tools, Unsuitable
from visae.erasers.adapters import FILE, adapted, fused, read_adapters, save_adapters
from visae.erasers.calls import catch
from visae.erasers.crisp import Suppression
from visae.erasers.weights import swapped
from visae.sae import initialise, make_sae
from visae.select import Selection
from visae.taps import tap

GIVEN = {"steps": 3, "guidance": 3.0}
REQUEST = Request("star", ("a red star", "blue star on grey"), ("a red square", "green circle"), given=GIVEN)
SITE = "unet.mid_block.attentions.0"


@pytest.fixture(scope="module")
def model(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"), image_size=(16, 24))


@pytest.fixture(scope="module")
def sae(model):
    made = make_sae("topk", model.site(SITE).d, 24, k=2)
    with tap(model, SITE) as taken:
        images(model)
    initialise(made, taken[SITE].flatten(0, 1))
    return made


def chosen(latents):
    ones = (1,) * len(latents)
    return Selection("concept", "star", tuple(latents), ones, (0.0,) * len(latents), ones, "given", ones)


@pytest.fixture(scope="module")
def concept(model, sae):
    """The two latents that fire most on target tokens."""
    everything = Suppression(model, model.site(SITE), sae, chosen(range(24)))
    caught = [catch(model, [prompt], [seed], 1, **GIVEN) for seed, prompt in enumerate(REQUEST.target)]
    with torch.no_grad():
        often = sum(everything.fires(everything.read(c)[0], c.step.sigma).float().mean(0) for c in caught)
    return Suppression(model, model.site(SITE), sae, chosen(often.topk(2).indices.tolist()))


def images(model):
    return torch.as_tensor(model.generate(["a red star", "a square"], [0, 1], output_type="np", **GIVEN))


def test_latents_stop_firing_with_the_weights_of_the_file_alone(model, sae, concept, tmp_path):
    tools = Tools(site=SITE, sae=lambda _: sae, select=lambda *_: concept.selection, folder=tmp_path)
    erasure = replace(METHODS["crisp"], beta=0.1, iterations=15, lr=3e-2).build(model, REQUEST, tools)
    before, after = erasure.told["fired"]["before"], erasure.told["fired"]["after"]
    assert before > 0.3
    assert after < 0.5 * before
    assert erasure.told["file"] == str(tmp_path / FILE)
    weights = fused(model.pipe.unet, read_adapters(tmp_path, "unet"))
    with swapped(model.pipe.unet, weights):
        by_hand = images(model)
    with erasure():
        assert torch.equal(images(model), by_hand)
    assert not any(part.name.endswith(".part") for part in tmp_path.iterdir())


def test_saved_adapters_are_loaded_by_diffusers_and_make_the_same_images(model, tmp_path):
    plain, unet = images(model), model.pipe.unet
    names = [n for n, m in unet.named_modules() if n.endswith(("to_q", "to_v", "to_out.0")) and "mid_block" in n]
    with adapted(unet, names, 4, seed=0) as adapters, torch.no_grad():
        assert torch.equal(images(model), plain), "new adapters change nothing"
        for layer in adapters.layers.values():
            layer.lora_B["default"].weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        live = images(model)
        with adapters.off():
            assert torch.equal(images(model), plain)
        save_adapters(tmp_path, "unet", adapters.state())
    assert torch.equal(images(model), plain)
    assert not torch.allclose(live, plain, atol=1e-3)
    model.pipe.load_lora_weights(tmp_path)
    try:
        torch.testing.assert_close(images(model), live, rtol=0, atol=1e-6)
    finally:
        model.pipe.unload_lora_weights()
    with swapped(unet, fused(unet, read_adapters(tmp_path, "unet"))):
        torch.testing.assert_close(images(model), live, rtol=1e-3, atol=1e-3)
    assert torch.equal(images(model), plain)


def test_the_loss_is_what_is_left_of_the_latents_where_they_fired(model, sae, concept):
    tokens = torch.randn(6, sae.d, generator=torch.Generator().manual_seed(0))
    on = torch.rand(6, 2, generator=torch.Generator().manual_seed(1)) > 0.5
    pre = torch.cat(list(sae.pre_activations(tokens))).detach()
    pushed = [
        max(0.0, float(pre[t, latent] + 5 * pre[t].mean().abs()))
        for t in range(6)
        for j, latent in enumerate(concept.selection.latents)
        if on[t, j]
    ]
    loss = concept.loss(tokens, on, 1.0, alpha=5.0).detach()
    assert float(loss) == pytest.approx(sum(pushed) / len(pushed), rel=1e-5)
    assert float(concept.loss(tokens, on & False, 1.0, alpha=5.0)) == 0.0


def test_what_does_not_fit_is_refused(model, sae, concept, tmp_path):
    method, give = METHODS["crisp"], lambda *_: concept.selection
    with pytest.raises(Unsuitable, match="tokens of length"):
        method.build(model, REQUEST, Tools(site=SITE, sae=lambda _: make_sae("topk", 7, 24, k=2), select=give))
    with pytest.raises(Unsuitable, match="empty"):
        method.build(model, REQUEST, Tools(site=SITE, sae=lambda _: sae, select=lambda *_: chosen([])))
    with pytest.raises(Unsuitable, match="fires on target prompts"):
        method.build(model, REQUEST, Tools(site=SITE, sae=lambda _: make_sae("topk", sae.d, 24, k=2), select=give))
    first = "unet.down_blocks.0.resnets.0"
    wide = make_sae("topk", model.site(first).d, 24, k=2)
    with pytest.raises(Unsuitable, match="no layer of attention runs before"):
        method.build(model, REQUEST, Tools(site=first, sae=lambda _: wide, select=give))
    with pytest.raises(FileNotFoundError, match="no LoRA weights"):
        read_adapters(tmp_path, "unet")
    with pytest.raises(Unsuitable, match="another model's"):
        fused(model.pipe.unet, {"nowhere.lora_A.weight": torch.ones(1, 1)})
