"""As many codes as a token needs: the price of a code, and what a probe makes of it."""

import pytest
import torch

from visae.ops import Dense, Eager, Pattern, Ragged, Reference
from visae.sae import make_sae
from visae.sae.adaptive import AdaptiveTopK
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

WORLD = PlantedConfig(d=32, n_features=64, active=(1, 12))


def train(kind, steps=250, **options):
    sae = make_sae(kind, 32, 128, k=6, **options)
    held_out = Planted(WORLD, part=1).sample(8192)[0]
    config = TrainConfig(steps=steps, batch=512, stat_rows=4096, device="cpu", calibration_rows=8192, log_every=250)
    return sae, Trainer(sae, config, progress=False).fit(Planted(WORLD, 512), [held_out]).metrics


@pytest.fixture(scope="module")
def trained():
    return train("adaptive_k")


def test_where_tokens_hold_1_to_12_features_it_pays_to_give_each_what_it_needs(trained):
    _, plain = train("topk")
    sae, metrics = trained
    assert metrics["val_fvu"] <= 0.7 * plain["val_fvu"]
    x, true = Planted(WORLD, part=2).sample(8192)
    needed = sae.encode(x).l0().double()
    assert float(needed.mean()) == pytest.approx(6, rel=0.03)
    assert float(torch.corrcoef(torch.stack([needed, (true > 0).sum(1).double()]))[0, 1]) > 0.8


def test_a_probe_guesses_what_tokens_need_with_as_many_codes_on_average(trained):
    sae, metrics = trained
    probed = make_sae("adaptive_k", 32, 128, k=6, by="probe")
    probed.load_state_dict(sae.state_dict())
    probed.eval().calibrate([Planted(WORLD, part=1).sample(8192)[0]])
    x = Planted(WORLD, part=2).sample(8192)[0]
    needed, guessed = (made.encode(x).l0().double() for made in (sae, probed))
    assert float(guessed.mean()) == pytest.approx(6, rel=0.03)
    assert float(torch.corrcoef(torch.stack([needed, guessed]))[0, 1]) > 0.6
    error = float((x - probed(x)).detach().square().sum() / (x - x.mean(0)).square().sum())
    assert metrics["val_fvu"] < error < 1.6 * metrics["val_fvu"]


@pytest.mark.parametrize("ops", [Eager(), Reference()], ids=lambda ops: ops.name)
def test_a_batch_in_training_has_k_codes_per_token_on_average_within_the_limits(ops, trained):
    x = Planted(WORLD).sample(1000)[0]
    for k, k_min, k_max in ((6, 1, 12), (2.5, 0, 40), (6, 5, 8)):
        sae = make_sae("adaptive_k", 32, 128, k=k, k_min=k_min, k_max=k_max)
        sae.load_state_dict(trained[0].state_dict())
        codes = sae.train().losses(x, ops).codes
        counts = (codes.to_dense() != 0).sum(1)
        assert float(counts.double().mean()) == pytest.approx(k, rel=0.02)
        assert k_min <= int(counts.min()) < int(counts.max()) <= k_max


def test_a_higher_price_buys_fewer_codes_and_none_is_worth_an_infinite_one():
    errors = torch.tensor([[0.0, -5.0, -7.0, -7.5], [0.0, -0.5, -4.5, -4.6]])
    part = AdaptiveTopK(1, 8, 4, 0, 3, "error")
    found = [part._worth(errors, torch.tensor(price)).tolist() for price in (0.0, 0.2, 1.0, 2.1, 3.0, 9.0)]
    assert found == [[3, 3], [3, 2], [2, 2], [1, 2], [1, 0], [0, 0]]


def test_limits_out_of_order_and_other_ways_are_refused():
    for options in ({"k": 4, "k_max": 3}, {"k": 4, "k_max": 65}, {"k": 4, "k_min": -1}):
        with pytest.raises(ValueError, match=r"k_min <= k <= k_max <= n_latents = 64"):
            make_sae("adaptive_k", 16, 64, **options)
    with pytest.raises(ValueError, match="by is error or probe, got 'label'"):
        make_sae("adaptive_k", 16, 64, k=4, by="label")
    with pytest.raises(ValueError, match="at least one batch of held-out tokens, got none"):
        make_sae("adaptive_k", 16, 64, k=4).calibrate([])


def test_codes_are_cut_by_rank_row_by_row_and_padded_by_size():
    dense = torch.tensor([[0.0, 3.0, -5.0, 1.0], [2.0, 0.0, 0.0, 0.0], [1.0, 4.0, 2.0, 3.0]])
    pattern = Pattern.of_mask(dense != 0)
    for codes in (Dense(dense), Ragged(pattern, dense[pattern.rows, pattern.columns])):
        kept = codes.ranked(0, torch.tensor([2, 1, 0])).to_dense()
        assert kept.tolist() == [[0, 3, -5, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
        columns, values = codes.padded(2)
        assert values.tolist() == [[-5, 3], [2, 0], [4, 3]]
        assert columns[0].tolist() == [2, 1]
        assert columns[2].tolist() == [1, 3]
