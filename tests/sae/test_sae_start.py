"""Statistics, initial weights, codes as a container."""

import pytest
import torch

from visae.ops import Dense, Eager
from visae.sae import Codes, Moments, initialise

D, F = 16, 64


def test_moments_merged_from_batches_equal_those_of_the_whole_even_far_from_zero():
    rows = torch.randn(1000, 8, dtype=torch.float64) + 1e6
    moments = Moments(8)
    for part in rows.split(77):
        moments.add(part)
    moments.add(rows[:0])
    assert moments.n == 1000
    assert torch.allclose(moments.mean, rows.mean(0))
    assert moments.total == pytest.approx(float((rows - rows.mean(0)).square().sum()), rel=1e-9)


def test_inputs_are_centred_and_scaled_to_squared_length_d(sae, tokens):
    u = sae.normalise(tokens())
    assert torch.allclose(u.mean(0), torch.zeros(D), atol=1e-4)
    assert float(u.square().sum(1).mean()) == pytest.approx(D, rel=1e-4)
    assert torch.allclose(sae.restore(u), tokens(), atol=1e-4)


def test_atoms_start_near_data_points_with_length_one_and_the_encoder_as_their_transpose(sae, tokens):
    u = torch.nn.functional.normalize(sae.normalise(tokens()), dim=1)
    lengths = torch.linalg.vector_norm(sae.W_dec, dim=1, keepdim=True)
    atoms = sae.W_dec / lengths
    if sae.unit_parameters():
        assert torch.allclose(lengths, torch.ones(F, 1), atol=1e-5)
    assert (atoms @ u.T).amax(1).min().item() > 0.9
    assert len({tuple(row) for row in sae.W_dec.tolist()}) == F
    assert sae.b_dec.abs().max().item() == 0
    if sae.encoder.linear:
        rows = sae.W_enc / torch.linalg.vector_norm(sae.W_enc, dim=1, keepdim=True)
        assert torch.allclose(rows, atoms, atol=1e-5)
        assert sae.b_enc.abs().max().item() == 0


def test_the_encoder_starts_at_the_least_squares_scale(kind, small, tokens, bring):
    if kind in ("vsae", "top_afa", "adaptive_k"):
        pytest.skip("noise, or a number of codes that changes with the scale: no least squares to compare with")
    sae = small(kind)
    x = tokens(2000)
    initialise(sae, bring(sae, x))
    sae.train()
    u = sae.normalise(x)

    def fvu(factor):
        with torch.no_grad():
            codes = sae.code(u, Eager())[0].to_dense() * factor
        return float((u - codes @ sae.W_dec.detach()).square().sum())

    best = fvu(1.0)
    assert best < fvu(0.97)
    assert best < fvu(1.03)
    assert best < float(u.square().sum())


def test_the_start_depends_on_the_seed_and_on_nothing_else(small, tokens):
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(made))
        sae = small("topk")
        initialise(sae, tokens(), seed=seed)
        made.append(sae)
    assert torch.equal(made[0].W_dec, made[1].W_dec)
    assert not torch.equal(made[0].W_dec, made[2].W_dec)


def test_fewer_rows_than_latents_still_give_different_atoms(small, tokens):
    sae = small("topk")
    initialise(sae, tokens(10))
    cosines = sae.W_dec @ sae.W_dec.T - torch.eye(F)
    assert float(cosines.detach().max()) < 0.9999


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.full((50, D), 3.7), "the inputs are constant"),
        (torch.zeros(50, D), "the inputs are constant"),
        (torch.randn(50, D).index_fill_(1, torch.tensor([4]), torch.nan), "1 of 16 input dimensions"),
        (torch.randn(1, D), "at least 2 rows, got 1"),
    ],
    ids=["constant", "zero", "nan", "one row"],
)
def test_inputs_that_cannot_be_normalised_are_refused(small, rows, message):
    with pytest.raises(ValueError, match=message):
        initialise(small("topk"), rows)


def test_codes_pad_with_minus_one_and_survive_every_conversion():
    dense = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    codes = Codes.of(Dense(dense))
    assert codes.indices.tolist() == [[1, 3], [-1, -1], [0, -1]]
    assert codes.values.tolist() == [[2, -1], [0, 0], [3, 0]]
    assert torch.equal(codes.to_dense(), dense)
    assert torch.equal(codes.ragged().to_dense(), dense)
    assert codes.l0().tolist() == [2, 0, 1]
    assert codes.latent(3).tolist() == [-1, 0, 0]
    assert torch.equal(
        Codes.cat([codes, Codes.from_dense(dense[:1]), codes[1:]]).to_dense(), torch.cat([dense, dense[:1], dense[1:]])
    )
    assert Codes.of(Dense(dense), capacity=4).indices.shape == (3, 4)
    with pytest.raises(ValueError, match="one shape"):
        Codes(codes.indices, codes.values[:, :1], 4)
