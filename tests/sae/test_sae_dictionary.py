"""Every kind of dictionary keeps the promises of the interface."""

import pytest
import torch

from visae.ops import Eager
from visae.sae import Codes, initialise, kind_options, kinds, make_sae

D, F = 16, 64


def test_forward_is_decode_of_encode_and_decode_is_a_sum_of_directions(sae, tokens, bring):
    x, side = sae.unpack(bring(sae, tokens(50)))
    one = {name: value[:1] for name, value in side.items()}
    side = {name: value.expand(50) for name, value in one.items()}
    codes = sae.encode(x, **side)
    recon = sae.decode(codes)
    assert torch.equal(sae(x, **side), recon)
    empty = Codes(torch.full((1, 1), -1), torch.zeros(1, 1), F, side=one)
    by_hand = codes.to_dense() @ sae.directions(**one) + sae.decode(empty)
    assert torch.allclose(recon, by_hand, atol=1e-4)
    assert codes.indices.dtype == torch.int64
    assert codes.n_latents == sae.n_latents == F
    assert sae.directions().shape == (F, D)
    assert bool((codes.values >= 0).all()) or sae.signed


def largest(scores, k=4):
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k).indices, True)


def above(sae, pre):
    return pre.relu() * (pre > sae.activation.threshold)


def jump(sae, pre):
    return pre * (pre > sae.activation.threshold * sae.activation.unit)


