"""The judges as oracles for pictures."""

import pytest
import torch
from PIL import Image

from visae.world.judging import clip_judged, clip_vectors, judged
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
