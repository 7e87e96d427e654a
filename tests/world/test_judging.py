"""The judge as an oracle for pictures."""

from PIL import Image

from visae.world.judging import judged
from visae.world.world import World


def test_pictures_of_the_world_are_told_whatever_their_size():
    world = World("test", 40)
    pictures = [Image.fromarray(world.render(i)) for i in range(40)]
    for told in (judged(pictures), judged([p.resize((256, 256), Image.Resampling.LANCZOS) for p in pictures])):
        for factor in ("shape", "style", "colour", "background"):
            right = sum(told[factor][i] == world.labels(i)[factor][0] for i in range(40))
            assert right >= 38, factor
