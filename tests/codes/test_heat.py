"""Live codes through a real model: the same as through a store, and a painted square lights up its own tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from visae.codes import CodeTable, encode_images, heat_maps
from visae.model import load_model
from visae.sae import Card, fit_baseline, load_sae, make_sae, save_sae
from visae.store import Stream
from visae.tokens import TokenPolicy
from visae.workflows.heatmap import draw
from visae.world import World

SITE = "blocks.2"


def random_sae(d, n_latents, k, kind="topk"):
    made = make_sae(kind, d, n_latents, k=k)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (made.W_enc, made.W_dec):
            weight.copy_(torch.nn.functional.normalize(torch.randn(n_latents, d, generator=generator), dim=1))
    return made


@pytest.fixture(scope="module")
def model():
    return load_model("visae:tiny-clip")


@pytest.fixture(scope="module")
def sae(model):
    made = random_sae(model.site(SITE).d, 96, 6)
    batch = next(Stream(model, SITE, World("train", n=16), TokenPolicy(), dtype="float32").chunks()).rows
    made.mean.copy_(batch.float().mean(0))
    made.card = Card("topk", made.d, 96, site=model.site(SITE).to_dict())
    return made


def test_live_codes_are_those_of_the_table_of_the_same_images(model, sae, tmp_path):
    world = World("test", n=5)
    source = Stream(model, SITE, world, TokenPolicy(kinds=("patch", "cls")), dtype="float32")
    table = CodeTable.build(sae, source, tmp_path / "codes", progress=False)
    live = list(encode_images(model, sae, [world[i].image for i in range(5)], batch=2))
    assert len(live) == 5
    assert table.name == world.name
    assert table.rows_of_kind["patch"] == 5 * 64
    for item, codes in enumerate(live):
        latents, values = codes.strongest(4)
        expected, expected_values = table.strongest(item, 4)
        np.testing.assert_array_equal(latents, expected)
        np.testing.assert_allclose(values, expected_values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(codes.grids(latents), table.grids(item, latents), rtol=1e-4, atol=1e-5)


def test_heat_maps_are_the_grid_on_the_pixels_of_images_of_any_size(model, sae):
    images = [World("test", n=2)[0].image.resize(size) for size in ((64, 64), (97, 61), (40, 200))]
    for image, codes in zip(images, encode_images(model, sae, images), strict=True):
        latents = codes.strongest(3)[0].tolist()
        maps = next(heat_maps(model, sae, [image], latents, mode="nearest"))
        assert maps.shape == (3, image.height, image.width)
        seen = codes.geometry.seen(codes.image_hw)
        assert (maps[:, ~seen] == 0).all()
        assert maps[:, seen].max() == pytest.approx(codes.grids(latents).max())


def test_what_differs_between_two_images_lies_under_the_square_that_differs(model):
    """The first token embedding is local: codes of a dictionary there change in the square's tokens alone."""
    site = "blocks.0.input"
    made = random_sae(model.site(site).d, 64, 4)
    plain = Image.new("RGB", (64, 64), (90, 90, 90))
    painted = plain.copy()
    painted.paste((250, 30, 30), (16, 32, 32, 48))
    a, b = (c.grids(range(64)) for c in encode_images(model, made, [plain, painted], site=site))
    changed = np.zeros((8, 8), bool)
    changed[4:6, 2:4] = True
    np.testing.assert_array_equal(np.abs(a - b).max(0) > 1e-5, changed)


@pytest.fixture(scope="module", params=["abs_topk", "pca"])
def signed_sae(request, model, tmp_path_factory):
    """Dictionaries whose latents fire either way, as they come from disk."""
    rows = next(Stream(model, SITE, World("train", n=16), TokenPolicy(), dtype="float32").chunks()).rows.float()
    if request.param == "pca":
        made = fit_baseline("pca", [rows], 12)
    else:
        made = random_sae(model.site(SITE).d, 96, 6, "abs_topk")
        made.mean.copy_(rows.mean(0))
    folder = tmp_path_factory.mktemp(request.param)
    save_sae(made, folder, Card("", 0, 0, site=model.site(SITE).to_dict()))
    return load_sae(folder)


