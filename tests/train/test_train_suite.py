"""Many dictionaries from one stream are what each would be alone, bit for bit."""

import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from visae.ops import make_ops
from visae.sae import kind_options, kinds, make_sae
from visae.train import (
    LoaderEnded,
    Member,
    Planted,
    PlantedConfig,
    Suite,
    TrainConfig,
    Trainer,
    checkpoint,
    read_metrics,
    split_columns,
)  # fmt: skip
from visae.train.shared import Reader, Tee
from visae.train.stacking import cohorts

WORLD = PlantedConfig(d=12, n_features=24, active=3)
COMMON = {
    "steps": 20, "batch": 64, "stat_rows": 256, "log_every": 3, "dead_window": 128, "calibration_rows": 256,
    "checkpoint_every": 10, "device": "cpu",
}  # fmt: skip


def sae(kind, width=64, k=3, **options):
    return make_sae(kind, 12, width, **({"k": k} if "k" in kind_options(kind) else {}), **options)


def mixed(precision, **changes):
    """Two shapes, three products, random numbers, other rates and seeds."""
    common = {**COMMON, "precision": precision, **changes}
    return [
        Member("a", sae("topk"), TrainConfig(seed=0, **common)),
        Member("b", sae("topk"), TrainConfig(seed=1, **common)),
        Member("wide", sae("topk", 128), TrainConfig(**common)),
        Member("k5", sae("batch_topk", k=5), TrainConfig(lr=1e-3, **common)),
        Member("multi", sae("topk", multi=0.125), TrainConfig(lr=3e-3, **common)),
        Member("drawn", sae("matryoshka", sampled=3), TrainConfig(seed=3, **common)),
        Member("noise", sae("vsae"), TrainConfig(seed=4, **common)),
        Member("dense", sae("jumprelu"), TrainConfig(seed=5, **common)),
        Member("white", sae("topk", normaliser="whiten"), TrainConfig(**common)),
    ]


def product_is_the_same():
    """Whether this machine multiplies a batch of matrices with the bits of one matrix; if not, rounding is allowed."""
    x, weight, bias = torch.randn(64, 12), torch.randn(2, 64, 12), torch.randn(2, 1, 64)
    for dtype in (torch.float32, torch.bfloat16):
        both = torch.baddbmm(bias.to(dtype), x.expand(2, -1, -1).to(dtype), weight.to(dtype).transpose(1, 2))
        if not torch.equal(both[1], torch.addmm(bias[1, 0].to(dtype), x.to(dtype), weight[1].to(dtype).T)):
            return False
    return True


TOLERANCE = 0.0 if product_is_the_same() else 1e-5


def assert_same(ours, theirs, what):
    assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=TOLERANCE), what


