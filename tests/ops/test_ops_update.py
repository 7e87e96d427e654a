"""Adam on the unit sphere: formulas, constraint, saved state."""

import pytest
import torch

from visae.ops import Adam, project_rows


def parameters(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(20, 8, generator=g, dtype=torch.float64), dim=1)
    return {
        "a": torch.nn.Parameter(torch.randn(6, generator=g, dtype=torch.float64).to(dtype)),
        "rows": torch.nn.Parameter(rows.to(dtype)),
    }


def train(adam, steps, start=0):
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(100 + step)
        for p in adam.parameters.values():
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        adam.step(1e-2 / (1 + step))


def test_the_fused_kernel_equals_the_formulas():
    slow, fast = (Adam(parameters(), unit={"rows"}, fused=fused) for fused in (False, True))
    train(slow, 7)
    train(fast, 7)
    for name in slow.parameters:
        assert torch.allclose(slow.parameters[name], fast.parameters[name], rtol=1e-12, atol=1e-12)


def test_formulas_without_constraint_are_those_of_torch():
    ours, theirs = Adam(parameters(), fused=False), parameters()
    optimiser = torch.optim.Adam(theirs.values(), lr=1e-2, eps=1e-10)
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        for a, b in zip(ours.parameters.values(), theirs.values(), strict=True):
            a.grad = torch.randn(a.shape, generator=g, dtype=a.dtype)
            b.grad = a.grad.clone()
        ours.step(1e-2)
        optimiser.step()
    assert all(torch.allclose(ours.parameters[n], theirs[n], rtol=1e-12, atol=1e-13) for n in theirs)


@pytest.mark.parametrize("fused", [False, True])
def test_constrained_rows_keep_length_one_and_moments_hold_no_radial_part(fused):
    adam = Adam(parameters(), unit={"rows"}, fused=fused)
    rows = adam.parameters["rows"]
    before = rows.detach().clone()
    train(adam, 1)
    assert float((torch.linalg.vecdot(adam.first["rows"], before)).abs().max()) < 1e-15
    train(adam, 5, start=1)
    assert torch.allclose(torch.linalg.vector_norm(rows, dim=1), torch.ones(20, dtype=rows.dtype), atol=1e-12)
    assert float((rows.detach() - before).abs().max()) > 1e-3


def test_projection_leaves_a_gradient_at_right_angles_to_its_row():
    rows = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    grad = torch.randn(9, 5, dtype=torch.float64)
    expected = grad - (grad * rows).sum(1, keepdim=True) * rows
    project_rows(grad, rows)
    assert torch.allclose(grad, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_saved_and_loaded_state_goes_on_bit_for_bit(fused):
    whole = Adam(parameters(torch.float32), unit={"rows"}, fused=fused)
    train(whole, 6)
    first = Adam(parameters(torch.float32), unit={"rows"}, fused=fused)
    train(first, 3)
    copies = {n: torch.nn.Parameter(p.detach().clone()) for n, p in first.parameters.items()}
    second = Adam(copies, {"rows"}, fused=fused)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    train(second, 3, start=3)
    for name in whole.parameters:
        assert torch.equal(whole.parameters[name], second.parameters[name])


def test_a_state_of_other_parameters_is_refused_by_name():
    adam = Adam(parameters())
    with pytest.raises(ValueError, match=r"first\.other"):
        adam.load_state_dict({**adam.state_dict(), "first.other": torch.zeros(1)})
