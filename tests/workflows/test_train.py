"""`visae train` and `visae specialise` from images to card: costs first, schemes, warnings, where it came from."""

import json

import pytest

from visae.sae import load_sae
from visae.train import read_metrics, resuming
from visae.workflows import Schemes, specialise, train
from visae.workflows.options import kind_choices

COMMON = {
    "model": "visae:tiny-vit", "data": "world:train?n=48&objects=1", "validation": "world:validation?n=24&objects=1",
    "latents": 64, "passes": 3, "batch": 256, "device": "cpu", "checkpoint_every": 10, "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "run"
    schemes = Schemes(start_k=16, ema=0.9, validate_every=8, best=True, patience=9)
    return train(out, k=4, schemes=schemes, **COMMON)


def test_costs_are_told_before_anything_is_extracted(tmp_path, capsys):
    train(tmp_path / "run", k=4, **COMMON)
    told = capsys.readouterr().err.splitlines()
    training, activations = (
        next(i for i, line in enumerate(told) if line.startswith(f"{name}: ")) for name in ("training", "activations")
    )
    assert training < activations
    rows = 3 * 48 * 64
    assert told[training].startswith(f"training: {-(-rows // 256)} steps on {rows:,} rows, 64 latents: ")
    assert " of memory; about " in told[training]


def test_costs_of_a_run_that_goes_on_are_those_of_what_is_left(tmp_path, capsys, monkeypatch):
    save, options = resuming.save, COMMON | {"checkpoint_every": 7}

    def stopping(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", k=4, **options)
    capsys.readouterr()
    train(tmp_path / "run", k=4, **options)
    (told,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("training"))
    left = 3 * 48 * 64 - 7 * 256
    assert told.startswith(f"training, {7 * 256:,} rows done: {-(-left // 256)} steps on {left:,} rows, 64 latents: ")


def test_schemes_are_in_the_card_and_did_what_they_say(made):
    card, lines = made.run.card, read_metrics(made.run.folder)
    assert (card.training["config"]["ema"], card.training["config"]["start_k"]) == (0.9, 16)
    looks = [line for line in lines if "val_fvu" in line and not line.get("final")]
    assert [line["step"] for line in looks] == list(range(8, card.training["steps"] + 1, 8))
    assert any(line.get("best") for line in looks)
    assert list((made.run.folder / "checkpoints").glob("best-*"))
    assert json.loads((made.run.folder / "run.json").read_text())["schemes"]["start_k"] == 16


def test_the_same_command_again_trains_nothing_and_another_one_is_refused(made, capsys):
    schemes = Schemes(start_k=16, ema=0.9, validate_every=8, best=True, patience=9)
    before = (made.run.folder / "sae.safetensors").stat().st_mtime_ns
    again = train(made.run.folder, k=4, schemes=schemes, **COMMON)
    assert again.metrics == made.metrics
    assert (made.run.folder / "sae.safetensors").stat().st_mtime_ns == before
    assert "training:" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"schemes: .*'ema': 0.9.* then, .*'ema': 0.5.* now"):
        train(made.run.folder, k=4, schemes=Schemes(ema=0.5), **COMMON)


def test_warnings_are_in_the_card_and_in_the_summary(made):
    warnings = made.run.card.training["warnings"]
    few = next(w["found"] for w in warnings if (w["name"], w["stage"]) == ("few-rows", "start"))
    assert few.startswith(f"{48 * 64:,} different rows, seen 3.0 times, for 64 latents are 48 for each")
    assert all(warning["found"] for warning in warnings)
    names = ", ".join(dict.fromkeys(warning["name"] for warning in warnings))
    assert (f"warned of: {names} (sae.json says more)" in str(made)) == bool(warnings)


def test_dense_latents_on_held_out_images_are_warned_of(tmp_path):
    dense = train(tmp_path / "dense", k=24, **(COMMON | {"passes": 1}))
    found = {(w["name"], w["stage"]) for w in dense.run.card.training["warnings"]}
    assert {("few-rows", "start"), ("dense", "held-out")} <= found
    assert "warned of: few-rows" in str(dense)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "topk", "options": {"aux": "much"}}, "option aux of kind 'topk' cannot be 'much'"),
        ({"kind": "topk", "k": 4.5}, "option k of kind 'topk' cannot be 4.5"),
        ({"kind": "topk", "schemes": Schemes(resample_every=5)}, "'topk' cannot be resampled"),
        ({"kind": "relu_l1", "schemes": Schemes(start_k=8)}, "'relu_l1' has no number of codes to anneal"),
        ({"schemes": Schemes(patience=3)}, "set validate_every"),
    ],
)
def test_what_a_kind_cannot_have_is_refused_before_anything_is_computed(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **(COMMON | changes))
    assert not (tmp_path / "run" / "activations").exists()


def test_options_of_a_kind_come_with_the_type_that_it_wants():
    assert kind_choices("topk", 8.0, {"k_aux": 64.0, "aux": 0.1}) == {"k": 8, "k_aux": 64, "aux": 0.1}
    assert kind_choices("batch_topk", 7.5, {}) == {"k": 7.5}
    assert kind_choices("relu_l1", 8, {"penalty": "tanh"}) == {"penalty": "tanh"}
    assert kind_choices("matryoshka", 8, {"groups": "[0.5, 0.5]"})["groups"] == (0.5, 0.5)


def test_a_specialised_dictionary_comes_from_its_general_one(made, tmp_path):
    images = "world:train?n=12&objects=1&seed=5"
    settings = {"data": images, "validation": images, "passes": 4, "batch": 256, "device": "cpu", "workers": 0}
    special = specialise(made.run.folder, tmp_path / "special", tilt=1.0, **settings)
    general, card = made.run.card, special.run.card
    assert card.training["specialised_from"]["weights"] == general.weights != card.weights
    assert card.training["specialised_from"]["training"] == general.training
    assert (card.site, card.model, card.options) == (general.site, general.model, general.options)
    assert (card.training["config"]["start"], card.training["config"]["tilt"]) == ("given", 1.0)
    first, second = load_sae(made.run.folder), load_sae(special.run.folder)
    assert first.mean.equal(second.mean)
    assert special.metrics["fvu"] < 1
    assert specialise(made.run.folder, tmp_path / "special", tilt=1.0, **settings).metrics == special.metrics
