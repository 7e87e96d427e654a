"""Every loss term reaches every parameter it should; the fast path equals autograd on dense tensors."""

import copy
import itertools

import pytest
import torch

from visae.ops import Dense, Eager, Ragged, Reference
from visae.sae import initialise, kinds, make_sae
from visae.sae.elementwise import Elementwise
from visae.sae.penalties import AuxK, AuxZipf, Pass
from visae.sae.thresholds import FeatureChoice, Gate

D, F = 16, 64

ALL = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
CODES = {"encoder.weight", "encoder.bias", "decoder.bias"}
JUMP, GATE = {"activation.threshold"}, {"activation.log_gain", "activation.bias"}
MIXED = CODES | {f"decoder.{p}" for p in ("weights", "slack", "log_scale")}
REACH = {  # form and term; what is not named reaches what all have
    ("relu_l1", "l1"): CODES,
    ("relu_l1 tanh", "tanh"): CODES,
    ("p_anneal", "p_anneal"): CODES,
    ("gated", "recon"): ALL | GATE,
    ("gated", "gate_l1"): CODES,
    ("gated", "gate_recon"): CODES,
    ("jumprelu", "recon"): ALL | JUMP,
    ("jumprelu", "target_l0"): JUMP,
    ("orthogonal", "orthogonal"): {"decoder.weight"},
    ("topk multi", "multi_topk"): ALL,
    ("feature_choice aux", "aux_zipf"): ALL,
    **{(f"{before}feature_choice{after}", "lift"): {"encoder.weight", "encoder.bias"}
       for before, after in (("", ""), ("archetypal ", ""), ("", " aux"))},
    ("k_sparse", "recon"): {"encoder.bias", "decoder.weight", "decoder.bias"},
    **{("kron", term): {f"encoder.{part}.{p}" for part in ("first", "second") for p in ("weight", "bias")}
       | {"decoder.weight", "decoder.bias"} for term in ("recon", "auxk")},
    ("archetypal relu_l1", "l1"): MIXED,  # atoms have lengths, by which codes count
    ("archetypal p_anneal", "p_anneal"): MIXED,
    ("archetypal gated", "recon"): MIXED | GATE,
    ("archetypal gated", "gate_l1"): MIXED,
    ("archetypal gated", "gate_recon"): CODES,
    ("archetypal jumprelu", "recon"): MIXED | JUMP,
    ("archetypal jumprelu", "target_l0"): JUMP,
    ("vsae", "kl"): CODES,
    ("gba", "recon"): {"activation.gain", "decoder.weight"},
    ("top_afa", "afa"): CODES,
    ("contrastive", "other"): ALL,
    ("contrastive", "contrast"): CODES,
    ("temporal", "recon"): ALL | {f"modulation.{part}.{p}" for part in ("first", "second") for p in ("weight", "bias")},
}  # fmt: skip
WITHOUT_AUXK = {"relu_l1", "p_anneal", "gated", "feature_choice", "k_sparse", "vsae", "gba"}
"""Nothing to revive, or by design without it."""


def test_each_term_of_the_loss_reaches_exactly_the_parameters_it_should(form, tokens, started, gradients, bring):
    name, kind, options = form
    dead, x = torch.arange(0, F, 4), tokens(200)
    terms = set(started(kind, **options).losses(bring(started(kind, **options), x), Eager(), dead=dead).terms)
    assert terms >= {"recon"} | {term for one, term in REACH if one == name}
    assert ("auxk" in terms) == (not WITHOUT_AUXK & set(name.split()))
    assert {(name, term) for term in terms - {"recon", "auxk"}} <= REACH.keys()
    for term, ops in itertools.product(terms, (Eager(), Reference())):
        found = gradients(started(kind, **options), x, ops, dead, term)
        reached = {n for n, g in found.items() if float(g.abs().max()) > 1e-12}
        assert reached == REACH.get((name, term), MIXED if kind == "archetypal" else ALL), (term, ops.name)


@pytest.mark.parametrize("dead", [None, torch.tensor([3, 10, 11, 40])], ids=["none dead", "some dead"])
def test_the_fast_path_gives_the_gradients_of_dense_autograd(form, dead, tokens, started, gradients):
    _, kind, options = form
    sae, x = started(kind, **options), tokens(200)
    # of copies: some penalties remember what they saw
    slow, fast = (gradients(copy.deepcopy(sae), x, ops, dead) for ops in (Reference(), Eager()))
    for name in slow:
        assert torch.allclose(slow[name], fast[name], rtol=1e-9, atol=1e-12), name


