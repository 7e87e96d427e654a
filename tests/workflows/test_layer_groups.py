"""One dictionary per group of layers, each layer with its own folder and scale."""

import json

import pytest
import torch

from visae.evaluate import evaluate_sae
from visae.sae import load_sae
from visae.store import Stream
from visae.train import Suite
from visae.workflows import layer_groups
from visae.workflows.run import Run

LAYERS = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
COMMON = {
    "model": "visae:tiny-vit", "layers": tuple(LAYERS), "data": "world:train?n=60&objects=1", "k": 8, "latents": 192,
    "validation": "world:validation?n=20&objects=1", "passes": 12, "batch": 256, "device": "cpu", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return layer_groups(tmp_path_factory.mktemp("layers") / "run", groups=2, compare=True, **COMMON)


def test_neighbours_share_a_dictionary_at_half_the_steps_and_little_loss(made):
    assert [name for group in made.groups for name in group] == LAYERS
    assert len(made.groups) == 2
    assert made.amad == sorted(made.amad, reverse=True)
    assert made.amad[-1] == 0
    ratios = list(made.ratios.values())
    assert sum(ratios) / 4 < 1.25
    steps = [Run(made.folder / name, {}).card.training["steps"] for name in (LAYERS[0], f"alone/{LAYERS[0]}")]
    assert steps[0] == steps[1], "a group's dictionary is trained as long as a layer's own, and there are half as many"
    assert all(seconds > 0 for seconds in made.seconds)
    text = str(made)
    for word in ("AMAD by number of groups: 1:", "alone", "FVU against a dictionary per layer", "training took"):
        assert word in text
    assert json.loads((made.folder / "layers.json").read_text())["groups"] == made.groups


def test_layers_of_a_group_have_one_set_of_weights_and_a_scale_of_their_own(made):
    group = max(made.groups, key=len)
    saes = [load_sae(made.folder / name, model="visae:tiny-vit", site=name) for name in group]
    assert torch.equal(saes[0].W_dec, saes[1].W_dec)
    assert not torch.equal(saes[0].mean, saes[1].mean)
    for name, sae in zip(group, saes, strict=True):
        run = Run.open(made.folder / name)
        stream = Stream(run.model(), name, run.data(), dtype="float32", workers=0)
        u = torch.cat([sae.normalise(chunk.rows) for chunk in stream.chunks()])
        assert float(u.mean(0).abs().max()) < 0.05
        assert float(u.square().sum(1).mean()) == pytest.approx(sae.d, rel=0.02)
        assert run.card.metrics["fvu"] == made.fvu[name]
        assert evaluate_sae(sae, stream.chunks()).fvu < 2 * made.fvu[name]


def test_the_same_command_again_trains_nothing(made, monkeypatch):
    monkeypatch.delattr(Suite, "fit")
    again = layer_groups(made.folder, groups=2, compare=True, **COMMON)
    assert (again.fvu, again.alone, again.groups) == (made.fvu, made.alone, made.groups)
    assert again.seconds == (None, None)


def test_a_stream_of_all_layers_serves_the_groups_and_amad_chooses_their_number(made, tmp_path):
    limit = (made.amad[1] + made.amad[2]) / 2
    streamed = layer_groups(tmp_path / "run", amad=limit, stream=True, **{**COMMON, "passes": 6})
    assert len(streamed.groups) == 3
    assert not (tmp_path / "run" / "activations").exists()
    assert streamed.alone == {}
    for name in LAYERS:
        assert streamed.fvu[name] < 1.5 * made.fvu[name]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="between 1 and 4 groups, asked for 9"):
        layer_groups(tmp_path / "run", groups=9, **COMMON)
    with pytest.raises(ValueError, match="k is the number of codes per token"):
        layer_groups(tmp_path / "other", groups=2, **{**COMMON, "k": 300})
