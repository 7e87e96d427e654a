"""Which rows a policy keeps, and where they say they came from."""

import numpy as np
import pytest
import torch

from visae.tokens import KINDS, TokenPolicy, gather

KINDS_OF_SITE = ("cls", "reg", "reg", *["patch"] * 12)


@pytest.mark.parametrize(("text", "expected"), [
    ("patch", list(range(3, 15))), ("cls", [0]), ("patch+cls", [0, *range(3, 15)]), ("reg", [1, 2]),
    ("all", list(range(15))),
])  # fmt: skip
def test_a_policy_in_words_keeps_the_kinds_it_names(text, expected):
    assert TokenPolicy.parse(text).candidates(KINDS_OF_SITE).tolist() == expected


def test_a_pooled_site_keeps_its_one_token_under_any_policy():
    assert TokenPolicy(("patch",)).candidates(("pooled",)).tolist() == [0]


def test_a_draw_depends_on_seed_and_item_alone_and_not_on_the_batch():
    policy = TokenPolicy(per_image=5, seed=3)
    items = np.array([4, 9, 2, 77])
    together = policy.select(KINDS_OF_SITE, items)
    alone = np.concatenate([policy.select(KINDS_OF_SITE, items[i : i + 1]) for i in range(4)])
    assert (together == alone).all()
    assert (np.diff(together, axis=1) > 0).all()
    assert together.min() >= 3
    assert (TokenPolicy(per_image=5, seed=4).select(KINDS_OF_SITE, items) != together).any()


def test_draws_are_uniform_over_the_allowed_places():
    places = TokenPolicy(per_image=3).select(KINDS_OF_SITE, np.arange(8000))
    counts = np.bincount(places.ravel(), minlength=15)[3:]
    assert abs(counts / 2000 - 1).max() < 0.08  # 8000 * 3 / 12 = 2000 each, standard deviation about 40


def test_gathered_rows_carry_item_place_kind_and_position():
    activations = torch.arange(2 * 15 * 2, dtype=torch.float32).reshape(2, 15, 2)
    places = TokenPolicy.parse("all").select(KINDS_OF_SITE, np.array([10, 20]))
    tokens = gather(activations, KINDS_OF_SITE, (3, 4), np.array([10, 20]), places)
    assert len(tokens) == 30
    assert torch.equal(tokens.rows, activations.reshape(30, 2))
    assert tokens.item.tolist() == [10] * 15 + [20] * 15
    assert [KINDS[k] for k in tokens.kind[:15]] == list(KINDS_OF_SITE)
    assert list(zip(tokens.y[:15].tolist(), tokens.x[:15].tolist(), strict=True)) == [
        (-1, -1), (-1, -1), (-1, -1), *((y, x) for y in range(3) for x in range(4)),
    ]  # fmt: skip


def test_rows_drawn_from_a_non_square_grid_say_the_row_and_column_they_hold():
    grid = (2, 5)
    yx = torch.tensor([[y, x] for y in range(2) for x in range(5)], dtype=torch.float32)
    activations = torch.cat([torch.full((1, 2), -1.0), yx]).expand(6, 11, 2)
    kinds = ("cls", *["patch"] * 10)
    items = np.arange(6)
    tokens = gather(activations, kinds, grid, items, TokenPolicy(per_image=4).select(kinds, items))
    assert torch.equal(tokens.rows, torch.stack([tokens.y, tokens.x], dim=1).float())


def test_errors_say_what_was_wanted_and_what_there_is():
    with pytest.raises(ValueError, match="token kinds are patch, cls"):
        TokenPolicy(("patches",))
    with pytest.raises(ValueError, match="at least one kind"):
        TokenPolicy(())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TokenPolicy(per_image=0)
    with pytest.raises(ValueError, match="wants cls tokens but the site has only patch"):
        TokenPolicy(("cls",)).candidates(("patch",))


def test_a_policy_saved_comes_back_equal():
    policy = TokenPolicy(("patch", "cls"), 7, 2)
    assert TokenPolicy.from_dict(policy.to_dict()) == policy
