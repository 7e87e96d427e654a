"""The fast tier against the oracle: same codes, same gradients, and none of the dense work."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from visae.ops import BatchTopK, Dense, Eager, GroupMax, Pattern, Reference, Threshold, TopK, make_ops

N, D, F = 40, 12, 128
RULES = [
    TopK(5),
    TopK(5, signed=True),
    BatchTopK(5),
    BatchTopK(4.5, signed=True),
    Threshold(torch.tensor(0.5)),
    Threshold(torch.linspace(0, 2, F)),
    GroupMax(8),
    GroupMax(8, signed=True),
]


def world(seed=0, dtype=torch.float64):
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


def run(ops, t, rule, among):
    codes = ops.encode_select(t["u"], t["weight"], t["bias"], t["shift"], rule, among)
    recon = ops.decode(codes, t["atoms"], t["out"])
    loss = (recon - t["u"]).square().sum() + 0.3 * codes.l1() + codes.l1(torch.linspace(0, 1, F, dtype=recon.dtype))
    return codes, recon, torch.autograd.grad(loss, list(t.values()))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{type(r).__name__}-signed={r.signed}-{getattr(r, 'k', '')}")
@pytest.mark.parametrize("some", [False, True], ids=["all latents", "some latents"])
def test_codes_reconstruction_and_every_gradient_equal_dense_autograd(rule, some):
    among = torch.arange(1, F, 3) if some else None
    if some and isinstance(rule, Threshold) and rule.threshold.ndim:
        rule = Threshold(rule.threshold[among])
    t = world()
    slow, slow_recon, slow_grads = run(Reference(), t, rule, among)
    fast, fast_recon, fast_grads = run(Eager(), t, rule, among)
    assert torch.allclose(slow.to_dense(), fast.to_dense(), atol=1e-12)
    assert torch.equal(slow.fired(), fast.fired())
    assert slow.l0() == fast.l0() > 0
    assert torch.allclose(slow_recon, fast_recon, atol=1e-11)
    for name, a, b in zip(t, slow_grads, fast_grads, strict=True):
        assert float(a.abs().max()) > 0, name
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9), name


def test_the_sparse_backward_passes_agree_with_finite_differences():
    t = world(1)
    pattern = TopK(3).pick((t["u"] @ t["weight"].T).detach())

    def forward(*tensors):
        fixed = type("Fixed", (), {"signed": True, "pick": lambda *_: pattern})()
        codes = Eager().encode_select(*tensors[:4], fixed)
        return Eager().decode(codes, *tensors[4:])

    assert torch.autograd.gradcheck(forward, tuple(t.values()), fast_mode=True)


def test_select_from_given_pre_activations_equals_the_oracle():
    pre = torch.randn(N, F, dtype=torch.float64, requires_grad=True)
    for rule in RULES[:4]:
        slow, fast = Reference().select(pre, rule), Eager().select(pre, rule)
        assert torch.equal(slow.to_dense(), fast.to_dense())
        weight = torch.randn(N, F, dtype=torch.float64)
        a, b = (torch.autograd.grad((c.to_dense() * weight).sum(), pre)[0] for c in (slow, fast))
        assert torch.equal(a, b)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outs = out if isinstance(out, (tuple, list)) else (out,)
        self.calls.append((func.overloadpacket.__name__, [tuple(o.shape) for o in outs if isinstance(o, torch.Tensor)]))
        return out


def test_a_fast_step_makes_one_dense_product_and_no_gradient_of_the_size_of_the_codes():
    n, d, f = 64, 16, 1024
    u = torch.randn(n, d)
    weight, atoms = (torch.randn(f, d, requires_grad=True) for _ in range(2))
    bias, shift = torch.zeros(f, requires_grad=True), torch.zeros(d, requires_grad=True)
    for ops, products in ((Eager(), 1), (Reference(), 5)):
        with Watch() as watch:
            recon = ops.decode(ops.encode_select(u, weight, bias, shift, TopK(4)), atoms, shift)
            (recon - u).square().sum().backward()
        views = ("view", "_unsafe_view", "t", "detach", "alias", "transpose", "as_strided", "slice")
        dense = [shapes[0] for name, shapes in watch.calls if name in ("mm", "addmm", "bmm") and min(shapes[0]) > 1]
        large = [name for name, shapes in watch.calls if (n, f) in shapes and name not in views]
        assert len(dense) >= products
        if isinstance(ops, Eager):
            assert dense == [(n, f)]
            assert large == ["addmm"]


def test_a_bfloat16_product_only_decides_near_ties_and_values_stay_float32():
    t = {k: v.detach().float() for k, v in world(3).items()}
    exact = (t["u"] - t["shift"]) @ t["weight"].T + t["bias"]
    codes = Eager("bf16").encode_select(t["u"], t["weight"], t["bias"], t["shift"], TopK(5))
    dense = codes.to_dense()
    assert torch.allclose(dense[dense != 0], exact.relu()[dense != 0], atol=1e-5)
    lost = torch.where(dense != 0, -torch.inf, exact).amax(1)
    kept = torch.where(dense != 0, exact, torch.inf).amin(1)
    assert bool((lost - kept <= 0.02 * exact.abs().amax(1)).all())


@pytest.mark.parametrize("shape", [(7, 64, 3), (5, 256, 4), (3, 4096, 32), (4, 100, 9), (2, 8, 20)])
def test_two_stage_top_k_finds_what_torch_finds(shape):
    n, width, k = shape
    x = torch.randn(n, width)
    pattern = TopK(k).pick(x)
    found = x[pattern.rows, pattern.columns].view(n, -1)
    assert torch.equal(found.sort(1).values, x.topk(min(k, width)).values.sort(1).values)


@pytest.mark.parametrize("case", ["plain", "one row holds all", "ties", "few positive", "bf16", "all equal"])
def test_batch_top_k_keeps_exactly_the_largest_entries_of_the_batch(case):
    x = torch.randn(50, 512)
    if case == "one row holds all":
        x[3] += 100
    elif case == "ties":
        x = x.round()
    elif case == "few positive":
        x = x - 3
    elif case == "bf16":
        x = x.bfloat16()
    elif case == "all equal":
        x = torch.ones_like(x)
    pattern, flat = BatchTopK(3).pick(x), x.reshape(-1)
    assert pattern.columns.shape == (150,)
    assert len(set(zip(pattern.rows.tolist(), pattern.columns.tolist(), strict=True))) == 150
    assert bool((pattern.rows.diff() >= 0).all())
    found = x[pattern.rows, pattern.columns]
    assert torch.equal(found.sort().values, flat.topk(150).values.sort().values)


def test_the_transposed_pattern_lists_every_entry_once_latent_after_latent():
    mask = torch.rand(30, 17) < 0.2
    pattern = Pattern.of_mask(mask)
    order, rows, offsets = (t.long() for t in pattern.by_latent)
    assert torch.equal(pattern.columns[order], pattern.columns.sort(stable=True).values)
    assert torch.equal(rows, pattern.rows[order])
    assert torch.equal(offsets[1:] - offsets[:-1], mask.sum(0))
    assert torch.equal(Dense(mask.double()).fired(), mask.any(0))


def test_names_of_tiers_and_precisions_are_checked():
    assert make_ops("reference").name == "reference"
    with pytest.raises(KeyError, match="Did you mean 'eager'"):
        make_ops("eagre")
    with pytest.raises(ValueError, match="fp32 or bf16"):
        make_ops("eager", "fp8")
