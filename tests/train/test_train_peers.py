"""Peers: found or named with their error, timed beside the tiers, and trained as their own trainers do."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from visae.train import rivals
from visae.train.bench import Size, bench_step
from visae.train.peers import PEERS, Coder, Learner, Peer, Plan
from visae.train.planted import Planted, PlantedConfig

SMALL = Size(d=16, n_latents=64, batch=64, k=4)
CASES = [(name, kind) for name, peer in PEERS.items() for kind in peer.kinds]


def fake(size: Size, plan: Plan) -> Learner:
    weight = torch.nn.Parameter(torch.zeros(size.n_latents, size.d))
    optimiser = torch.optim.Adam([weight], lr=plan.lr or 1e-3)

    def step(x: Tensor) -> None:
        if plan.autocast:
            raise RuntimeError("no kernel for BFloat16")
        (x @ weight.T).sum().backward()
        optimiser.step()

    return Learner(step, lambda: Coder(lambda x: x @ weight.T, lambda z: z @ weight, weight), optimiser)


@pytest.fixture
def three_peers(tmp_path, monkeypatch):
    """One that works, one that fails when it is imported, one that is not there."""
    (tmp_path / "fakepeer_good.py").write_text("print('welcome')")
    (tmp_path / "fakepeer_bad.py").write_text("raise AttributeError('numpy has no attribute float')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Peer, "version", "1.0")
    peers = [Peer(name, f"fakepeer_{name}", ("topk",), fake) for name in ("good", "bad", "absent")]
    monkeypatch.setattr(rivals, "PEERS", {peer.name: peer for peer in peers})
    yield
    sys.modules.pop("fakepeer_good", None)


def test_peers_that_cannot_be_imported_are_named_with_their_error(three_peers, capsys):
    found, failed = rivals.installed()
    assert list(found) == ["good"]
    assert failed == {"bad": "AttributeError: numpy has no attribute float", "absent": "not installed"}
    assert capsys.readouterr().out == ""


def test_a_peer_is_timed_beside_the_tiers_and_one_whose_step_fails_is_named(three_peers, monkeypatch):
    monkeypatch.setattr(rivals, "peak_memory", lambda *_: 1.0)
    monkeypatch.setattr("visae.train.bench.peak_memory", lambda *_: 1.0)
    numbers = bench_step(SMALL, repeats=1, peers=True)
    peers = [row for row in numbers["rows"] if row["what"] == "peer"]
    assert [row["name"] for row in peers] == ["good 1.0"]
    assert set(peers[0]) == set(numbers["rows"][0])
    assert "BFloat16" in numbers["failed"]["good 1.0, autocast bf16"]
    json.dumps(numbers)
    assert not [row for row in bench_step(SMALL, repeats=1)["rows"] if row["what"] == "peer"]
    other = Size(16, 64, 64, 4, "gated")
    assert not [row for row in bench_step(other, repeats=1, peers=True)["rows"] if row["what"] == "peer"]
    assert rivals.rivals(replace(SMALL, device="cuda"), []) == ({}, {"other libraries": "they are timed on a CPU only"})


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_installed_peer_learns_and_decodes_along_its_directions(name, kind):
    peer = PEERS[name]
    if find_spec(peer.module) is None:
        pytest.skip(f"{name} is not installed")
    rivals.load(peer)
    data = Planted(PlantedConfig(d=16, n_features=32, active=4), SMALL.batch)
    learner = peer.learner(Size(16, 64, 64, 4, kind), Plan(lr=3e-3, steps=200, warmup=5, decay=20, dead_after=50))
    x = data.sample(512, 10_000)[0]
    learner.step(data.sample(64, 0)[0])
    first = float((learner.coder().decode(learner.coder().encode(x)) - x).square().sum())
    for i in range(1, 150):
        learner.step(data.sample(64, i)[0])
    coder = learner.coder()
    codes = coder.encode(x).detach()
    assert codes.shape == (512, 64)
    recon = coder.decode(codes)
    assert float((recon - x).square().sum()) < 0.8 * first
    row, latent = codes.nonzero()[0].tolist()
    moved = codes[row : row + 1].clone()
    moved[0, latent] *= 2
    change = coder.decode(moved) - recon[row : row + 1]
    torch.testing.assert_close(change[0], codes[row, latent] * coder.directions[latent], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dead_after", [None, 2])
def test_our_step_of_sparsify_is_what_its_trainer_does(tmp_path, dead_after):
    if find_spec("sparsify") is None:
        pytest.skip("eai-sparsify is not installed")
    rivals.load(PEERS["eai-sparsify"])
    import sparsify

    steps, rows = 6, Planted(PlantedConfig(d=16, n_features=32, active=4), 64)
    data = torch.stack([rows.sample(64, i)[0] for i in range(steps)])

    class Model(torch.nn.Module):
        """Gives the rows of batch i for the token ids of batch i."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()
            self.base_model, self.device, self.dummy_inputs = (
                self,
                torch.device("cpu"),
                {"input_ids": torch.zeros(1, 1)},
            )

        def forward(self, input_ids):
            return self.layer(data.flatten(0, 1)[input_ids.long()])

        def __setattr__(self, name, value):
            object.__setattr__(self, name, value) if name == "base_model" else super().__setattr__(name, value)

    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(num_latents=64, k=4),
        batch_size=1,
        optimizer="adam",
        lr=1e-2,
        lr_warmup_steps=0,
        auxk_alpha=0.0 if dead_after is None else 1 / 32,
        dead_feature_threshold=(dead_after or 0) * 64,
        hookpoints=["layer"],
        log_to_wandb=False,
        save_dir=str(tmp_path),
        run_name="oracle",
    )
    tokens = [{"input_ids": torch.arange(64) + 64 * i} for i in range(steps)]
    theirs = sparsify.Trainer(config, tokens, Model())
    theirs.fit()
    ours = PEERS["eai-sparsify"].learner(
        SMALL, Plan(lr=1e-2, steps=steps, warmup=0, decay=steps, dead_after=dead_after, seed=0)
    )
    for batch in data:
        ours.step(batch)
    theirs.saes["layer"].set_decoder_norm_to_unit_norm()
    torch.testing.assert_close(ours.coder().directions, theirs.saes["layer"].W_dec.detach())
