"""Dictionaries that are trained for one another: drawn together (mfr), on what others left (boost), averaged (bag)."""

import shutil
import sys
from itertools import islice

import pytest
import torch

from visae.evaluate import evaluate_sae, stability
from visae.sae import Ensemble, load_sae, make_sae, save_sae
from visae.sae.penalties import Mutual
from visae.train import Member, Planted, PlantedConfig, Suite, TrainConfig, Trainer, boost, checkpoint, recovery
from visae.train.shared import left_over

WORLD = PlantedConfig(d=32, n_features=64, active=4)
HELD_OUT = [Planted(WORLD, 512).sample(4096, 10_000)[0]]
COMMON = {"steps": 200, "batch": 256, "stat_rows": 2048, "calibration_rows": 2048, "device": "cpu", "precision": "fp32"}


def pair(kind="topk", k=4, width=128, seeds=(0, 1), **config):
    settings = {**COMMON, **config}
    return [Member(f"s{s}", make_sae(kind, 32, width, k=k), TrainConfig(seed=s, **settings)) for s in seeds]


def trained(members, out=None, **options):
    Suite(members, out, progress=False).fit(Planted(WORLD, members[0].config.batch), **options)
    return [member.sae for member in members]


@pytest.fixture(scope="module")
def independent():
    return trained(pair())


