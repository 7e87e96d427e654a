"""Each variant does what it says, as much as it says, and nothing else."""

from dataclasses import fields, replace

import numpy as np
import pytest

from visae.world import Scene, World
from visae.world.factors import STYLES
from visae.world.render import render
from visae.world.variants import CHANGEABLE, paired_value

BOUND_TO_CHANGE = {
    "shape": {"shape"},
    "style": {"style"},
    "colour": {"colour"},
    "size": {"size", "radius"},
    "position": {"position", "x", "y"},
    "rotation": {"rotation", "angle"},
    "background": {"background", "level"},
}


def differing(one: Scene, other: Scene) -> set[str]:
    """Names of the fields in which two scenes and their objects differ."""
    out = {f.name for f in fields(Scene) if f.name != "things" and getattr(one, f.name) != getattr(other, f.name)}
    for a, b in zip(one.things, other.things, strict=True):
        out |= {f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)}
    return out


@pytest.mark.parametrize("factor", CHANGEABLE)
def test_pairs_differ_in_one_factor_only(factor: str) -> None:
    world = World("test", 80, objects=(1, 3), variant="pairs", factor=factor)
    for k in range(40):
        i, j, named = world.pair(k)
        one, other = world.scene(i), world.scene(j)
        changed = differing(one, other)
        assert named == factor in changed
        assert changed <= BOUND_TO_CHANGE[factor]
        before, after = world.labels(i), world.labels(j)
        also = {"family", "subfamily"} if factor == "shape" else set()
        assert {name for name in before if before[name] != after[name]} <= {factor} | also


def neighbourhood(mask: np.ndarray) -> np.ndarray:
    """The 5 x 5 pixels around each: `[H, W]` to `[H, W, 5, 5]`."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(mask, 2), (5, 5))


def touched(scene: Scene) -> np.ndarray:
    """Pixels `[64, 64]` that the last object paints, its antialiased edge included."""
    empty = render(replace(scene, things=()), 64)
    # In every style, because a faint edge may round to the background's grey in one of them.
    dressed = [replace(scene.things[-1], style=style) for style in STYLES]
    return np.any([render(replace(scene, things=(thing,)), 64) != empty for thing in dressed], axis=(0, -1))


@pytest.mark.parametrize("factor", CHANGEABLE)
def test_pairs_share_every_other_pixel(factor: str) -> None:
    world = World("test", 60, objects=(1, 3), variant="pairs", factor=factor)
    for k in range(30):
        i, j, _ = world.pair(k)
        same = (world.render(i) == world.render(j)).all(-1)
        assert not same.all()
        if factor == "background":
            solid = [n for n, t in enumerate(world.scene(i).things, 1) if t.style != "sketch"]
            inside = np.isin(world.regions(i), solid)
            assert same[neighbourhood(inside).all((2, 3))].all()
        else:
            assert same[~(touched(world.scene(i)) | touched(world.scene(j)))].all()


def test_pairs_of_any_factor_use_them_all_and_stay_together() -> None:
    world = World("train", 400, variant="pairs")
    assert {world.pair(k)[2] for k in range(200)} == set(CHANGEABLE)
    assert world[6].group == world[7].group != world[8].group
    with pytest.raises(ValueError, match="only the variant 'pairs'"):
        World("train", 4).pair(0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("a", "b"), [("shape", "colour"), ("shape", "background"), ("style", "colour")])
def test_spurious_ties_as_often_as_it_says(p: float, a: str, b: str) -> None:
    world = World("train", 1500, variant="spurious", p=p, a=a, b=b)
    labels = [scene.things[0].labels | {"background": scene.background} for scene in map(world.scene, range(1500))]
    tied = np.mean([known[b] == paired_value(a, b, known[a]) for known in labels])
    assert abs(tied - p) < 4 * (p * (1 - p) / 1500) ** 0.5 + 1e-9


def test_shift_keeps_labels_and_masks_and_grows_with_strength() -> None:
    worlds = [World("test", 40, variant="shift", strength=s) for s in (0.0, 0.3, 1.0)]
    plain = World("test", 40)
    far = []
    for i in range(40):
        assert len({str(w.labels(i)) for w in (*worlds, plain)}) == 1
        np.testing.assert_array_equal(worlds[2].regions(i), plain.regions(i))
        far.append([np.abs(w.render(i).astype(float) - plain.render(i)).mean() for w in worlds])
    none, some, much = np.mean(far, 0)
    assert none == 0.0 < some < much


def test_homonym_shows_its_shape_in_two_roles() -> None:
    world = World("train", 300, variant="homonym", shape="heart")
    roles = [tuple(t.role for t in world.scene(i).things) for i in range(300)]
    assert set(roles) == {("figure",), ("carrier", "emblem")}
    assert 110 < roles.count(("figure",)) < 190
    for i in range(60):
        sample = world[i]
        marked = [known for known in sample.region_labels if known["role"] in ("figure", "emblem")]
        assert [known["shape"] for known in marked] == ["heart"]
        assert sample.labels["count"] == ("one",)
        if "emblem" in sample.labels["role"]:
            on, under = sample.boxes[1], sample.boxes[0]
            assert (on[:2] > under[:2]).all()
            assert (on[2:] < under[2:]).all()
