"""Values of a few latents, made alone, are those that all together have."""

import pytest
import torch

from visae.sae import initialise
from visae.sae.chosen import alone, chosen_directions, chosen_values


def test_chosen_latents_have_the_values_and_directions_they_have_among_all(kind, normaliser, small, tokens, bring):
    sae = small(kind, normaliser=normaliser)
    initialise(sae, bring(sae, tokens()))
    sae.calibrate([bring(sae, tokens(seed=6))])
    x = bring(sae.eval(), tokens(40, seed=7))
    rows, side = sae.unpack(x)
    codes, latents = sae.encode(x), torch.tensor([5, 0, 33, 63])
    with torch.no_grad():
        values, scale = chosen_values(sae, rows, latents, **side)
    torch.testing.assert_close(values, codes.to_dense()[:, latents], rtol=1e-4, atol=1e-4)
    assert (scale is None) == (codes.scale is None)
    if scale is not None:
        torch.testing.assert_close(scale, codes.scale)
    one = {name: value[:1] for name, value in side.items()}
    torch.testing.assert_close(chosen_directions(sae, latents, **one), sae.directions(**one)[latents])


@pytest.mark.parametrize(("kind", "expected"), [("batch_topk", True), ("jumprelu", True), ("relu_l1", True),
                                                ("topk", False), ("kron", False)])  # fmt: skip
def test_latents_are_made_alone_where_they_do_not_compete(kind, expected, small):
    assert alone(small(kind)) is expected


def test_training_mode_does_not_change_what_is_said(small, tokens):
    sae = small("batch_topk")
    initialise(sae, tokens())
    sae.calibrate([tokens()])
    latents = torch.arange(64)
    wanted, _ = chosen_values(sae.eval(), tokens(50), latents)
    assert torch.equal(chosen_values(sae.train(), tokens(50), latents)[0], wanted)
    assert sae.training
