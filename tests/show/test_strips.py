"""Strips and animated pictures of heat over time."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from visae.registry import UnknownName
from visae.show.strips import animate, strip_figure


def run(steps=3, latents=2, side=16):
    frames = [Image.new("RGB", (side, side), (40 * s, 90, 200)) for s in range(steps)]
    heats = np.zeros((latents, steps, side, side), np.float32)
    for latent in range(latents):
        for step in range(steps):
            heats[latent, step, latent * 8 : latent * 8 + 4, step * 4 : step * 4 + 4] = 1 + step
    return frames, heats


def test_a_strip_has_the_plain_run_on_top_and_a_row_for_each_latent():
    frames, heats = run()
    figure = strip_figure(frames, heats, ["latent 3", "latent 9"], ["8", "2", "0.1"], title="a red square")
    pictures = [axis for axis in figure.axes if axis.images]
    assert len(pictures) >= 9
    assert [axis.get_title() for axis in figure.axes[:3]] == ["8", "2", "0.1"]
    assert figure.axes[3].get_ylabel() == "latent 3\n1 = 3"
    plain, under = (np.asarray(figure.axes[i].images[0].get_array()) for i in (2, 5))
    assert np.array_equal(plain, np.asarray(frames[2]))
    hot = np.abs(under.astype(int) - under[-1, 0].astype(int)).sum(-1) > 30
    own = np.zeros_like(hot)
    own[:4, 8:12] = True
    assert np.array_equal(hot, own), "the map lights up its own pixels and no others"


def test_a_strip_says_what_does_not_match():
    frames, heats = run()
    with pytest.raises(ValueError, match=r"\[1 latents, 3 frames, H, W\]"):
        strip_figure(frames, heats, ["latent 3"], ["8", "2", "0.1"])


@pytest.mark.parametrize("ending", [".gif", ".png", ".webp"])
def test_an_animated_picture_has_every_step_and_holds_the_last(tmp_path, ending):
    frames, heats = run(steps=4)
    path = animate(tmp_path / f"run{ending}", frames, heats, seconds=2)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with Image.open(path) as picture:
        assert picture.n_frames == 4
        assert picture.size == (3 * 192 + 2 * 6, 192)
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    for step, frame in enumerate(shown):
        assert np.abs(frame[5, 5].astype(int) - np.asarray(frames[step])[0, 0]).max() <= 12, "the plain run comes first"
    left = shown[0][:, 198:390].astype(int)
    assert np.abs(left[10, 10] - left[-10, -10]).sum() > 30, "the first latent is hot at the top left at first"


def test_an_unknown_ending_is_refused(tmp_path):
    frames, heats = run()
    with pytest.raises(UnknownName, match="gif"):
        animate(tmp_path / "run.mp4", frames, heats)
