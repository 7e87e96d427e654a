"""Live codes through a real model: the same as through a store, and a painted square lights up its own tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from visae.codes import CodeTable, encode_images, heat_maps
from visae.model import load_model
from visae.sae import Card, make_sae
from visae.store import Stream
from visae.tokens import TokenPolicy
from visae.world import World

SITE = "blocks.2"


def random_sae(d, n_latents, k):
    made = make_sae("topk", d, n_latents, k=k)
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
