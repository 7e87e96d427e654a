"""The recipes: truth in arrays, losses, the cache, exact resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visae.world import World, recipes
from visae.world.factors import FACTORS
from visae.world.models.tokenizer import WorldTokenizer, vocabulary, write_tokenizer
from visae.world.recipes import Recipe
from visae.world.training.cache import Cache, open_cache, patch_objects
from visae.world.training.facts import caption_facts, presence, scene_facts, truth
from visae.world.training.loop import batch_rows, fit, learning_rate
from visae.world.training.losses import DenseHeads, contrastive
from visae.world.training.tasks import Task


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


def test_dense_heads_ask_only_where_there_is_an_answer() -> None:
    world = World("train", 4)
    facts = torch.from_numpy(np.stack([scene_facts(world.scene(i)) for i in range(4)]))
    objects = torch.from_numpy(np.stack([patch_objects(world.regions(i)) for i in range(4)]))
    tokens = torch.randn(4, 64, 16, requires_grad=True)
    DenseHeads(16)(tokens, objects, facts).backward()
    asked = tokens.grad.abs().sum(-1) > 0
    assert torch.equal(asked, objects < 255)


def test_the_cache_holds_what_the_worlds_draw(cache: Cache) -> None:
    one, several = World("train", 40), World("train", 40, seed=1, objects=(1, 3))
    for row in (0, 23, 24, 39):
        world = one if row < 24 else several
        np.testing.assert_array_equal(cache.images[row], world.render(row))
        np.testing.assert_array_equal(cache.facts[row], scene_facts(world.scene(row)))
        assert truth(torch.from_numpy(cache.facts[row][None]), torch.from_numpy(cache.captions[row])).all()


def test_every_batch_is_a_function_of_the_step() -> None:
    recipe = small("judge", 0)
    rows = [batch_rows(recipe, 40, step)[0] for step in range(5)]
    assert sorted(np.concatenate(rows)) == list(range(40))
    np.testing.assert_array_equal(batch_rows(recipe, 40, 3)[0], rows[3])
    assert learning_rate(recipe, 0) == recipe.lr > learning_rate(recipe, 3) > 0


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

    whole = fit(Task(recipe, cache, "cpu", tokenizer), recipe, cache, tmp_path / "whole", lambda *_: None, every=2)
    with pytest.raises(KeyboardInterrupt):
        fit(Task(recipe, cache, "cpu", tokenizer), recipe, cache, tmp_path / "cut", stop_at_two, every=2)
    resumed = fit(Task(recipe, cache, "cpu", tokenizer), recipe, cache, tmp_path / "cut", lambda *_: None, every=2)
    torch.set_num_threads(threads)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    fresh = Task(recipe, cache, "cpu", tokenizer).model.state_dict()
    assert not all(torch.equal(whole[key], fresh[key]) for key in whole)
