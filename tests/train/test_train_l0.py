"""A dictionary that aims at k codes per token has k on tokens that it never saw, for every kind."""

import pytest
import torch

from visae.ops import Eager, GroupMax, TopK
from visae.sae import kind_options, kinds, make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

K = 3
WORLD = PlantedConfig(d=16, n_features=32, active=3, zipf=0.5)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if "k" in kind_options(kind)])
def test_tokens_that_were_never_seen_get_k_codes(kind):
    sae = make_sae(kind, 16, 64, k=K)
    config = TrainConfig(steps=120, batch=256, stat_rows=2048, device="cpu", calibration_rows=16_384, log_every=120)
    Trainer(sae, config, progress=False).fit(Planted(WORLD, 256, needs=sae.needs))
    x = Planted(WORLD, part=1, needs=sae.needs).rows(8192)
    found = float(sae.encode(x).l0().double().mean())
    wanted = float(K)
    if isinstance(sae.activation.rule(), TopK | GroupMax) and not sae.activation.thins:
        # k of every token are kept, and ReLU makes the negative ones 0: in training as at inference, where it is rare
        with torch.no_grad():
            wanted = float(sae.train().losses(x, Eager()).codes.l0())
        assert 0.9 * K < wanted <= K
    assert found == pytest.approx(wanted, rel=0.03)