def test_a_latent_that_fires_negatively_has_a_map_of_its_own_and_statistics_of_its_own(model, signed_sae, tmp_path):
    world = World("test", n=6)
    images = [world[i].image for i in range(6)]
    assert signed_sae.signed
    assert signed_sae.card.signed
    live = list(encode_images(model, signed_sae, images))
    latent, item = next(
        (int(j), i) for i, c in enumerate(live) for j, v in zip(*c.strongest(20), strict=True) if v < 0 and c.signed
    )
    both = live[item].grids([latent])[0]
    up, down = live[item].grids([latent, latent], [1, -1])
    assert both.min() < 0
    np.testing.assert_array_equal(up, both.clip(0))
    np.testing.assert_array_equal(down, (-both).clip(0))
    lone = next(heat_maps(model, signed_sae, [images[item]], [latent], signs=[-1], mode="nearest"))[0]
    assert lone.min() == 0
    assert lone.max() == pytest.approx(down.max())
    drawn = draw(images[item], live[item], [latent], signs=[-1])
    assert [axis.get_xlabel() for axis in drawn.axes[:2]] == ["", f"latent -{latent}"]
    # the table of the same images tells the same of both sides
    table = CodeTable.build(
        signed_sae, Stream(model, SITE, world, TokenPolicy(), dtype="float32"), tmp_path / "codes", progress=False
    )
    assert table.signed
    np.testing.assert_allclose(table.grid(item, latent, -1), down, rtol=1e-4, atol=1e-5)
    assert table.item_max(latent, -1)[1].max() < 0 <= table.item_max(latent)[1].min(initial=0)
    lowest = [c.grids([latent])[0].min() for c in live]
    top = table.top(latent, 6, sign=-1)
    np.testing.assert_array_equal(top.items, np.argsort(lowest, kind="stable")[: len(top.items)])
    np.testing.assert_allclose(top.values, np.sort(lowest)[: len(top.items)], rtol=1e-4)
    for factor in table.factors:
        stats, shows = table.class_statistics(latent, factor, sign=-1), table.shows(factor)
        expected = [np.minimum(lowest, 0)[s].mean() if s.any() else np.nan for s in shows]
        np.testing.assert_allclose(stats.mean, expected, rtol=1e-4, atol=1e-6)
        negative = np.array([c.grids([latent])[0].clip(max=0).mean() for c in live])
        by_patches = [negative[s].mean() if s.any() else np.nan for s in shows]
        np.testing.assert_allclose(stats.token_mean, by_patches, rtol=1e-4, atol=1e-6)


def test_a_side_that_does_not_exist_is_refused(model, sae):
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=r"or -1 where the dictionary is signed; got \[-1\] for an unsigned one"):
        next(heat_maps(model, sae, [image], [3], signs=[-1]))
    with pytest.raises(ValueError, match=r"signs are 1 for each of the 2 latents"):
        next(heat_maps(model, sae, [image], [3, 4], signs=[1]))


def test_wrong_requests_are_refused_with_the_cure(model, sae):
    image = Image.new("RGB", (64, 64))
    with pytest.raises(IndexError, match="latent 96 of a dictionary of 96"):
        next(heat_maps(model, sae, [image], [96]))
    bare = random_sae(sae.d, 96, 6)
    with pytest.raises(ValueError, match="no card that names a site"):
        next(encode_images(model, bare, [image]))
    with pytest.raises(ValueError, match="no place on the image"):
        next(
            encode_images(
                model,
                SimpleNamespace(
                    card=SimpleNamespace(site={"name": "pooled"}), mean=sae.mean, directions=sae.directions
                ),
                [image],
            )
        )


def test_no_hook_is_left_on_the_model_even_when_a_dictionary_fails(model, sae):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())

    before = hooks()

    class Broken:
        card, mean = sae.card, sae.mean
        directions = sae.directions

        def encode(self, x):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        next(encode_images(model, Broken(), [Image.new("RGB", (64, 64))]))
    assert hooks() == before
