"""AuxK against its formula, and against the oddities of published code: sign, bias, encoder left out."""

import pytest
import torch

from visae.ops import Adam, Eager, Reference
from visae.sae import initialise

D, F = 16, 64

DEAD = torch.tensor([2, 9, 30, 31, 50])


def auxk_by_hand(sae, x, k_aux):
    u = sae.normalise(x)
    pre = (u - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    codes = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, pre.topk(4).values.relu())
    error = (u - codes @ sae.W_dec - sae.b_dec).detach()
    guess = torch.zeros_like(u)
    for row in range(len(u)):
        for place in DEAD[pre[row, DEAD].topk(min(k_aux, len(DEAD))).indices]:
            guess[row] += pre[row, place].relu() * sae.W_dec[place]
    return (error - guess).square().sum() / (error - error.mean(0)).square().sum() / 32, error, guess


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=["eager", "reference"])
@pytest.mark.parametrize("k_aux", [2, 8])
def test_the_term_equals_its_formula_without_the_decoder_bias(ops, k_aux, tokens, started):
    sae, x = started("topk", k_aux=k_aux), tokens(60)
    with torch.no_grad():
        sae.decoder.bias.add_(3)
    expected, _, _ = auxk_by_hand(sae, x, k_aux)
    assert sae.losses(x, ops, dead=DEAD).terms["auxk"].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=["eager", "reference"])
def test_a_gradient_step_turns_dead_atoms_towards_the_error_not_away_from_it(ops, tokens, started, gradients):
    sae, x = started("topk"), tokens(400)
    _, error, guess = auxk_by_hand(sae, x, D // 2)
    found = gradients(sae, x, ops, DEAD, "auxk")
    pre = ((sae.normalise(x) - sae.b_dec) @ sae.W_enc.T + sae.b_enc).detach()
    pull = torch.zeros(F, D, dtype=error.dtype)
    pull[DEAD] = pre[:, DEAD].relu().T @ (error - guess.detach())
    moves = -(found["decoder.weight"][DEAD] * pull[DEAD]).sum(1)
    assert bool((moves > 0).all())
    before = sae.losses(x, ops, dead=DEAD).terms["auxk"].item()
    Adam(dict(sae.named_parameters())).step(0)
    with torch.no_grad():
        sae.decoder.weight.sub_(0.5 * found["decoder.weight"])
    assert sae.losses(x, ops, dead=DEAD).terms["auxk"].item() < before


def test_only_dead_latents_are_moved_and_their_encoder_rows_are_among_them(tokens, started, gradients):
    sae, x = started("topk"), tokens(300)
    found = gradients(sae, x, Eager(), DEAD, "auxk")
    alive = torch.ones(F, dtype=torch.bool)
    alive[DEAD] = False
    for name in ("encoder.weight", "encoder.bias", "decoder.weight"):
        assert float(found[name][alive].abs().max()) == 0
        assert float(found[name][DEAD].abs().max()) > 0


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=["eager", "reference"])
def test_an_error_without_variance_asks_nothing_of_dead_latents(ops, tokens, started, gradients):
    sae = started("topk", dtype=torch.float32)
    for x in (tokens(1), tokens(1).expand(7, D)):
        assert sae.losses(x, ops, dead=DEAD).terms["auxk"].item() == 0
        assert all(bool((g == 0).all()) for g in gradients(sae, x, ops, DEAD, "auxk").values())


def test_nothing_is_added_while_no_latent_is_dead(tokens, started):
    sae = started("topk")
    assert set(sae.losses(tokens(50), Eager()).terms) == {"recon"}


def test_dead_latents_come_back_to_life_with_the_term_and_stay_dead_without(small, tokens):
    def alive_after(aux):
        sae, x = small("topk", aux=aux), tokens(2000)
        initialise(sae, x)
        with torch.no_grad():
            sae.encoder.weight[:16] *= 0.02
        adam = Adam(dict(sae.train().named_parameters()), sae.unit_parameters())
        for step in range(80):
            part = x[torch.randperm(2000, generator=torch.Generator().manual_seed(step))[:500]]
            dead = (sae.samples_since_fired > 1000).nonzero()[:, 0]
            losses = sae.losses(part, Eager(), dead=dead if len(dead) else None)
            losses.total.backward()
            adam.step(1e-2)
            sae.count(losses.codes)
        return int((sae.samples_since_fired[:16] < 1000).sum())

    without = alive_after(0.0)
    assert without <= 4
    assert alive_after(1 / 32) >= without + 6