def one_per_head(_, pre):
    heads = pre.relu().view(len(pre), F // 4, 4)
    return (heads * (heads == heads.amax(1, keepdim=True))).flatten(1)


def gated(sae, pre):
    return (pre > 0) * (sae.activation.log_gain.exp() * pre + sae.activation.bias).relu()


def pairs(sae, u):
    p, q = ((u - sae.b_dec) @ part.weight.T + part.bias for part in (sae.encoder.first, sae.encoder.second))
    both = (p[:, :, None] > 0) & (q[:, None, :] > 0)
    return torch.where(both, (p[:, :, None] * q[:, None, :] + 1e-5).abs().sqrt(), 0).flatten(1)


def as_long_as_the_input(sae, pre, u):
    out = torch.zeros_like(pre)
    for n, row in enumerate(pre.detach().relu()):
        order = row.argsort(descending=True)
        misses = [abs(float(row[order[:k]].norm() - (u[n] - sae.b_dec.detach()).norm())) for k in range(1, F + 1)]
        best = order[: misses.index(min(misses)) + 1]
        out[n, best] = row[best]
    return out


def as_many_as_are_worth_their_price(sae, pre, u):
    out, part = torch.zeros_like(pre), sae.activation
    for n, row in enumerate(pre.detach().relu()):
        order, left = row.argsort(descending=True)[: part.k_max], u[n] - sae.b_dec.detach()
        cost = [float(left.square().sum() / D)]
        for j, latent in enumerate(order, 1):
            left = left - row[latent] * sae.W_dec[latent].detach()
            cost.append(float(left.square().sum() / D + part.price * j))
        best = order[: cost.index(min(cost[part.k_min :]))]
        out[n, best] = row[best]
    return out


LOOKING = {"top_afa": as_long_as_the_input, "adaptive_k": as_many_as_are_worth_their_price}
NAMED = """relu_l1 gated p_anneal topk k_sparse batch_topk feature_choice jumprelu matryoshka msae_uw msae_rw
hierarchical_topk abs_topk adaptive_k top_afa kron orthogonal atm gba archetypal vsae contrastive discrete temporal"""
FORMULAS = {
    **dict.fromkeys(
        ("topk", "msae_uw", "msae_rw", "hierarchical_topk", "archetypal", "k_sparse", "kron", "temporal"),
        lambda _, pre: pre.relu() * largest(pre),
    ),
    **dict.fromkeys(("batch_topk", "matryoshka", "orthogonal", "feature_choice", "atm", "contrastive"), above),
    **dict.fromkeys(("relu_l1", "p_anneal"), lambda _, pre: pre.relu()),
    **dict.fromkeys(("abs_topk", "vsae"), lambda _, pre: pre * largest(pre.abs())),
    "jumprelu": jump,
    "discrete": one_per_head,
    "gated": gated,
    "gba": lambda sae, pre: sae.activation.gain * (pre + sae.activation.bias).relu(),
}


def test_codes_equal_the_written_out_formula(sae, tokens, bring):
    sae = sae.double()
    x, side = sae.unpack(bring(sae, tokens(40).double()))
    with torch.no_grad():
        for p in sae.activation.parameters():
            p.add_(0.1 * torch.rand(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(2)))
    u = sae.modulation((x - sae.mean) * sae.normaliser.scale, side)
    pre = pairs(sae, u) if sae.kind == "kron" else (u - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    name = sae.options.get("activation", sae.kind)
    expected = LOOKING[name](sae, pre, u) if name in LOOKING else FORMULAS[name](sae, pre)
    assert torch.allclose(sae.encode(x, **side).to_dense(), expected, atol=1e-12)


def test_what_comes_out_for_a_token_does_not_depend_on_its_batch(sae, tokens, bring):
    x = bring(sae, tokens(64))
    whole = sae.encode(x).to_dense()
    single = torch.cat([sae.encode(x[i : i + 1]).to_dense() for i in range(64)])
    assert torch.allclose(whole, single, atol=1e-5)
    sae.train()
    assert torch.allclose(sae.encode(x).to_dense(), whole, atol=1e-5)


def test_long_inputs_go_through_in_chunks_with_the_same_result(sae, monkeypatch, tokens, bring):
    x = bring(sae, tokens(100))
    whole = sae.encode(x)
    monkeypatch.setattr("visae.sae.dictionary.CELLS", 7 * F)
    parts = sae.encode(x)
    assert torch.allclose(parts.to_dense(), whole.to_dense(), atol=1e-5)
    assert parts.capacity == whole.capacity


@pytest.mark.parametrize("width", [F, 256])  # the wider one is searched in two stages
def test_no_tokens_have_no_codes_and_no_reconstruction(kind, width, tokens, bring):
    sae = make_sae(kind, D, width, **({"k": 2} if "k" in kind_options(kind) else {}))
    initialise(sae, bring(sae, tokens()))
    nothing = bring(sae, tokens(0))
    for made in (sae, sae.fold()):
        codes = made.encode(nothing)
        assert codes.to_dense().shape == (0, width)
        assert made.decode(codes).shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_any_float_dtype_are_computed_in_float32(sae, dtype, tokens, bring):
    x, side = sae.unpack(bring(sae, tokens(30)))
    x = x.to(dtype)
    codes = sae.encode(x, **side)
    assert codes.values.dtype == torch.float32
    assert torch.equal(codes.to_dense(), sae.encode(x.float(), **side).to_dense())
    assert sae(x, **side).dtype == torch.float32


def test_shifting_and_scaling_the_data_changes_nothing_but_the_buffers(kind, small, tokens, bring):
    one, other = small(kind), small(kind)
    x, moved = bring(one, tokens()), bring(other, 50 * tokens() - 3)
    initialise(one, x)
    initialise(other, moved)
    assert torch.allclose(one.encode(x).to_dense(), other.encode(moved).to_dense(), atol=2e-3)
    assert torch.allclose(other.directions(), 50 * one.directions(), rtol=1e-4, atol=1e-3)


def test_tokens_of_another_length_are_refused(sae, bring):
    with pytest.raises(ValueError, match=r"takes tokens \[n, 16\]; got \[3, 5\]"):
        sae.encode(bring(sae, torch.zeros(3, 5)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_refused_with_their_number_and_advice(sae, value, tokens, bring):
    x = tokens(20)
    x[3, 2] = x[7, 0] = x[7, 1] = value
    for made in (sae, sae.fold()):
        with pytest.raises(ValueError, match=r"2 of 20 tokens hold values that are NaN .* float16 overflows"):
            made.encode(bring(made, x))
    huge = 1e38 * torch.ones(3, D)  # finite, though their sum is not
    assert len(sae.encode(bring(sae, huge))) == 3


def test_reconstruction_is_differentiable_in_the_tokens(sae, tokens, bring):
    sae.double()
    x, side = sae.unpack(bring(sae, tokens(5).double()))
    x.requires_grad_()
    weights = torch.randn(5, D, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sae(x, **side) * weights).sum(), x)
    step = 1e-6 * torch.randn(5, D, dtype=torch.float64)
    with torch.no_grad():
        change = ((sae(x + step, **side) - sae(x - step, **side)) * weights).sum() / 2
    assert torch.allclose((gradient * step).sum(), change, rtol=1e-4)


def test_latents_count_samples_since_they_last_fired(sae, tokens, bring):
    x = bring(sae, tokens(100))
    sae.train()
    codes = sae.losses(x, Eager()).codes
    sae.count(codes)
    fired = codes.to_dense().ne(0).any(0)
    assert torch.equal(sae.samples_since_fired, torch.where(fired, 0, 100))
    sae.count(codes)
    assert torch.equal(sae.samples_since_fired, torch.where(fired, 0, 200))
    assert sae.samples_since_fired.dtype == torch.int64


def test_a_latent_that_was_selected_with_value_zero_counts_as_silent(small, tokens):
    sae = small("topk")
    initialise(sae, tokens())
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e3)
    sae.count(sae.losses(tokens(20), Eager()).codes)
    assert bool((sae.samples_since_fired == 20).all())
    assert sae.encode(tokens(20)).l0().sum() == 0


def test_topk_codes_have_k_columns_and_batch_topk_as_many_as_the_fullest_row(small, tokens):
    sae = small("topk")
    initialise(sae, tokens())
    assert sae.encode(tokens(10)).indices.shape == (10, 4)
    sae = small("batch_topk")
    initialise(sae, tokens())
    sae.calibrate([tokens()])
    codes = sae.encode(tokens(200, seed=8))
    assert codes.capacity == int(codes.l0().max()) > 4


def test_unknown_kinds_and_options_are_refused_with_the_nearest_known():
    assert set(NAMED.split()) <= set(kinds())
    with pytest.raises(KeyError, match="Did you mean 'topk'"):
        make_sae("topkk", 4, 8)
    with pytest.raises(KeyError, match=r"option of kind 'relu_l1': 'k'.*Known: l1, l1_warmup"):
        make_sae("relu_l1", 4, 8, k=3)
    with pytest.raises(ValueError, match=r"between 1 and n_latents = 8; got 9"):
        make_sae("topk", 4, 8, k=9)
    for kind in ("topk", "hierarchical_topk", "msae_uw", "msae_rw", "k_sparse", "kron"):
        with pytest.raises(ValueError, match="whole number"):
            make_sae(kind, 4, 64, k=2.5)
    with pytest.raises(ValueError, match="d must be at least 1"):
        make_sae("topk", 0, 8)
    assert kind_options("topk")["k"] == 32
    assert make_sae("batch_topk", 4, 8, k=2.5).options["k"] == 2.5
