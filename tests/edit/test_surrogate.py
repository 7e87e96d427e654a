"""Decisions with soft derivatives: their values stay to the bit, their derivatives are the sigmoid's."""

import math

import pytest
import torch

from visae.edit import (
    ErrorGate,
    ShareGate,
    StrengthGate,
    ablate,
    above_mean,
    active,
    replace_tokens,
    scale,
    surrogate,
)
from visae.edit.gates import Memory
from visae.edit.moment import Moment
from visae.edit.surrogate import exceeds

LEVELS, MEANS = torch.tensor([1.0, 4.0]), torch.tensor([[0.5, 2.0], [0.5, 2.0]])
CASES = {
    "active": scale([2, 5], 3.0).where(active((0.2, 0.7))),
    "above mean": scale([2, 5], 3.0).where(above_mean(LEVELS, MEANS)),
    "replace": replace_tokens([2], 0.4),
    "open gate": ablate([2, 5]).whether(StrengthGate(0.0)),
    "error gate": ablate([2, 5]).whether(ErrorGate(1e-3)),
    "share gate": ablate([2, 5]).whether(ShareGate(0.1, above=0.2)),
    "gate that asks anew": ablate([2, 5]).whether(StrengthGate(0.0, "call")),
}


@pytest.fixture
def delta(dictionary):
    """What an edit adds to tokens."""
    sae = dictionary(8)

    def found(edit, x):
        memory = Memory()
        memory.begin(2)
        branches = ("uncond", "uncond", "cond", "cond")
        return edit.delta(Moment(sae, x, branches, torch.tensor([0, 1, 0, 1]), 2.0, 1, 1, (2, 3)), memory)

    return found


@pytest.fixture
def tokens():
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("name", CASES)
def test_values_stay_and_only_inside_do_decisions_pass_derivatives(name, tokens, delta):
    plain = delta(CASES[name], tokens)
    outside = torch.autograd.grad(plain.square().sum(), tokens)[0]
    with surrogate():
        inside = delta(CASES[name], tokens)
        assert torch.equal(inside, plain)
        soft = torch.autograd.grad(inside.square().sum(), tokens)[0]
        assert torch.equal(delta(CASES[name], tokens.detach()), plain)
    assert torch.isfinite(soft).all()
    assert not torch.allclose(soft, outside)
    assert torch.equal(torch.autograd.grad(delta(CASES[name], tokens).square().sum(), tokens)[0], outside)


def test_a_shut_gate_adds_nothing_but_tells_how_it_would_open(tokens, delta):
    edit = ablate([2, 5]).whether(StrengthGate(1000.0))
    assert delta(edit, tokens) is None
    with surrogate():
        found = delta(edit, tokens)
        assert torch.equal(found, torch.zeros_like(found))
        assert torch.autograd.grad(found.sum(), tokens)[0].abs().sum() > 0
        never = delta(ablate([2, 5]).whether(StrengthGate(math.inf)), tokens)
        assert never is None


def test_the_derivative_is_that_of_a_sigmoid_over_the_mean_distance():
    values = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    with surrogate():
        (found,) = torch.autograd.grad(exceeds(values, 1.0).sum(), values)
    margin, size = values.detach() - 1.0, (2.0 + 0.5 + 2.0) / 3
    chance = torch.sigmoid(margin / size)
    torch.testing.assert_close(found, chance * (1 - chance) / size)
