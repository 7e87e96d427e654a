"""Where the tokens of pipelines are: streams, texts as long as images, places on the latents; and what taps refuse."""

import pytest
import torch

import visae
from visae.check import check_geometry
from visae.registry import UnknownName
from visae.sites import rows
from visae.taps import tap
from visae.workflows.listing import sites as list_sites

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPTS = ["a red square", "blue star on grey"]


@pytest.fixture(scope="module")
def adapt(tiny_pipelines):
    """Function that builds a pipeline of the table anew and wraps it."""

    def make(name, image_size=None, **options):
        row = tiny_pipelines.PIPELINES[name]
        return visae.wrap(tiny_pipelines.build(name), image_size=image_size or row.size, **row.options | options)

    return make


def latents(model, **more):
    return model.generate(PROMPTS, [1, 2], **{"steps": 2, "output_type": "latent"} | more)


JOINT = {  # path: (image element, text element) of what the module gives, as diffusers 0.42 has them
    "sd3": {"transformer_blocks.0": (1, 0), "transformer_blocks.0.attn": (0, 1)},
    "flux": {"transformer_blocks.1": (1, 0), "transformer_blocks.1.attn": (0, 1),
             "single_transformer_blocks.0": (1, 0)},
    "cogview4": {"transformer_blocks.0": (0, 1), "transformer_blocks.0.attn1": (0, 1)},
    "aura": {"joint_transformer_blocks.0": (1, 0), "joint_transformer_blocks.0.attn": (0, 1)},
}  # fmt: skip


@pytest.mark.parametrize("length", ["other", "equal"])
@pytest.mark.parametrize("name", JOINT)
def test_the_streams_of_joint_blocks_are_told_apart(adapt, name, length):
    """SD3's text is that of CLIP (12 tokens) and T5's; AuraFlow puts 8 learnt tokens before it; CogView4 fills 16."""
    more, equal = {"sd3": 12, "aura": 8}.get(name, 0), length == "equal"
    size, grid = ((16, 16), (4, 4)) if name == "cogview4" and equal else ((16, 32), (4, 8))
    n = grid[0] * grid[1]
    text = n if equal else (16 if name == "cogview4" else 10) + more
    model = adapt(name, image_size=size, max_sequence_length=text - more)
    for path, (image, other) in JOINT[name].items():
        site, beside = model.site(f"transformer.{path}"), model.site(f"transformer.{path}.text")
        assert (site.index, site.stream, site.grid, site.n_tokens) == (image, "image", grid, n)
        assert (beside.index, beside.stream, beside.grid, beside.n_tokens) == (other, "text", None, text)


def test_a_text_as_long_as_a_level_of_a_u_net_has_tokens_is_no_image(adapt):
    model = adapt("sd", image_size=(8, 24))  # 2 x 6 tokens in the middle, 12 of CLIP
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    for suffix in ("", ".attn_out", ".cross_out", ".mlp_out", ".delta", ".heads"):
        assert model.site(block + suffix).grid == (2, 6), suffix
    assert model.site(f"{block}.cross_out").kind == "cross_out"


def test_a_rewrite_of_the_text_stream_leaves_the_image_of_that_block(adapt):
    model, name = adapt("flux"), "transformer.transformer_blocks.0"
    with tap(model, name, f"{name}.text") as plain:
        latents(model, steps=1)
    watch = tap(model, name, "transformer.transformer_blocks.1.text.input")
    with watch as seen, tap(model, f"{name}.text", rewrite=lambda x: x + 1):
        latents(model, steps=1)
    assert torch.equal(plain[name], seen[name])
    assert torch.equal(plain[f"{name}.text"] + 1, seen["transformer.transformer_blocks.1.text.input"])


def test_dual_attention_of_sd35_is_no_cross_attention(adapt):
    model, block = adapt("sd35"), "transformer.transformer_blocks.0"
    assert model.site(f"{block}.attn2").kind == "attn_out"
    with pytest.raises(ValueError, match="without a text"):
        model.site(f"{block}.cross_out")
    assert "transformer.transformer_blocks.1.attn2" not in model.sites()


def test_a_delta_rewritten_to_nothing_takes_the_block_away(adapt):
    model, name = adapt("sd"), "unet.up_blocks.1.attentions.0"
    with tap(model, f"{name}.delta", rewrite=torch.zeros_like):
        without = latents(model)
    module = model.module.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, args, _out: (args[0],))
    try:
        torch.testing.assert_close(without, latents(model), rtol=1e-4, atol=1e-4)
    finally:
        handle.remove()
    assert not torch.allclose(without, latents(model), atol=1e-3)


