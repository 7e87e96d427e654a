"""Several dictionaries as one: a bag is the concatenated dictionary, a boost adds up what each finds in the rest."""

import pytest
import torch

from visae.evaluate import evaluate_sae
from visae.sae import Ensemble, initialise, load_card, load_sae, make_sae, save_sae
from visae.train import Planted, PlantedConfig

WORLD = Planted(PlantedConfig(d=12, n_features=24, active=3), 256)
FORMS = [
    ("topk", "scale", {"k": 3}),
    ("batch_topk", "whiten", {"k": 2.5}),
    ("relu_l1", "none", {}),
    ("abs_topk", "scale", {"k": 2}),
]


def ready(kind, normaliser, options, seed=0, width=32):
    sae = make_sae(kind, 12, width, normaliser=normaliser, **options)
    x = WORLD.sample(2048, 7)[0]
    initialise(sae, x, seed=seed)
    if sae.activation.calibrates:
        sae.calibrate([x])
    return sae.eval().requires_grad_(False)


@pytest.fixture
def members():
    return [ready(*form, seed=i, width=32 + 8 * i) for i, form in enumerate(FORMS)]


@pytest.fixture
def x():
    return WORLD.sample(300, 1)[0]


def test_a_bag_is_the_mean_of_its_members_and_the_concatenated_dictionary_with_codes_over_j(members, x):
    bag = Ensemble("bag", members)
    mean = sum(member(x) for member in members) / len(members)
    torch.testing.assert_close(bag(x), mean, atol=1e-6, rtol=1e-6)
    codes = torch.cat([member.encode(x).to_dense() for member in members], dim=1) / len(members)
    torch.testing.assert_close(bag.encode(x).to_dense(), codes, atol=1e-6, rtol=0)
    atoms = torch.cat([member.directions() for member in members])
    empty = sum(member.decode(member.encode(x[:1]).silent()) for member in members) / len(members)
    torch.testing.assert_close(bag(x), codes @ atoms + empty, atol=1e-6, rtol=1e-6)
    assert bag.n_latents == len(bag.directions()) == 32 + 40 + 48 + 56
    assert bag.signed


def test_a_boost_adds_what_each_member_finds_in_what_the_others_left(members, x):
    boost = Ensemble("boost", members)
    left, found = x, torch.zeros_like(x)
    for member in members:
        found = found + member(left)
        left = left - member(left)
    torch.testing.assert_close(boost(x), found, atol=1e-5, rtol=1e-5)
    turned = Ensemble("boost", members[::-1])
    assert not torch.allclose(turned(x), boost(x), atol=1e-3)


@pytest.mark.parametrize("kind", ["bag", "boost"])
def test_an_ensemble_saves_loads_and_is_measured_like_a_dictionary(kind, members, x, tmp_path):
    ensemble = Ensemble(kind, [members[0].fold(), *members[1:]])
    save_sae(ensemble, tmp_path)
    again = load_sae(tmp_path)
    assert isinstance(again, Ensemble)
    codes, other = ensemble.encode(x), again.encode(x)
    assert torch.equal(codes.indices, other.indices)
    torch.testing.assert_close(codes.values, other.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(ensemble(x), again(x), atol=1e-6, rtol=1e-6)
    assert [one["kind"] for one in load_card(tmp_path).options["members"]] == [form[0] for form in FORMS]
    metrics = evaluate_sae(again, [x])
    assert metrics.fvu == pytest.approx(evaluate_sae(ensemble, [x]).fvu, abs=1e-6)
    assert metrics.l0 == pytest.approx(float(codes.l0().double().mean()))
    again.dictionaries[1].decoder.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        save_sae(again, tmp_path)


def test_a_batch_of_one_and_no_code_at_all_work(members, x):
    for kind in ("bag", "boost"):
        ensemble = Ensemble(kind, members)
        whole = ensemble(x)
        torch.testing.assert_close(ensemble(x[5:6]), whole[5:6], atol=1e-5, rtol=1e-5)
        assert ensemble.decode(ensemble.encode(x).silent()).shape == x.shape


def test_what_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="at least one dictionary"):
        Ensemble("bag", [])
    with pytest.raises(ValueError, match=r"one space, got tokens of \[12, 8\]"):
        Ensemble("bag", [make_sae("topk", 12, 16, k=2), make_sae("topk", 8, 16, k=2)])
    with pytest.raises(ValueError, match="normaliser 'unit'"):
        Ensemble("boost", [make_sae("topk", 12, 16, k=2, normaliser="unit")])
    with pytest.raises(ValueError, match="temporal dictionary with sigma"):
        Ensemble("bag", [make_sae("temporal", 12, 16, k=2)])