def dense_mfr(own, other):
    """The formula on the whole matrix of cosines."""
    own, other = (torch.nn.functional.normalize(rows, dim=1) for rows in (own, other))
    cosines = own @ other.T
    return 1 - (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2


def test_the_penalty_is_the_formula_in_value_and_gradient_and_leaves_peers_alone(monkeypatch):
    monkeypatch.setattr(sys.modules["visae.ops.nearest"], "CELLS", 500)
    sae, *peers = [make_sae("topk", 32, width, k=4).double() for width in (64, 48, 80)]
    for i, one in enumerate((sae, *peers)):
        one.decoder.weight.data = torch.randn(one.W_dec.shape, generator=torch.Generator().manual_seed(i)).double()
    penalty = Mutual(0.3, [peer.decoder for peer in peers], warmup=0.0)
    run = type("Run", (), {"sae": sae, "progress": 1.0})
    term = penalty(run)
    expected = 0.3 * sum(dense_mfr(sae.W_dec, peer.W_dec.detach()) for peer in peers) / 2
    torch.testing.assert_close(term, expected)
    (ours,) = torch.autograd.grad(term, sae.decoder.weight)
    (theirs,) = torch.autograd.grad(expected, sae.decoder.weight)
    torch.testing.assert_close(ours, theirs)
    assert all(peer.decoder.weight.grad is None for peer in peers)
    run.progress, penalty.warmup = 0.01, 0.05
    torch.testing.assert_close(penalty(run), 0.2 * expected)


def test_signed_dictionaries_are_near_their_negatives():
    sae, peer = make_sae("abs_topk", 32, 16, k=2), make_sae("abs_topk", 32, 16, k=2)
    peer.decoder.weight.data = torch.randn(16, 32)
    sae.decoder.weight.data = -peer.decoder.weight.data
    run = type("Run", (), {"sae": sae, "progress": 1.0})
    assert float(Mutual(1.0, [peer.decoder])(run).detach()) == pytest.approx(0, abs=1e-6)


def test_mfr_makes_seeds_agree_and_finds_the_truth_as_well_as_independent_training(independent):
    drawn = trained(pair(mfr=0.03))
    features = Planted(WORLD, 1).features
    apart, near = stability(*independent), stability(*drawn)
    assert near.shared > apart.shared + 0.1
    assert near.mmcs > apart.mmcs + 0.05
    for one, other in zip(drawn, independent, strict=True):
        assert recovery(one, features)["mmcs"] >= recovery(other, features)["mmcs"] - 0.01
        assert evaluate_sae(one, HELD_OUT).fvu <= 1.05 * evaluate_sae(other, HELD_OUT).fvu
        assert len(one.penalties) == len(other.penalties), "the penalty goes when the training is over"


def test_two_seeds_share_what_they_learnt_but_not_their_dead_latents(independent):
    density = [evaluate_sae(sae, HELD_OUT).density for sae in independent]
    found = stability(*independent, density)
    assert found.shared < 0.7
    assert found.shared_alive > 0.85
    assert found.alive[0] < 0.7 * 128


def test_mfr_without_a_peer_is_refused():
    with pytest.raises(ValueError, match=r"s0 has mfr=0\.1 but no peer"):
        trained(pair(mfr=0.1, seeds=(0,)))
    alone = pair(mfr=0.1)[0]
    with pytest.raises(ValueError, match="train several in a Suite"):
        Trainer(alone.sae, alone.config, progress=False)
    mixed = [*pair(mfr=0.1, seeds=(0,)), Member("other", make_sae("topk", 32, 64, k=4), pair(mfr=0.1)[1].config)]
    with pytest.raises(ValueError, match="no peer"):
        trained(mixed)


class Crash(Exception):
    pass


def test_peers_resume_from_a_step_that_all_of_them_have(tmp_path):
    few = {"mfr": 0.1, "steps": 30, "batch": 64, "stat_rows": 256, "checkpoint_every": 10}
    whole = trained(pair(**few), tmp_path / "whole")

    class Breaks(Planted):
        def __iter__(self):
            for x in super().__iter__():
                if self.drawn == 26:
                    raise Crash
                yield x

    with pytest.raises(Crash):
        Suite(pair(**few), tmp_path / "cut", progress=False).fit(Breaks(WORLD, 64))
    newest = checkpoint.listing(tmp_path / "cut" / "s1" / "checkpoints")[-1]
    assert newest.name == "step-000000020"
    shutil.rmtree(newest)  # as if the crash had come between the two members' checkpoints
    again = trained(pair(**few), tmp_path / "cut", resume=True)
    for one, other in zip(whole, again, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_each_stage_of_a_boost_lowers_fvu_and_beats_one_dictionary_of_the_same_total_l0(tmp_path):
    boosted = boost(
        lambda _: make_sae("topk", 32, 128, k=2), lambda: Planted(WORLD, 256), TrainConfig(**COMMON), 3, tmp_path,
        progress=False,
    )  # fmt: skip
    fvu = [evaluate_sae(Ensemble("boost", boosted.dictionaries[:j]), HELD_OUT).fvu for j in (1, 2, 3)]
    assert fvu[1] < 0.5 * fvu[0]
    assert fvu[2] < fvu[1]
    measured = evaluate_sae(Ensemble("boost", boosted.dictionaries[:2]), HELD_OUT)
    (one,) = trained(pair(k=4, width=256, seeds=(0,)))
    single = evaluate_sae(one, HELD_OUT)
    assert measured.l0 == pytest.approx(single.l0, abs=0.05)
    assert measured.fvu < single.fvu
    save_sae(boosted, tmp_path / "boost")
    assert evaluate_sae(load_sae(tmp_path / "boost"), HELD_OUT).fvu == pytest.approx(fvu[2], rel=1e-5)
    assert len(checkpoint.listing(tmp_path / "stage-2" / "checkpoints")) >= 1


def test_a_bag_gains_little_for_its_codes(independent):
    """The negative result: averaging seeds hardly helps TopK, while as many codes in one dictionary do."""
    bag = evaluate_sae(Ensemble("bag", independent), HELD_OUT)
    one = evaluate_sae(independent[0], HELD_OUT)
    (wide,) = trained(pair(k=8, seeds=(0,)))
    assert bag.l0 == pytest.approx(2 * one.l0, abs=0.01)
    assert 0.9 * one.fvu < bag.fvu <= one.fvu
    assert evaluate_sae(wide, HELD_OUT).fvu < bag.fvu


def test_a_stage_trains_on_what_the_others_left_as_on_a_stream_of_it(independent):
    first = independent[0]
    few = {**COMMON, "steps": 20, "ops": "eager"}

    class Left(Planted):
        def __iter__(self):
            return (left_over(x, [first]) for x in super().__iter__())

    config = TrainConfig(**few)
    held_out = list(islice(Planted(WORLD, 256, part=1), 2))
    inside = Member("inside", make_sae("batch_topk", 32, 64, k=2), config, after=(first,))
    result = Suite([inside], progress=False).fit(Planted(WORLD, 256), held_out)
    alone = make_sae("batch_topk", 32, 64, k=2)
    expected = Trainer(alone, config, progress=False).fit(Left(WORLD, 256), [left_over(x, [first]) for x in held_out])
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, inside.sae.state_dict()[name], atol=1e-5, rtol=0)
    assert result.results["inside"].metrics["val_fvu"] == pytest.approx(expected.metrics["val_fvu"], rel=1e-4)
    with pytest.raises(ValueError, match="at least one stage"):
        boost(lambda _: alone, lambda: Planted(WORLD, 256), config, 0)