@pytest.mark.parametrize("name", ["sd", "sdxl", "if", "pixart-alpha", "dit", "sd35", "flux", "aura", "sana"])
def test_a_square_planted_on_the_latents_lights_its_own_token(adapt, tiny_pipelines, name):
    size, times = tiny_pipelines.PIPELINES[name].size, 1 if name in ("dit", "if", "sana") else 3
    model = adapt(name, image_size=(times * size[0], times * size[1]))
    blocks = [n for n, s in model.sites().items() if s.kind in ("output", "input") and s.grid]
    assert len({model.site(n).grid for n in blocks}) == (2 if model.denoiser.name == "unet" else 1)
    for block in blocks[:: max(1, len(blocks) // 4)]:
        check = check_geometry(model, block, positions=5)
        assert check.ok if model.denoiser.name == "unet" else check.share == 1, check


def test_a_site_whose_order_is_wrong_fails_the_check(adapt, monkeypatch):
    model = adapt("pixart-alpha", image_size=(48, 72))
    site = model.site("transformer.transformer_blocks.0")
    from dataclasses import replace

    turned = replace(site, grid=site.grid[::-1], stride=site.stride[::-1])
    monkeypatch.setattr(model, "site", lambda _: turned)
    assert not check_geometry(model, turned, positions=6).ok


def test_images_of_another_size_are_refused_where_tokens_would_get_wrong_places(adapt):
    model = adapt("sd")
    with pytest.raises(ValueError, match="another size"), tap(model, "unet.mid_block"):
        latents(model, height=32, width=32)


ENCODERS = {
    "sdxl": ("text_encoder.encoder.layers.1", "text_encoder_2.text_model.encoder.layers.1"),
    "sd3": ("text_encoder.text_model.encoder.layers.1", "text_encoder_2.text_model.encoder.layers.1"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_edit_of_a_text_encoder_reaches_the_hidden_state_that_pipelines_read(adapt, name):
    """Also after the encoder has run before: its own recording hooks then stand ahead of ordinary ones."""
    model = adapt(name)
    before = latents(model)
    for site in ENCODERS[name]:
        encoder = getattr(model.pipe, site.partition(".")[0])
        ids = torch.tensor([[1, 5, 6, 7, 2, 2, 2, 2, 2, 2, 2, 2]])
        with torch.no_grad():
            plain = encoder(ids, output_hidden_states=True).hidden_states
            with tap(model, site, rewrite=lambda x: x + 1):
                edited = encoder(ids, output_hidden_states=True).hidden_states
        assert torch.equal(edited[-2], plain[-2] + 1)
        assert torch.equal(edited[-3], plain[-3])
        with tap(model, site, rewrite=lambda x: x + 1):
            assert not torch.allclose(latents(model), before, atol=1e-3)


@pytest.mark.parametrize("name", ["flux", "pixart-alpha", "sana", "aura", "cogview4"])
def test_an_edit_of_a_t5_or_a_language_model_reaches_the_image(adapt, name):
    model = adapt(name)
    before = latents(model)
    found = [n for n, s in model.sites().items() if s.kind == "output" and s.stream == "text" and "text_enc" in n]
    with tap(model, found[-2], rewrite=lambda x: x + torch.randn_like(x)):
        assert not torch.allclose(latents(model), before, atol=1e-4)


def test_several_images_of_a_prompt_are_rows_with_seeds_of_their_own(adapt):
    model = adapt("sd")
    with tap(model, "unet.mid_block") as taken:
        together = model.generate(PROMPTS, [1, 2, 3, 4], num_images_per_prompt=2, steps=2, output_type="latent")
    assert taken["unet.mid_block"].shape[0] == 8
    alone = model.generate(
        [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], [1, 2, 3, 4], steps=2, output_type="latent"
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="2 prompts with 2 images"):
        model.generate(PROMPTS, [1, 2], num_images_per_prompt=2)


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart-alpha", "sd35", "flux", "sana"])
def test_in_bfloat16_taps_change_no_bit_either(adapt, name):
    model = adapt(name).to(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    plain = latents(model)
    with tap(model, *model.sites()) as taken:
        assert torch.equal(latents(model), plain)
    assert taken[next(iter(taken))].dtype == torch.bfloat16
    with tap(model, *model.sites(), rewrite=torch.clone):
        assert torch.equal(latents(model), plain)


def test_weights_that_wait_elsewhere_are_tapped_and_hashed_like_others(adapt):
    """What sequential offload does, with the CPU in the place of the GPU."""
    from accelerate import cpu_offload

    model, held = adapt("sdxl"), adapt("sdxl")
    for component in model.pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, torch.device("cpu"))
    assert any(p.is_meta for p in model.pipe.unet.parameters())
    plain = latents(held)
    with tap(model, *model.sites(), rewrite=torch.clone) as taken:
        assert torch.equal(latents(model), plain)
    assert model.sites() == held.sites()
    assert model.revision == held.revision
    assert torch.equal(taken["unet.mid_block.delta"], taken["unet.mid_block"] - taken["unet.mid_block.input"])


COMPILED = {
    "in place": lambda unet: unet.compile(backend="eager"),
    "by block": lambda unet: unet.mid_block.attentions[0].compile(backend="eager"),
    "forward": lambda unet: setattr(unet, "forward", torch.compile(unet.forward, backend="eager")),
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_denoiser_compiled_after_wrapping_is_refused(adapt, how):
    model = adapt("sd")
    inner = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    model.site(inner)
    COMPILED[how](model.pipe.unet)
    with pytest.raises(ValueError, match="compiled"), tap(model, inner):
        pass


def test_what_is_no_pipeline_or_cannot_be_asked_is_refused_with_the_cure(adapt, tiny_pipelines):
    with pytest.raises(ValueError, match="whole pipelines"):
        visae.wrap(tiny_pipelines.unet())
    model = adapt("sd")
    with pytest.raises(ValueError, match="does not take styles"):
        model.generate(PROMPTS, [1, 2], styles=3)
    with pytest.raises(ValueError, match="seed of its own"):
        model.generate(PROMPTS, [1])
    with pytest.raises(ValueError, match="16 x 16 pixels only"):
        adapt("dit").generate([1], [0], height=32, width=32)
    with pytest.raises(ValueError, match="makes images"):
        visae.model.vision(model)
    with pytest.raises(ValueError, match="pass it to visae"):
        visae.load_model("diffusers:owner/name", pretrained=False)
    with pytest.raises(UnknownName, match="unet"):
        model.site("transformer.transformer_blocks.0")


def test_the_command_lists_and_checks_the_sites_of_a_pipeline(adapt, tmp_path):
    adapt("dit").pipe.save_pretrained(tmp_path / "toy")
    table = str(list_sites(f"diffusers:{tmp_path / 'toy'}", check=True))
    line = next(t for t in table.splitlines() if t.startswith("transformer.transformer_blocks.1.delta"))
    assert line.split()[2:] == ["delta", "NLC", "[n,", "16,", "16]", "4", "x", "4", "patch", "ok"]


def test_the_table_of_sites_tells_layout_element_and_stream(adapt):
    lines = {row["name"]: row for row in rows(adapt("flux").sites())}
    block = "transformer.transformer_blocks.0"
    assert (lines[block]["native"], lines[block]["tokens"]) == ("NLC [1]", "4 x 6 patch")
    assert (lines[f"{block}.text"]["native"], lines[f"{block}.text"]["tokens"]) == ("NLC [0]", "10 text")
    assert {row["native"] for row in rows(adapt("sd").sites()) if row["kind"] == "delta"} == {"NLC", "NCHW", "NCHW [0]"}


def test_texts_as_long_as_their_prompts_leave_the_image_no_place_but_before_them(adapt):
    model = adapt("lumina2")
    names = {name for name in model.sites() if name.startswith("transformer.")}
    assert {
        "transformer.noise_refiner.0",
        "transformer.noise_refiner.0.delta",
        "transformer.context_refiner.0",
    } <= names
    assert not any(name.startswith("transformer.layers") for name in names)
    with pytest.raises(ValueError, match=r"no fixed place\. Tap a block before .* transformer\.noise_refiner\.0"):
        model.site("transformer.layers.0")

    def tokens(prompts, seeds):
        with tap(model, "transformer.noise_refiner.0") as taken:
            model.generate(prompts, seeds, steps=2, guidance=1.0, output_type="latent")
        return taken["transformer.noise_refiner.0"]

    apart = torch.cat([tokens(PROMPTS[:1], [1]), tokens(PROMPTS[1:], [2])])
    torch.testing.assert_close(tokens(PROMPTS, [1, 2]), apart, rtol=1e-4, atol=1e-5)
