"""The recipes: truth in arrays, losses, the cache, exact resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visae.world import World, models, recipes
from visae.world.factors import FACTORS
from visae.world.models.word_tokenizer import WorldTokenizer, vocabulary, write_tokenizer
from visae.world.recipes import Recipe
from visae.world.training.cache import Cache, open_cache, patch_objects
from visae.world.training.facts import caption_facts, difficulty, presence, scene_facts, truth
from visae.world.training.loop import batch_rows, fit, learning_rate
from visae.world.training.losses import DenseHeads, contrastive
from visae.world.training.tasks import Task, centred, start_positions


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(tmp_path_factory.mktemp("cache"), 24, 16, workers=1)


def small(name: str, vocab_size: int) -> Recipe:
    recipe = recipes.tiny_clip(vocab_size) if name == "tiny-clip" else getattr(recipes, name.replace("-", "_"))()
    return replace(recipe, steps=4, batch=8, warmup=1, singles=24, several=16)


def test_truth_in_arrays_is_truth() -> None:
    world = World("train", 60, objects=(1, 3))
    scenes, captions = [world.scene(i) for i in range(60)], [world.caption(i) for i in range(60)]
    table = truth(
        torch.from_numpy(np.stack([scene_facts(scene) for scene in scenes])),
        torch.from_numpy(np.stack([caption_facts(caption) for caption in captions])),
    )
    assert table.diagonal().all()
    assert table.tolist() == [[caption.holds(scene) for caption in captions] for scene in scenes]
    assert 60 < table.sum() < 600


def test_presence_is_the_labels() -> None:
    world = World("train", 40, objects=(1, 3))
    factors = {factor: FACTORS[factor] for factor in ("shape", "rotation", "count", "background")}
    target, weight = presence(torch.from_numpy(np.stack([scene_facts(world.scene(i)) for i in range(40)])), factors)
    columns = [(factor, value) for factor, values in factors.items() for value in values]
    for i in range(40):
        present = {(factor, value) for factor, values in world.labels(i).items() for value in values}
        assert {c for c, hit in zip(columns, target[i].tolist(), strict=True) if hit} == present & set(columns)
        blind = {"circle", "ring"} & set(world.labels(i)["shape"])
        assert all((w == 0) == (c[0] == "rotation" and bool(blind)) for c, w in zip(columns, weight[i], strict=True))


def test_contrastive_loss_leaves_other_true_pairs_alone() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    only = contrastive(scores, torch.eye(3, dtype=torch.bool))
    log_softmax = (scores.log_softmax(1).diagonal().mean() + scores.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(only, -log_softmax)
    shared = torch.eye(3, dtype=torch.bool)
    shared[0, 1] = shared[1, 0] = True
    contrastive(scores, shared).backward()
    assert scores.grad[0, 1] < 0 < scores.grad[0, 2]


def test_patches_know_their_object() -> None:
    masks = np.zeros((64, 64), np.uint8)
    masks[8:16, 16:24] = 2
    masks[16:18, 16:24] = 1
    grid = patch_objects(masks).reshape(8, 8)
    assert grid[1, 2] == 2
    assert grid[2, 2] == 255
    assert np.delete(grid.ravel(), [10, 18]).max() == 0


def test_dense_heads_ask_only_where_an_object_is() -> None:
    world = World("train", 4)
    facts = torch.from_numpy(np.stack([scene_facts(world.scene(i)) for i in range(4)]))
    objects = torch.from_numpy(np.stack([patch_objects(world.regions(i)) for i in range(4)]))
    tokens = torch.randn(4, 64, 16, requires_grad=True)
    DenseHeads(16)(tokens, objects, facts).backward()
    asked = tokens.grad.abs().sum(-1) > 0
    assert torch.equal(asked, (objects > 0) & (objects < 255))


def test_refining_asks_centres_for_names_and_rims_for_silence() -> None:
    world = World("train", 4)
    facts = torch.from_numpy(np.stack([scene_facts(world.scene(i)) for i in range(4)]))
    regions = np.stack([world.regions(i) for i in range(4)])
    objects = torch.from_numpy(np.stack([patch_objects(masks) for masks in regions]))
    tiles = (regions > 0).reshape(4, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(4, 64, 64)
    middle = centred(torch.from_numpy(tiles).float())
    assert middle.shape == (4, 64)
    assert (middle.reshape(4, 8, 8).numpy() <= tiles.any(2).reshape(4, 8, 8)).all()
    torch.manual_seed(0)
    heads, tokens = DenseHeads(16), torch.randn(4, 64, 16, requires_grad=True)
    heads(tokens, objects, facts, middle).backward()
    asked = tokens.grad.abs().sum(-1) > 0
    assert torch.equal(asked, (objects > 0) & ~(middle & (objects == 255)))


def test_position_embeddings_start_as_waves_and_prefix_tokens_do_not() -> None:
    for name, prefix in (("tiny-clip", 1), ("tiny-vit", 5)):
        recipe = small(name, 50)
        model = models.make(name, recipe.config)
        table = model.visual.positional_embedding if name == "tiny-clip" else model.pos_embed[0]
        before = table[:prefix].clone()
        start_positions(model)
        assert table.shape[0] == 64 + prefix
        torch.testing.assert_close(table[:prefix], before)
        grid = table[prefix:].reshape(8, 8, 2, -1)
        torch.testing.assert_close(grid[0, :, 0], grid[5, :, 0])  # the first half tells the column
        torch.testing.assert_close(grid[:, 0, 1], grid[:, 5, 1])  # the second the row
        assert torch.cdist(table[prefix:], table[prefix:]).fill_diagonal_(9).min() > 0.1


def test_the_cache_holds_what_the_worlds_draw(cache: Cache) -> None:
    one, several = World("train", 40), World("train", 40, seed=1, objects=(1, 3))
    for row in (0, 23, 24, 39):
        world = one if row < 24 else several
        np.testing.assert_array_equal(cache.images[row], world.render(row))
        np.testing.assert_array_equal(cache.facts[row], scene_facts(world.scene(row)))
        shown = np.unpackbits(cache.masks[row], axis=1).reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, 64)
        np.testing.assert_array_equal(shown, world.regions(row) > 0)
        assert truth(torch.tensor(cache.facts[row][None]), torch.tensor(cache.captions[row])).all()


def test_every_batch_is_a_function_of_the_step() -> None:
    recipe = small("judge", 0)
    levels = np.full(40, 5)
    rows = [batch_rows(recipe, levels, step)[0] for step in range(5)]
    assert sorted(np.concatenate(rows)) == list(range(40))
    np.testing.assert_array_equal(batch_rows(recipe, levels, 3)[0], rows[3])
    assert learning_rate(recipe, 0) == recipe.lr > learning_rate(recipe, 3) > 0


def test_the_curriculum_goes_from_easy_to_all() -> None:
    recipe = replace(small("tiny-vit", 0), steps=100)
    levels = np.repeat(np.arange(6), 30)
    shown = [set(levels[batch_rows(recipe, levels, step)[0]].tolist()) for step in range(100)]
    assert set().union(*shown[:10]) == {0}
    assert set().union(*shown[18:24]) == {0, 1, 2, 3}
    assert set().union(*shown[40:]) == {0, 1, 2, 3, 4, 5}


def test_difficulty_says_how_plain_an_image_is() -> None:
    world = World("train", 600, objects=(1, 2))
    scenes = [world.scene(i) for i in range(600)]
    levels = difficulty(np.stack([scene_facts(scene) for scene in scenes]))
    assert set(levels.tolist()) == set(range(6))
    for scene, level in zip(scenes, levels.tolist(), strict=True):
        thing = scene.things[0]
        assert (level == 5) == (len(scene.things) > 1)
        if level < 5:
            assert thing.size == ("large", "large", "large", "medium", "small")[level]
        if level == 0:
            assert thing.rotation == "upright"
            assert thing.style in ("flat", "outline", "gradient")


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-vit", "judge"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(name: str, cache: Cache, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = WorldTokenizer(tmp_path / "tokenizer.json", 40) if name == "tiny-clip" else None
    recipe = small(name, len(vocabulary()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def stop_at_two(step: int, _: dict[str, torch.Tensor]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole = fit(Task(recipe, cache, "cpu", tokenizer), recipe, tmp_path / "whole", lambda *_: None, every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(Task(recipe, cache, "cpu", tokenizer), recipe, tmp_path / "cut", stop_at_two, every=2)
    resumed = fit(Task(recipe, cache, "cpu", tokenizer), recipe, tmp_path / "cut", lambda *_: None, every=2)
    torch.set_num_threads(threads)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    fresh = Task(recipe, cache, "cpu", tokenizer).model.state_dict()
    assert not all(torch.equal(whole[key], fresh[key]) for key in whole)
