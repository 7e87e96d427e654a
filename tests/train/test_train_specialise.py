"""Rare concepts: a dictionary fine-tuned on what lies near a few examples finds them; a tilted loss alone does not."""

import pytest
import torch
from torch.nn.functional import normalize

from visae.sae import Card, make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, recovery, specialise

WORLD = PlantedConfig(d=32, n_features=128, active=4, zipf=1.0)
RARE = (80, 90, 100)
"""Features on fewer than one token in a hundred, of which a narrow dictionary finds none."""


def config(steps=450, **changes):
    return TrainConfig(**{"steps": steps, "batch": 256, "stat_rows": 2048, "device": "cpu", "lr": 3e-3, **changes})


def general(tilt=0.0):
    sae = make_sae("topk", 32, 64, k=4)
    Trainer(sae, config(tilt=tilt), progress=False).fit(Planted(WORLD, 256))
    return sae


def f1(fires, truth):
    return 2 * (fires & truth).sum(0).double() / (fires.sum(0) + truth.sum(0)).clamp_min(1)


@torch.no_grad()
def best_f1(sae, chosen, measured):
    """F1 of the latent and threshold that tell the concept best on one set of tokens, on another."""
    (x, truth), (held_out, its) = chosen, measured
    codes = sae.encode(x).to_dense()
    cuts = codes.amax(0) * torch.linspace(0, 0.9, 19)[:, None]
    found = torch.stack([f1(codes > cut, truth[:, None]) for cut in cuts])
    cut, latent = divmod(int(found.argmax()), codes.shape[1])
    return float(f1(sae.encode(held_out).latent(latent) > cuts[cut, latent], its))


@pytest.fixture(scope="module")
def world():
    (x, codes), (held_out, its) = (Planted(WORLD, part=part).sample(15_000) for part in (3, 4))
    return {i: ((x, codes[:, i] > 0), (held_out, its[:, i] > 0)) for i in RARE}


@pytest.fixture(scope="module")
def plain():
    return general()


def near(x, truth, n=400):
    """Tokens nearest to twenty examples of a concept, by cosine from the mean."""
    centred = x - x.mean(0)
    examples = centred[truth.nonzero()[:20, 0]].mean(0)
    found = (normalize(centred, dim=1) @ normalize(examples, dim=0)).topk(n).indices
    assert truth[found].double().mean() > 5 * truth.double().mean()
    order = torch.Generator().manual_seed(0)
    return [x[found[torch.randint(n, (256,), generator=order)]] for _ in range(80)]


def test_retrieval_and_fine_tuning_find_what_is_rare_and_tilt_alone_does_not(plain, world):
    tilted, before = general(tilt=5.0), recovery(plain, Planted(WORLD).features)
    gains, losses = [], []
    for chosen, measured in world.values():
        batches = near(*chosen)
        special, _ = specialise(plain, batches, config(80, lr=None, dead_window=2560, stat_rows=400), progress=False)
        base = best_f1(plain, chosen, measured)
        gains.append(best_f1(special, chosen, measured) - base)
        losses.append(best_f1(tilted, chosen, measured) - base)
    assert sum(gains) / len(gains) >= 0.1
    assert min(gains) > 0
    assert sum(losses) / len(losses) < 0
    assert recovery(tilted, Planted(WORLD).features)["mmcs"] < before["mmcs"] - 0.03


def test_a_specialised_dictionary_keeps_its_statistics_and_says_where_it_comes_from(plain, world, tmp_path):
    chosen, _ = world[RARE[0]]
    plain.card = Card("topk", 32, 64, options=plain.options, weights="abc", training={"steps": 450}, data={"name": "w"})
    was = {name: t.clone() for name, t in plain.state_dict().items()}
    settings = config(12, lr=None, tilt=2.0, checkpoint_every=4, stat_rows=400)
    special, result = specialise(plain, near(*chosen), settings, out=tmp_path, progress=False)
    assert all(torch.equal(t, was[name]) for name, t in plain.state_dict().items()), "the general one is not touched"
    assert torch.equal(special.mean, plain.mean)
    assert not torch.equal(special.W_dec, plain.W_dec)
    assert (special.W_dec - plain.W_dec).norm() < 0.5 * plain.W_dec.norm()
    card = special.card
    assert card.training["specialised_from"] == {"weights": "abc", "data": {"name": "w"}, "training": {"steps": 450}}
    assert (card.training["config"]["start"], card.training["config"]["tilt"]) == ("given", 2.0)
    assert 0 < card.training["config"]["lr"] < 0.01
    assert (card.training["steps"], result.steps, card.metrics) == (12, 12, {})
    again, _ = specialise(plain, near(*chosen), settings, out=tmp_path, resume=True, progress=False)
    assert torch.equal(again.W_dec, special.W_dec)


def test_a_dictionary_without_weights_cannot_be_specialised():
    with pytest.raises(ValueError, match="goes on from trained weights"):
        specialise(make_sae("topk", 32, 64), Planted(WORLD, 256), config(5), progress=False)
