"""Folding moves statistics and norms into the weights of every kind on every normaliser, and changes no result."""

import pytest
import torch

from visae.sae import initialise, load_sae, save_sae

D, F = 16, 64
ORDERS = {
    "normaliser": [(True, False)],
    "norms": [(False, True)],
    "both": [(True, True)],
    "normaliser, norms": [(True, False), (False, True)],
    "norms, normaliser": [(False, True), (True, False)],
    "both, twice": [(True, True), (True, True)],
}


def uneven(n=200, seed=5):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(0))
    return torch.randn(n, D, generator=g) @ mixing * (0.2 + 3 * torch.rand(n, 1, generator=g)) + 7


@pytest.fixture
def used(form, normaliser, small, bring):
    """As after training: nothing has a value that hides a mistake (biases off 0, rows of other lengths where free)."""
    _, kind, options = form
    sae = small(kind, normaliser=normaliser, **options)
    initialise(sae, bring(sae, uneven(600)))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.add_(0.1 * p.std(correction=0).clamp_min(0.3) * torch.randn(p.shape, generator=g))
            if name in sae.unit_parameters():
                p.div_(p.norm(dim=1, keepdim=True))
        for name, buffer in sae.named_buffers():
            if name == "decoder.bias":
                buffer.add_(0.1)
    sae.calibrate([bring(sae, uneven(600, seed=6))])
    return sae.eval()


def same(folded, sae, x, gain):
    """Codes times gain, and reconstructions, to 1e-5 of their size."""
    with torch.no_grad():
        codes, before = folded.encode(x), sae.encode(x)
        wanted = before.to_dense() * gain
        assert torch.allclose(codes.to_dense(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        recon = sae.decode(before)
        rows, _ = sae.unpack(x)
        spread = float((rows - rows.mean(0)).abs().max())
        assert torch.allclose(folded.decode(codes), recon, rtol=1e-5, atol=1e-5 * spread)


def test_folding_in_any_order_saving_and_loading_change_no_code(used, tmp_path, bring):
    x, lengths = bring(used, uneven(seed=9)), used.directions().detach().norm(dim=1)
    for order, steps in ORDERS.items():
        folded, gain = used, torch.ones(F)
        for normaliser, norms in steps:
            folded, gain = folded.fold(normaliser, norms), lengths if norms else gain
            same(folded, used, x, gain)
        save_sae(folded, tmp_path / order)
        loaded = load_sae(tmp_path / order)
        assert loaded.folded == folded.folded
        assert torch.equal(loaded.encode(x).to_dense(), folded.encode(x).to_dense())
        assert torch.equal(loaded(x), folded(x))
        same(loaded.fold(), used, x, lengths)  # folding goes on where a file was


def test_what_is_folded_is_plain(used):
    folded = used.fold()
    assert torch.allclose(folded.directions().norm(dim=1), torch.ones(F), atol=1e-5)
    assert torch.allclose(folded.mean, used.mean)
    assert torch.allclose(folded.directions(), folded.W_dec, rtol=1e-6)
    x = uneven(seed=9)
    if not used.normaliser.per_token:
        assert folded.normaliser.name == "none"
        assert torch.equal(folded.normalise(x), x)
        if (
            hasattr(folded.activation, "threshold") and not used.needs_to_encode
        ):  # all that another library needs to know
            pre = (x - folded.b_dec) @ folded.W_enc.T + folded.b_enc
            codes = pre.relu() * (pre > folded.activation.threshold)
            assert torch.allclose(codes, folded.encode(x).to_dense(), atol=1e-3)
    else:
        assert folded.normaliser.name == used.normaliser.name
        # the typical scale has moved: the rows that are left have the length of raw ones
        assert float(folded.normalise(x).norm(dim=1)[0]) == pytest.approx(
            float(used.normaliser.typical) * D**0.5, rel=1e-4
        )


def test_directions_of_a_modulated_token_are_those_of_before(small, bring, normaliser):
    sae = small("temporal", normaliser=normaliser)
    initialise(sae, bring(sae, uneven(600)))
    with torch.no_grad():
        for p in sae.modulation.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4)))
    folded, sigma = sae.fold(norms=False), torch.tensor([2.0])
    assert not torch.allclose(sae.directions(sigma=sigma), sae.directions(), rtol=0.01)
    assert torch.allclose(folded.directions(sigma=sigma), sae.directions(sigma=sigma), rtol=1e-4, atol=1e-4)


def test_folded_inference_does_not_depend_on_the_batch(used, bring):
    x, folded = bring(used, uneven(30)), used.fold()
    whole = folded.encode(x).to_dense()
    single = torch.cat([folded.encode(x[i : i + 1]).to_dense() for i in range(30)])
    assert torch.allclose(whole, single, atol=1e-5 * float(whole.abs().max()))


def test_metrics_do_not_change_by_folding(small, normaliser):
    from visae.evaluate import evaluate_sae

    sae = small("batch_topk", normaliser=normaliser)
    initialise(sae, uneven(600))
    sae.calibrate([uneven(600, seed=6)])
    a, b = (evaluate_sae(made, [uneven(seed=9)]).to_dict() for made in (sae.eval(), sae.fold()))
    assert a == pytest.approx(b, rel=1e-4)


def test_latents_that_never_point_anywhere_stay_silent(small):
    sae = small("relu_l1")
    initialise(sae, uneven(600))
    with torch.no_grad():
        sae.decoder.weight[7] = 0
    folded = sae.fold()
    same(folded, sae, uneven(seed=9), torch.where(torch.arange(F) == 7, 1.0, sae.directions().norm(dim=1)))


def test_a_folded_dictionary_leaves_the_original_alone_and_is_not_trained(small):
    sae = small("k_sparse")
    initialise(sae, uneven(600))
    before = {name: t.clone() for name, t in sae.state_dict().items()}
    folded = sae.fold()
    with torch.no_grad():
        for t in folded.state_dict().values():
            t.zero_()
    assert all(torch.equal(before[name], t) for name, t in sae.state_dict().items())
    with pytest.raises(ValueError, match=r"folded \(normaliser, norms\) and for inference only"):
        initialise(folded, uneven(600))
    with pytest.raises(ValueError, match="nothing was asked for"):
        sae.fold(False, False)