def same_run(a, b):
    """Two runs left the same bits: weights, moments, random states, place in the stream, metrics."""
    first, second = (checkpoint.load(checkpoint.listing(folder / "checkpoints")[-1]) for folder in (a, b))
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        assert_same(first.tensors[name], second.tensors[name], (a.name, name))
    assert (first.step, first.notes) == (second.step, second.notes)
    for ours, theirs in zip(read_metrics(a), read_metrics(b), strict=True):
        assert ours.keys() == theirs.keys()
        numbers = [k for k in ours if k != "rows_per_second" and isinstance(ours[k], int | float)]
        words = [k for k in ours if not isinstance(ours[k], int | float)]
        assert [ours[k] for k in words] == [theirs[k] for k in words]
        assert [ours[k] for k in numbers] == pytest.approx([theirs[k] for k in numbers], abs=10 * TOLERANCE, rel=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_member_ends_with_the_bits_that_training_it_alone_gives(precision, tmp_path):
    members = mixed(precision)
    held_out = list(islice(Planted(WORLD, 64, part=1), 3))
    result = Suite(members, tmp_path / "suite", progress=False).fit(Planted(WORLD, 64), held_out)
    for member, alone in zip(members, mixed(precision), strict=True):
        expected = Trainer(alone.sae, alone.config, tmp_path / member.name, progress=False).fit(
            Planted(WORLD, 64), held_out
        )
        same_run(tmp_path / "suite" / member.name, tmp_path / member.name)
        for name, tensor in alone.sae.state_dict().items():  # thresholds are calibrated after the last checkpoint
            assert_same(tensor, member.sae.state_dict()[name], (member.name, name))
        assert result.results[member.name].metrics["val_fvu"] == pytest.approx(
            expected.metrics["val_fvu"], abs=TOLERANCE
        )


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_can_be_a_member_and_ends_as_it_would_alone(kind):
    config = TrainConfig(**COMMON)
    pair = [Member("a", sae(kind), config), Member("b", sae(kind), TrainConfig(**{**COMMON, "seed": 1}))]
    Suite(pair, progress=False).fit(Planted(WORLD, 64, needs=sae(kind).needs))
    alone = sae(kind)
    Trainer(alone, config, progress=False).fit(Planted(WORLD, 64, needs=alone.needs))
    for name, tensor in alone.state_dict().items():
        assert_same(tensor, pair[0].sae.state_dict()[name], name)


def test_members_with_and_without_side_information_read_one_stream():
    config = TrainConfig(**COMMON)
    members = [Member(kind, sae(kind), config) for kind in ("topk", "temporal")]
    Suite(members, progress=False).fit(Planted(WORLD, 64, needs=("sigma",)))
    for kind, member in zip(("topk", "temporal"), members, strict=True):
        alone = sae(kind)
        Trainer(alone, config, progress=False).fit(Planted(WORLD, 64, needs=("sigma",)))
        assert_same(alone.W_dec, member.sae.W_dec, kind)


class Counting:
    """A loader that counts what is drawn, and may break off as a crash would."""

    def __init__(self, loader, stop=None):
        self.loader, self.stop, self.drawn = loader, stop, 0

    def __iter__(self):
        for x in self.loader:
            if self.drawn == self.stop:
                raise Stop
            self.drawn += 1
            yield x

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


class Stop(Exception):
    pass


def test_each_batch_is_drawn_once_whatever_the_number_of_members():
    loader = Counting(Planted(WORLD, 64))
    Suite(mixed("fp32"), progress=False).fit(loader)
    assert loader.drawn == 4 + 20 + 4  # statistics (rewound), steps, calibration


def test_a_suite_that_crashed_goes_on_to_the_same_bits(tmp_path):
    Suite(mixed("fp32"), tmp_path / "whole", progress=False).fit(Planted(WORLD, 64))
    with pytest.raises(Stop):
        Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(Counting(Planted(WORLD, 64), 4 + 15))
    with pytest.raises(ValueError, match="holds a run already"):
        Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(Planted(WORLD, 64))
    torch.manual_seed(99)  # the state of the caller must not matter
    resumed = Counting(Planted(WORLD, 64))
    Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(resumed, resume=True)
    assert resumed.drawn == 10 + 4
    for member in mixed("fp32"):
        same_run(tmp_path / "whole" / member.name, tmp_path / "cut" / member.name)


def test_members_resume_from_different_steps_and_new_ones_join(tmp_path):
    """As after a crash between two members' checkpoints, or with a longer sweep."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Suite(mixed("fp32"), whole, progress=False).fit(Planted(WORLD, 64))
    members = mixed("fp32")
    Suite(members[1:5], cut, progress=False).fit(Planted(WORLD, 64))
    shutil.rmtree(checkpoint.listing(cut / "b" / "checkpoints")[-1])  # b stands at 10, a at 0
    loader = Counting(Planted(WORLD, 64))
    Suite(mixed("fp32"), cut, progress=False).fit(loader, resume=True)
    assert loader.drawn == 4 + 20 + 4
    for member in members:
        same_run(whole / member.name, cut / member.name)


def test_a_member_can_go_on_alone(tmp_path):
    Suite(mixed("fp32"), tmp_path / "whole", progress=False).fit(Planted(WORLD, 64))
    with pytest.raises(Stop):
        Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(Counting(Planted(WORLD, 64), 4 + 15))
    one = mixed("fp32")[3]
    Trainer(one.sae, one.config, tmp_path / "cut" / one.name, progress=False).fit(Planted(WORLD, 64), resume=True)
    same_run(tmp_path / "whole" / one.name, tmp_path / "cut" / one.name)


def test_members_without_checkpoints_of_the_stream_are_resumed_too(tmp_path):
    """What can be iterated again has no state: batches used are drawn and dropped, once for all."""

    class Again:
        def __iter__(self):
            return iter(batches)

    batches = list(islice(Planted(WORLD, 64), 7))
    Suite(mixed("fp32"), tmp_path / "whole", progress=False).fit(Again())
    with pytest.raises(LoaderEnded, match="ended after 13 of 20 steps"):
        Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(islice(iter(batches + batches), 13))
    for member in mixed("fp32"):
        assert checkpoint.listing(tmp_path / "cut" / member.name / "checkpoints")[-1].name == "step-000000013"
    Suite(mixed("fp32"), tmp_path / "cut", progress=False).fit(Again(), resume=True)
    for member in mixed("fp32"):
        same_run(tmp_path / "whole" / member.name, tmp_path / "cut" / member.name)


def test_sites_side_by_side_in_one_stream_train_as_streams_of_their_own(tmp_path):
    class Wide(Planted):
        def __iter__(self):
            for x in super().__iter__():
                yield torch.cat([x, x[:, :8] ** 2 + 1], dim=1)

    def members():
        config = TrainConfig(**COMMON)
        return [
            Member("x", sae("batch_topk"), config, site="x"),
            Member("x2", sae("topk"), config, site="x"),
            Member("y", make_sae("batch_topk", 8, 64, k=3), config, site="y"),
        ]

    loader = Counting(Wide(WORLD, 64))
    Suite(members(), tmp_path / "suite", progress=False).fit(split_columns(loader, {"x": 12, "y": 8}))
    assert loader.drawn == 4 + 20 + 4
    for member in members():
        alone = split_columns(Wide(WORLD, 64), {"x": 12, "y": 8})[member.site]
        Trainer(member.sae, member.config, tmp_path / member.name, progress=False).fit(alone)
        same_run(tmp_path / "suite" / member.name, tmp_path / member.name)
    with pytest.raises(Stop):
        Suite(members(), tmp_path / "cut", progress=False).fit(
            split_columns(Counting(Wide(WORLD, 64), 4 + 15), {"x": 12, "y": 8})
        )
    Suite(members(), tmp_path / "cut", progress=False).fit(
        split_columns(Wide(WORLD, 64), {"x": 12, "y": 8}), resume=True
    )
    for member in members():
        same_run(tmp_path / "cut" / member.name, tmp_path / member.name)


def test_a_reader_that_others_have_overtaken_still_sees_its_own_state_and_batches():
    loader = Planted(WORLD, 64)
    source = iter(loader)
    tee = Tee(lambda: next(source), loader.state_dict)
    ahead, behind = Reader(tee), Reader(tee)
    batches = [next(ahead) for _ in range(3)]
    assert torch.equal(next(behind), batches[0])
    assert (tee.state(behind.position), tee.state(ahead.position)) == ({"drawn": 1}, {"drawn": 3})
    ahead.close()
    assert torch.equal(next(behind), batches[1])
    assert loader.drawn == 3


@pytest.mark.parametrize("tier", ["auto", "eager"])
def test_equal_shapes_are_multiplied_in_one_product_over_one_matrix(tier, monkeypatch):
    members = [replace(member, config=replace(member.config, ops=tier)) for member in mixed("fp32")]
    seen, name = [], "baddbmm" if make_ops(tier).product_has_bias else "bmm"
    original = getattr(torch, name)

    def spy(*given, out):
        seen.append((out.shape, {m.name for m in members if shares(m.sae.encoder, given[-1])}))
        return original(*given, out=out)

    def shares(encoder, weights):
        weight = getattr(encoder, "weight", None)
        return weight is not None and weight.untyped_storage().data_ptr() == weights.untyped_storage().data_ptr()

    monkeypatch.setattr(torch, name, spy)
    Suite(members, progress=False).fit(Planted(WORLD, 64))
    assert len(seen) == 2 * 20
    assert seen[0] == (torch.Size([6, 64, 64]), {"a", "b", "k5", "multi", "drawn", "white"})
    assert seen[1] == (torch.Size([1, 64, 128]), {"wide"})
    storages = {member.sae.W_enc.untyped_storage().data_ptr() for member in members}
    assert len(storages) == len(members), "afterwards each has memory of its own"


def test_a_product_that_would_not_fit_is_made_in_parts(monkeypatch):
    monkeypatch.setattr("visae.train.stacking.CELLS", 2 * 64 * 64)
    groups = cohorts(mixed("fp32"), torch.device("cpu"))
    sizes = [len(one.members) for one in groups if one.stack is not None]
    assert sizes == [2, 2, 2, 1]


def test_a_member_that_diverges_is_given_up_and_the_others_go_on(tmp_path):
    members = [*mixed("fp32")[:2], Member("wild", sae("relu_l1"), TrainConfig(lr=1e30, **COMMON))]
    result = Suite(members, tmp_path, progress=False).fit(Planted(WORLD, 64))
    assert set(result.results) == {"a", "b"}
    assert "no longer finite" in result.failed["wild"]
    with pytest.raises(FloatingPointError, match="every member failed"):
        Suite([Member("wild", sae("relu_l1"), members[2].config)], progress=False).fit(Planted(WORLD, 64))


def test_a_member_that_stops_early_leaves_the_others_to_go_on(tmp_path):
    """Its thresholds are calibrated on batches that the others have yet to train on."""
    held_out = list(islice(Planted(WORLD, 64, part=1), 3))

    def members():
        still = {**COMMON, "validate_every": 4, "patience": 1, "lr": 1e-30}
        early = Member("early", sae("batch_topk"), TrainConfig(**still))
        late = {**COMMON, "validate_every": 4, "best": True, "ema": 0.9, "checkpoint_every": 7}
        return [early, Member("late", sae("topk"), TrainConfig(**late))]

    result = Suite(members(), tmp_path / "suite", progress=False).fit(Planted(WORLD, 64), held_out)
    assert result.results["early"].steps < 20
    assert result.results["late"].steps == 20
    for member in members():
        expected = Trainer(member.sae, member.config, tmp_path / member.name, progress=False).fit(
            Planted(WORLD, 64), held_out
        )
        same_run(tmp_path / "suite" / member.name, tmp_path / member.name)
        assert result.results[member.name].metrics["val_fvu"] == pytest.approx(
            expected.metrics["val_fvu"], abs=TOLERANCE
        )
    again = Suite(members(), tmp_path / "suite", progress=False).fit(Planted(WORLD, 64), held_out, resume=True)
    assert {name: one.steps for name, one in again.results.items()} == {
        name: one.steps for name, one in result.results.items()
    }


def test_members_that_cannot_share_a_stream_are_refused_by_name():
    a, b = mixed("fp32")[:2]
    with pytest.raises(ValueError, match="several are called a"):
        Suite([a, a])
    other = Member("c", sae("topk"), TrainConfig(**{**COMMON, "batch": 32}))
    with pytest.raises(ValueError, match="batch must agree: 64 of a, 32 of c"):
        Suite([a, other])
    with pytest.raises(ValueError, match="at least one member"):
        Suite([])
    there = Member("c", sae("topk"), b.config, site="elsewhere")
    with pytest.raises(ValueError, match="give a loader for each"):
        Suite([a, there], progress=False).fit(Planted(WORLD, 64))
    with pytest.raises(ValueError, match="no loader for site 'elsewhere'"):
        Suite([a, there], progress=False).fit({"": Planted(WORLD, 64)})