def test_gradients_of_the_whole_loss_agree_with_finite_differences(form, tokens, started, gradients, bring):
    """Without the terms for which the error is a constant by definition; they have a test of their own."""
    _, kind, options = form
    sae, x = started(kind, **options), tokens(100)
    sae.penalties = torch.nn.ModuleList(part for part in sae.penalties if not isinstance(part, AuxK | AuxZipf))
    dead = torch.arange(3)
    found = gradients(sae, x, Eager(), dead)
    held = {Gate: "decoder", FeatureChoice: "decoder.bias"}.get(type(sae.activation))  # in one term, by definition
    for name, p in sae.named_parameters():
        if name == "activation.threshold" or (held and name.startswith(held)):
            continue  # the threshold's is a straight-through estimate, see test_sae_thresholds
        step = 1e-7 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                p.add_(sign * step)
                torch.manual_seed(11)  # the noise of `gradients`
                values.append(float(sae.losses(bring(sae, x), Eager(), dead=dead).total))
        with torch.no_grad():
            p.add_(step)
        expected = (values[0] - values[1]) / 2
        assert float((found[name] * step).sum()) == pytest.approx(expected, rel=2e-3), name


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=lambda ops: ops.name)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("topk", {}), ("abs_topk", {}), ("archetypal", {"activation": "jumprelu"}), ("feature_choice", {"aux": 0.5})],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_terms_that_explain_a_given_error_agree_with_finite_differences(kind, options, ops, tokens, started):
    sae = started(kind, **options).eval()  # running shares stay
    (penalty,) = (part for part in sae.penalties if isinstance(part, AuxK | AuxZipf))
    if isinstance(penalty, AuxZipf):
        penalty.frequency[::4] = 0.0
    u, dead = sae.normalise(tokens(100)), torch.arange(0, F, 4)
    codes, _ = sae.code(u, ops)
    recon = ops.decode(codes, sae.W_dec, sae.b_dec).detach()

    def term():
        return penalty(Pass(sae, u, None, codes, recon, dead, 1.0, ops))

    for at, p in sae.named_parameters():
        (found,) = torch.autograd.grad(term(), p, allow_unused=True)
        if found is None:
            continue
        step = 1e-7 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            values = [float((p.add_(by * step), term())[1]) for by in (1, -2)]
            p.add_(step)
        assert float((found * step).sum()) == pytest.approx((values[0] - values[1]) / 2, rel=2e-3), at
        assert float(found.abs().max()) > 0, at


def test_the_reconstruction_loss_is_the_fraction_of_variance_unexplained(kind, small, tokens, bring):
    sae, x = small(kind), tokens(4000)
    initialise(sae, bring(sae, x))
    if sae.scheme.nesting() is not None:
        pytest.skip("the loss is a mean over several reconstructions: see test_sae_schemes")
    losses = sae.train().losses(bring(sae, x), Eager())
    recon = sae.restore(losses.recon)
    fvu = (x - recon).square().sum() / (x - x.mean(0)).square().sum()
    assert losses.terms["recon"].item() == pytest.approx(fvu.item(), rel=1e-4)
    assert x.shape[1] == D


ELEMENTWISE = [k for k in kinds() if isinstance(make_sae(k, 16, 64).activation, Elementwise)]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_kinds_on_the_sparse_path_have_the_loss_and_gradients_of_the_dense_one(
    name, tokens, started, gradients
):
    sae, x = started(name), tokens(200)
    dead = torch.tensor([3, 10, 11, 40])
    assert not sae.activation.sparse, "dense until a batch has been seen"
    slow, losses = gradients(sae, x, Reference(), dead), sae.losses(x, Eager(), dead=dead)
    assert isinstance(losses.codes, Dense)
    seen = float(sae.activation.reached)
    sae.activation.reached.fill_(0.0)
    sparse = sae.losses(x, Eager(), dead=dead)
    assert isinstance(sparse.codes, Ragged)
    assert float(sae.activation.reached) == pytest.approx(seen), "the same entries matter"
    assert torch.allclose(sparse.codes.to_dense(), losses.codes.values)
    sae.activation.reached.fill_(0.0)
    fast = gradients(sae, x, Eager(), dead)
    for key in slow:
        assert torch.allclose(slow[key], fast[key], rtol=1e-9, atol=1e-12), key


def test_training_takes_the_sparse_path_when_few_entries_matter_and_leaves_it_when_many_do():
    sae = make_sae("relu_l1", 16, 400)
    initialise(sae, torch.randn(500, 16))
    sae.train()
    with torch.no_grad():
        sae.encoder.bias.fill_(-10.0)
        sae.encoder.bias[:5] = 10.0
    assert isinstance(sae.losses(torch.randn(50, 16), Eager()).codes, Dense)
    assert isinstance(sae.losses(torch.randn(50, 16), Eager()).codes, Ragged)
    with torch.no_grad():
        sae.encoder.bias.fill_(10.0)
    assert isinstance(sae.losses(torch.randn(50, 16), Eager()).codes, Ragged)
    assert isinstance(sae.losses(torch.randn(50, 16), Eager()).codes, Dense)
    sae.activation.reached.fill_(0.0)
    sae.eval()
    assert isinstance(sae.losses(torch.randn(50, 16), Eager()).codes, Dense), "inference has one path"
