"""The judges as oracles for pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from visae.world import models
from visae.world.judging import clip_judged, clip_vectors, judged
from visae.world.training.tasks import normalised
from visae.world.training.wear import worn
from visae.world.world import World


@pytest.fixture(scope="module")
def world():
    return World("test", 40)


@pytest.fixture(scope="module")
def pictures(world):
    return [Image.fromarray(world.render(i)) for i in range(len(world))]


@pytest.mark.parametrize("judge", [judged, clip_judged])
def test_pictures_of_the_world_are_told_whatever_their_size(judge, world, pictures):
    larger = [p.resize((256, 256), Image.Resampling.LANCZOS) for p in pictures]
    for told in (judge(pictures), judge(larger)):
        for factor in ("shape", "style", "colour", "background"):
            right = sum(told[factor][i] == world.labels(i)[factor][0] for i in range(40))
            assert right >= 38, factor


def test_vectors_of_pictures_are_those_that_the_model_gives_through_its_own_adapter(pictures):
    from visae.model import load_model, vision
    from visae.taps import tap

    model, ours = vision(load_model("visae:tiny-clip")), clip_vectors(pictures)
    with torch.no_grad(), tap(model, "pooled") as taken:
        model.forward(model.preprocess(pictures))
    theirs = taken["pooled"][:, 0].float().cpu()
    torch.testing.assert_close(ours, theirs / theirs.norm(dim=1, keepdim=True), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(40))


def test_wear_is_of_a_share_and_a_function_of_its_seed(world):
    images = torch.randn(200, 3, 32, 32)
    some = worn(images, 0.3, seed=5)
    changed = (some != images).flatten(1).any(1)
    assert 40 <= int(changed.sum()) <= 80
    torch.testing.assert_close(worn(images, 0.3, seed=5), some, rtol=0, atol=0)
    assert not torch.equal(worn(images, 0.3, seed=6), some)
    assert torch.equal(worn(images, 0.0, seed=5), images)


def test_the_judge_reads_wobbly_outlines():
    world, preprocess = World("test", 200, seed=3), models.config("judge")["preprocess_cfg"]
    clean = normalised(np.stack([world.render(i) for i in range(200)]), preprocess)
    mean, std = (torch.tensor(preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = ((worn(clean, 1.0, seed=1) * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    told = judged([Image.fromarray(one) for one in pixels])
    for factor in ("shape", "style", "colour", "background"):
        right = sum(told[factor][i] == world.labels(i)[factor][0] for i in range(200))
        assert right >= 190, factor
