"""The text-to-image pipelines: tokenizers, autoencoder, latents, denoising, folders."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file
from scipy import ndimage
from torch.nn import functional
from transformers import CLIPTokenizer, T5Tokenizer

from visae.world import World, models, pipeline_recipes
from visae.world.captions import draw_caption
from visae.world.hashing import Stream
from visae.world.models.clip_tokenizer import CONTEXT, pieces, write_clip_tokenizer
from visae.world.models.t5_tokenizer import write_t5_tokenizer
from visae.world.pipeline_recipes import PIPELINE_RECIPES, PipelineRecipe
from visae.world.training.assemble import components, make_autoencoder, pipeline, write_pipeline
from visae.world.training.autoencode import Autoencoding, principal_components, standardise
from visae.world.training.cache import Cache, open_cache
from visae.world.training.denoise import FOCUS, NEVER, Denoising, denoising, noise_levels, object_weights
from visae.world.training.latents import Latents, open_latents, to_pixels, withheld_combinations, withheld_rows
from visae.world.training.loop import batch_rows, fit, learning_rate
from visae.world.training.pipelines import export_pipeline

SINGLES, SEVERAL = 48, 16


def small(name: str) -> PipelineRecipe:
    """The recipe with a denoiser of a few thousand parameters."""
    recipe = PIPELINE_RECIPES[name]()
    fewer = {
        "tiny-sd": {"block_out_channels": [16, 32, 32], "norm_num_groups": 8},
        "tiny-dit": {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16},
    }
    config = recipe.config | {"denoiser": recipe.config["denoiser"] | fewer[name]}
    return replace(recipe, config=config, steps=4, batch=8, warmup=1, singles=SINGLES, several=SEVERAL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(tmp_path_factory.mktemp("cache"), SINGLES, SEVERAL, workers=1)


@pytest.fixture(scope="module")
def autoencoder(cache: Cache):
    torch.manual_seed(0)
    model = make_autoencoder(pipeline_recipes.autoencoder())
    standardise(model, cache, 0.1)
    return model


@pytest.fixture(scope="module")
def latents(cache: Cache, autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Latents:
    return open_latents(tmp_path_factory.mktemp("latents"), cache, SINGLES, autoencoder, "cpu")


def task(name: str, cache: Cache, latents: Latents, folder: Path) -> Denoising:
    recipe = small(name)
    torch.manual_seed(0)
    return denoising(recipe, cache, latents, components(recipe, folder / "tokenizer"), "cpu")


@pytest.mark.parametrize(
    ("write", "kind", "space"), [(write_clip_tokenizer, CLIPTokenizer, "</w>"), (write_t5_tokenizer, T5Tokenizer, "▁")]
)
def test_every_word_is_one_token_and_every_caption_comes_back(write, kind, space, tmp_path: Path) -> None:
    write(tmp_path)
    tokenizer = kind.from_pretrained(tmp_path)
    assert type(tokenizer) is kind
    assert all([token.replace(space, "") for token in tokenizer.tokenize(piece)] == [piece] for piece in pieces())
    world = World("test", 200, objects=(1, 3))
    texts = [draw_caption(world.scene(i), Stream(3, i, j), bool(j)).text for i in range(200) for j in range(2)]
    read = tokenizer(texts).input_ids
    assert max(map(len, read)) <= CONTEXT
    back = tokenizer.batch_decode(read, skip_special_tokens=True)
    assert [text.replace(" ", "") for text in back] == [text.replace(" ", "") for text in texts]
    assert tokenizer("A RED star").input_ids == tokenizer("a red star").input_ids or kind is T5Tokenizer
    assert len(tokenizer("a mauve gnu").input_ids) > len(tokenizer("a red star").input_ids)


def test_the_text_encoder_says_what_the_tower_of_tiny_clip_says(tmp_path: Path) -> None:
    parts = components(small("tiny-sd"), tmp_path)
    tower, texts = models.build("tiny-clip"), ["a red polka-dot circle on a dark background", "two shapes", ""]
    read = parts["tokenizer"](texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    with torch.inference_mode():
        last = [ids.tolist().index(parts["tokenizer"].eos_token_id) for ids in read]
        ours = parts["text_encoder"](read)[0][range(3), last] @ tower.text_projection
        torch.testing.assert_close(ours, tower.encode_text(models.tokenizer()(texts)), atol=1e-5, rtol=1e-4)


def test_thorough_captions_are_true_and_leave_nothing_open() -> None:
    world = World("train", 100, objects=(1, 3))
    for i in range(100):
        scene = world.scene(i)
        caption = draw_caption(scene, Stream(1, i), thorough=True)
        assert caption.holds(scene)
        assert caption.background == scene.background
        assert len(caption.things) == len(scene.things)
        assert all(set(stated) == {"shape", "style", "colour"} for stated in caption.things)


def test_withheld_combinations_are_spread_evenly_and_never_trained_on(
    cache: Cache, latents: Latents, tmp_path: Path
) -> None:
    kept = withheld_combinations()
    assert len(set(kept)) == 48
    for position, often in ((0, 4), (1, 6), (2, 6)):
        _, counts = np.unique([combination[position] for combination in kept], return_counts=True)
        assert set(counts) == {often}
    one, several = World("train", 64), World("train", 64, seed=1, objects=(1, 3))
    scenes = [(one if row < SINGLES else several).scene(row) for row in range(SINGLES + SEVERAL)]
    truth = [any((t.shape, t.style, t.colour) in kept for t in scene.things) for scene in scenes]
    assert withheld_rows(np.asarray(cache.facts)).tolist() == truth
    assert any(truth)
    learning = task("tiny-sd", cache, latents, tmp_path)
    shown = np.concatenate([batch_rows(small("tiny-sd"), learning.levels, step)[0] for step in range(40)])
    assert not np.array(truth)[shown].any()
    assert (learning.levels == NEVER).sum() == sum(truth)


def test_principal_components_are_uncorrelated_and_standard(cache: Cache) -> None:
    weight, bias = principal_components(np.asarray(cache.images))
    found = functional.conv2d(to_pixels(cache.images), weight, bias, stride=4).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(torch.cov(found), torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.mean(1), torch.zeros(4), atol=1e-4, rtol=0)


def test_standard_latents_decode_to_the_same_picture(cache: Cache) -> None:
    torch.manual_seed(1)
    model = make_autoencoder(pipeline_recipes.autoencoder()).eval()
    some = replace(cache, images=cache.images[:12])
    pixels = to_pixels(some.images)
    with torch.inference_mode():
        before = model.decode(model.encode(pixels[:2]).latent_dist.mean).sample
        standardise(model, some, 0.2)
        posterior = model.encode(pixels).latent_dist
        torch.testing.assert_close(model.decode(posterior.mean[:2]).sample, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.2))


def test_the_latent_cache_holds_what_the_autoencoder_says_and_true_captions(
    cache: Cache, latents: Latents, autoencoder
) -> None:
    with torch.inference_mode():
        exact = autoencoder.encode(to_pixels(cache.images)).latent_dist.mean
    assert latents.values.shape == exact.shape
    assert np.abs(latents.values - exact.numpy()).mean() < 0.02  # encoded in bf16
    assert (latents.texts[:, 0] == cache.texts[:, 0]).all()
    world = World("train", 64)
    for row in (0, 47):
        assert world.scene(row).background == held_background(latents.texts[row, 1].decode())


def held_background(text: str) -> str:
    from visae.world.lexicon import GROUNDS

    return next(name for name, phrases in GROUNDS.items() if any(phrase in text for phrase in phrases))


def test_noise_levels_cover_the_range_evenly_and_crowd_where_shapes_are_decided() -> None:
    even = noise_levels(32, 0.0, torch.Generator().manual_seed(3))
    assert sorted((even * 32).long().tolist()) == list(range(32))
    assert even.tolist() != sorted(even.tolist())
    near = torch.logit(noise_levels(4000, 1.0, torch.Generator().manual_seed(3)).double())
    assert (near.mean().item(), near.std().item()) == pytest.approx(FOCUS, abs=0.01)
    both = noise_levels(40, 0.5, torch.Generator().manual_seed(3))
    assert (both < 0.5).sum() == pytest.approx(10 + 20 * torch.special.ndtr(torch.tensor(-1.4 / 0.8)).item(), abs=1.01)


def test_objects_and_their_rims_count_fully_and_the_background_less(cache: Cache) -> None:
    weights = object_weights(cache.masks[:48], 0.25)
    world = World("train", 64)
    for row in range(48):
        shown = world.regions(row) > 0
        cells = shown.reshape(16, 4, 16, 4).any((1, 3))
        grown = ndimage.binary_dilation(cells, np.ones((3, 3)))
        np.testing.assert_array_equal(weights[row, 0].numpy(), np.where(grown, 1.0, 0.25))


@pytest.mark.parametrize("name", list(PIPELINE_RECIPES))
def test_going_back_along_the_velocity_gives_the_latent(
    name: str, cache: Cache, latents: Latents, tmp_path: Path
) -> None:
    learning = task(name, cache, latents, tmp_path)
    clean, noise = torch.randn(2, 5, 4, 16, 16)
    noised, velocity, times = learning.path(clean, noise, torch.tensor([0.0, 0.3, 0.5, 0.9, 0.9999]))
    assert (times.diff() > 0).all()
    scheduler = components(small(name), tmp_path / "tokenizer")["scheduler"]
    if name == "tiny-sd":
        kept = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        back = kept.sqrt() * noised - (1 - kept).sqrt() * velocity
        assert scheduler.alphas_cumprod[-1] < 1e-6, "at the last step nothing of the image may show"
        told = DDIMScheduler.from_config(scheduler.config).get_velocity(clean, noise, times)
        torch.testing.assert_close(velocity, told)
    else:
        back = noised - times.view(-1, 1, 1, 1) / 1000 * velocity
    torch.testing.assert_close(back, clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*PIPELINE_RECIPES, "autoencoder", "decoder"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    name: str, cache: Cache, latents: Latents, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def fresh():
        if name in PIPELINE_RECIPES:
            return task(name, cache, latents, tmp_path), small(name)
        short = {"autoencoder": {"guided": 2}, "decoder": {}}[name]
        recipe = replace(getattr(pipeline_recipes, name)(), steps=4, batch=2, warmup=1, **short)
        torch.manual_seed(0)
        return Autoencoding(recipe, cache, make_autoencoder(recipe), "cpu"), recipe

    def stop_at_two(step: int, _: dict[str, torch.Tensor]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole = fit(*fresh(), tmp_path / "whole", lambda *_: None, every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(*fresh(), tmp_path / "cut", stop_at_two, every=2)
    resumed = fit(*fresh(), tmp_path / "cut", lambda *_: None, every=2)
    torch.set_num_threads(threads)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = fresh()[0].model.state_dict()
    same = [key for key in whole if torch.equal(whole[key], start[key])]
    assert len(same) < len(whole)
    frozen = [key for key in whole if key.startswith(("encoder.", "quant_conv."))] if name == "decoder" else []
    assert set(frozen) <= set(same), "the encoder stays"


def test_the_learning_rate_stays_at_its_peak_until_it_falls() -> None:
    recipe = replace(small("tiny-sd"), steps=100, warmup=10, decay=0.25)
    rates = [learning_rate(recipe, step) / recipe.lr for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:76]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[76:]))
    assert 0.02 < rates[-1] < 0.03


@pytest.mark.parametrize("name", list(PIPELINE_RECIPES))
def test_a_written_pipeline_is_a_folder_that_upstream_loads_and_runs(name: str, autoencoder, tmp_path: Path) -> None:
    recipe = small(name)
    pipe = pipeline(recipe, components(recipe, tmp_path / "tokenizer"), autoencoder)
    write_pipeline(pipe, tmp_path / name)
    write_pipeline(pipe, tmp_path / name)  # over the old one
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", name}
    loaded = DiffusionPipeline.from_pretrained(tmp_path / name)
    assert type(loaded).__name__ == recipe.classes["pipeline"]
    for key, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        ours, theirs = part.state_dict(), getattr(loaded, key).state_dict()
        assert {value.dtype for value in theirs.values()} == {torch.float32}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        for file in (tmp_path / name / key).glob("*.safetensors"):
            assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    loaded.set_progress_bar_config(disable=True)
    made = loaded(["a red star", ""], num_inference_steps=2, output_type="np", **recipe.call).images
    assert made.shape == (2, 64, 64, 3)
    assert np.isfinite(made).all()


def test_an_export_is_a_pipeline_with_a_card_that_tells_how_it_was_made(autoencoder, tmp_path: Path) -> None:
    recipe = small("tiny-dit")
    state = {}
    parts = components(recipe, tmp_path / "tokenizer")
    for name in recipe.trained:
        state |= {f"{name}.{key}": value for key, value in parts[name].state_dict().items()}
    metrics = export_pipeline(recipe, state, autoencoder, tmp_path / "tiny-dit", 3, 4)
    loaded = models.pipeline("tiny-dit", tmp_path / "tiny-dit")
    card = models.card("tiny-dit", tmp_path / "tiny-dit")
    assert (card["step"], card["finished"], len(card["trained_on"]["withheld"])) == (3, False, 48)
    assert card["metrics"] == {key: round(value, 5) for key, value in metrics.items()}
    assert card["parameters"]["vae"] == sum(p.numel() for p in loaded.vae.parameters())
