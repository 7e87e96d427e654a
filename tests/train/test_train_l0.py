"""A dictionary that aims at k codes per token has k on tokens that it never saw, for every kind."""

import pytest
import torch

from visae import load_data, load_model
from visae.sae import kind_options, kinds, make_sae
from visae.store import Stream
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

K = 3
WORLD = PlantedConfig(d=16, n_features=32, active=3, zipf=0.5)
AIMING = [kind for kind in kinds() if "k" in kind_options(kind)]


def fitted(sae, loader, held_out, steps, **changes):
    settings = {"batch": 256, "stat_rows": 2048, "device": "cpu", "calibration_rows": 16_384, "log_every": steps}
    config = TrainConfig(steps=steps, **{**settings, **changes})
    return Trainer(sae, config, progress=False).fit(loader, held_out).metrics


@pytest.mark.parametrize("kind", AIMING)
def test_tokens_that_were_never_seen_get_k_codes(kind):
    sae = make_sae(kind, 16, 64, k=K)
    fitted(sae, Planted(WORLD, 256, needs=sae.needs), None, 120)
    x = Planted(WORLD, part=1, needs=sae.needs).rows(8192)
    assert float(sae.encode(x).l0().double().mean()) == pytest.approx(K, rel=0.03)


@pytest.fixture(scope="module")
def images():
    """Tokens of the shipped model on images, to train on and held out."""
    model = load_model("visae:tiny-vit")
    parts = [load_data(f"world:{part}&objects=1") for part in ("train?n=60", "validation?n=30")]
    streams = [Stream(model, "blocks.1", part, workers=0, dtype="float32") for part in parts]
    return [torch.cat([chunk.rows for chunk in stream.chunks()]) for stream in streams]


@pytest.fixture(scope="module")
def plain(images, shuffled):
    """Metrics of `topk` on images."""
    train, held_out = images
    return fitted(make_sae("topk", 160, 640, k=16), shuffled(train, 256), [held_out], 100)


@pytest.mark.parametrize("kind", ["adaptive_k", "feature_choice"])
def test_on_tokens_of_images_too_where_early_codes_add_to_the_error_and_entries_are_negative(
    kind, images, plain, shuffled
):
    train, held_out = images
    sae = make_sae(kind, 160, 640, k=16)
    metrics = fitted(sae, shuffled(train, 256), [held_out], 100)
    assert metrics["l0"] == pytest.approx(16, rel=0.01)
    assert metrics["val_l0"] == pytest.approx(16, rel=0.03)
    fires = (sae.encode(held_out).to_dense() != 0).any(0).double().mean()
    if kind == "adaptive_k":
        assert metrics["val_fvu"] <= 1.1 * plain["val_fvu"]
    else:
        assert fires > 0.95
        assert metrics["dead"] < 0.02
