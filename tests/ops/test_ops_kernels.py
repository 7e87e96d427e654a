"""Compiled kernels against the float64 oracle: selection, reconstruction, the update that makes no gradients."""

import os
import subprocess
import sys

import pytest
import torch

from visae.ops import Adam, BatchTopK, Fused, Nesting, Ragged, Reference, Threshold, TopK, load_kernels, make_ops
from visae.ops.kernels import KERNELS
from visae.ops.kernels.native import build
from visae.sae import initialise, kind_options, kinds, make_sae

N, D, F = 40, 24, 320


@pytest.fixture(params=list(KERNELS))
def kernels(request):
    found = load_kernels(request.param)
    if found is None:
        pytest.skip(f"this machine has no {request.param} kernels")
    return found


def world(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    return {
        "u": make(N, D),
        "weight": make(F, D),
        "bias": make(F),
        "shift": make(D),
        "atoms": make(F, D),
        "out": make(D),
    }


def run(ops, t, rule, nesting):
    codes = ops.encode_select(t["u"], t["weight"], t["bias"], t["shift"], rule)
    recon, losses = ops.reconstruct(t["u"], codes, t["atoms"], t["out"], nesting)
    weights = torch.linspace(0.5, 1.5, N, dtype=losses.dtype)
    loss = (losses * weights).sum() + 0.1 * codes.l1()
    return codes, recon, losses, torch.autograd.grad(loss, list(t.values()))


RULES = [
    TopK(5),
    TopK(5, signed=True),
    TopK(200),
    BatchTopK(5),
    BatchTopK(4.5, signed=True),
    Threshold(torch.tensor(2.0)),
]
NESTINGS = [None, Nesting("latent", (20, 80, F), (1.0, 2.0, 1.0)), Nesting("rank", (1, 2, 3, F), (1.0,) * 4)]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{type(r).__name__}-signed={r.signed}-{getattr(r, 'k', '')}")
@pytest.mark.parametrize("nesting", NESTINGS, ids=["plain", "prefixes", "ranks"])
def test_codes_losses_and_every_gradient_equal_dense_autograd_in_float64(kernels, rule, nesting):
    if kernels.name == "triton" and rule not in RULES[:2]:
        pytest.skip("many entries take the interpreter long; the selection of other rules is stock torch there")
    slow = run(Reference(), world(dtype=torch.float64), rule, nesting)
    fast = run(Fused(kernels), world(), rule, nesting)
    assert isinstance(fast[0], Ragged)
    assert torch.allclose(slow[0].to_dense(), fast[0].to_dense().double(), atol=1e-5)
    for a, b in zip(slow[1:3], fast[1:3], strict=True):
        assert torch.allclose(a.detach(), b.detach().double(), rtol=1e-4, atol=1e-5 * float(a.detach().abs().max()))
    for name, a, b in zip(world(), slow[3], fast[3], strict=True):
        assert float(a.abs().max()) > 0, name
        assert torch.allclose(a, b.double(), rtol=1e-4, atol=1e-4 * float(a.abs().max())), name


@pytest.mark.parametrize(
    "shape", [(7, 64, 3), (5, 256, 4), (3, 4096, 32), (4, 100, 9), (2, 8, 8), (9, 1037, 17), (1, 1, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_size", [False, True])
def test_the_largest_entries_of_every_row_are_found_whatever_the_width(kernels, shape, dtype, by_size):
    n, width, k = shape
    pre, bias = torch.randn(n, width).to(dtype), torch.randn(width)
    pre[0] *= 100  # the next row then starts with a wrong guess
    columns = kernels.top(pre, bias, k, by_size)
    key = pre.float() + bias
    key = key.abs() if by_size else key
    assert all(len(set(row)) == k for row in columns.tolist())
    assert torch.equal(key.gather(1, columns).sort(1).values, key.topk(k).values.sort(1).values)


@pytest.mark.parametrize("case", ["plain", "one row holds all", "ties", "all equal", "half", "nearly everything"])
def test_the_largest_entries_of_a_batch_are_exactly_as_many_as_asked_for(kernels, case):
    pre, bias = torch.randn(50, 300), 0.1 * torch.randn(300)
    count = 14_900 if case == "nearly everything" else 150
    if case == "one row holds all":
        pre[3] += 100
    elif case == "ties":
        pre, bias = pre.round(), bias * 0
    elif case == "all equal":
        pre, bias = torch.ones_like(pre), bias * 0
    elif case == "half":
        pre = pre.bfloat16()
    pattern = kernels.top_of_batch(pre, bias, count, False)
    key = pre.float() + bias
    assert pattern.columns.shape == (count,)
    assert len(set(zip(pattern.rows.tolist(), pattern.columns.tolist(), strict=True))) == count
    found = key[pattern.rows, pattern.columns]
    assert torch.equal(found.sort().values, key.reshape(-1).topk(count).values.sort().values)


def test_nan_does_no_harm_before_the_loss_is_checked(kernels):
    pre = torch.randn(6, 128)
    pre[2] = float("nan")
    pre[4, :100] = float("nan")
    columns = kernels.top(pre, torch.zeros(128), 40, False)
    assert bool(((columns >= 0) & (columns < 128)).all())
    pattern = kernels.top_of_batch(pre, torch.zeros(128), 60, False)
    assert pattern.columns.shape[0] <= 60
    assert int(pattern.offsets[-1]) == pattern.columns.shape[0]


def test_the_transposed_pattern_is_the_one_of_stock_torch(kernels):
    pattern = TopK(4).pick(torch.randn(30, 50))
    expected = [t.long() for t in pattern.by_latent]
    found = [t.long() for t in kernels.transpose(pattern)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", kinds())
def test_steps_without_gradients_follow_plain_adam_on_dense_gradients(kernels, kind, monkeypatch, bring):
    """Same start, same batches: float32 kernels stay beside the float64 oracle, with AuxK and unit rows at work."""
    if kernels.name == "triton" and kind != "k_sparse":
        pytest.skip("the interpreter takes seconds for each kind, and this one uses every part of the update")
    monkeypatch.setattr("visae.ops.randn_like", lambda t: torch.randn(t.shape).to(t))  # one noise for both precisions
    x = torch.randn(200, D) @ torch.randn(D, D) + 3
    saes = []
    for dtype in (torch.float64, torch.float32):
        sae = make_sae(kind, D, F, **({"k": 4} if "k" in kind_options(kind) else {}))
        whole = bring(sae, x)
        initialise(sae, whole)
        saes.append(sae.to(dtype).train())
    saes[0].load_state_dict({k: t.double() if t.is_floating_point() else t for k, t in saes[1].state_dict().items()})
    tiers = [Reference(), Fused(kernels)]
    steps = [
        Adam(dict(sae.named_parameters()), sae.unit_parameters(), fused=isinstance(ops, Fused), eps=1e-6,
             ops=ops if isinstance(ops, Fused) else None)
        for sae, ops in zip(saes, tiers, strict=True)
    ]  # fmt: skip
    for step in range(3):
        for sae, ops, adam in zip(saes, tiers, steps, strict=True):
            torch.manual_seed(step)
            sae.losses(whole[step * 50 : step * 50 + 50], ops, dead=torch.arange(0, F, 3)).total.backward()
            if isinstance(ops, Fused) and kind == "topk":
                assert sae.W_enc.grad is None and sae.W_dec.grad is None  # noqa: PT018
            adam.step(1e-3)
    for (name, slow), (_, fast) in zip(saes[0].named_parameters(), saes[1].named_parameters(), strict=True):
        moved = (slow - fast.double()).abs()
        assert float((moved > 2e-4).double().mean()) < 0.05, name  # rounding may turn a near-tie, or Adam's sign near 0


def test_the_copy_for_the_product_follows_the_weight_and_notices_changes_from_outside(kernels):
    ops = Fused(kernels, "bf16")
    p = torch.nn.Parameter(torch.randn(F, D))
    adam = Adam({"w": p}, ops=ops)
    assert torch.equal(ops.half(p), p.detach().bfloat16())
    p.grad = torch.randn(F, D)
    adam.step(0.1)
    assert ops.half(p) is ops.half_of(p)
    assert torch.equal(ops.half(p), p.detach().bfloat16())
    with torch.no_grad():
        p.mul_(2)
    assert torch.equal(ops.half(p), p.detach().bfloat16())


def test_a_machine_without_a_compiler_is_told_apart_and_steps_aside(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        build("no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho cannot >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"could not build kernels\.cpp: .*cannot"):
        build(str(broken))
    assert not list((tmp_path / "visae").glob("*.so"))


def test_the_fastest_tier_is_taken_and_others_are_refused_with_a_reason():
    best = make_ops("auto")
    assert best.name == next((n for n in KERNELS if KERNELS[n] == "cpu" and load_kernels(n)), "eager")
    assert make_ops("auto", device="meta").name == "eager"
    with pytest.raises(ValueError, match="do not work on meta here; ops='auto'"):
        make_ops("native", device="meta")


def test_kernels_leave_torch_the_number_of_threads_that_was_asked_for(kernels):
    code = f"""
import torch
torch.set_num_threads(1)
from visae.ops import load_kernels
load_kernels({kernels.name!r}).top(torch.randn(64, 256), torch.zeros(256), 4, False)
print(torch.get_num_threads())
"""
    known = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"
