"""A new kind is one builder out of parts: it trains, saves and loads without a change anywhere else."""

import pytest
import torch

from visae import ops
from visae.sae import ABOUT, KINDS, Dictionary, initialise, load_sae, make_sae, register_kind, save_sae
from visae.sae.activations import Activation
from visae.sae.decoders import UnitNorm
from visae.sae.encoders import Encoder, Linear
from visae.sae.penalties import AuxK
from visae.train import TrainConfig, Trainer

D, F = 16, 64


class AbsTopK(Activation):
    signed = True

    def __init__(self, k):
        super().__init__()
        self.k = self.capacity = k

    def rule(self):
        return ops.TopK(self.k, signed=True)


class Doubled(Encoder):
    """Two matrices in a row: not one product, so the dense pre-activations take the place of the kernels."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(D, D, bias=False)
        self.second = Linear(D, F)
        torch.nn.init.eye_(self.first.weight)

    def pre(self, u, shift):
        return self.second.pre(self.first(u), self.first(shift))

    def initialise(self, atoms):
        self.second.initialise(atoms)

    def rescale(self, factor):
        self.second.rescale(factor)


@pytest.fixture(params=["signed", "two matrices"])
def new_kind(request):
    def build(d, n_latents, k=4):
        signed = request.param == "signed"
        return Dictionary(
            request.param,
            d,
            n_latents,
            encoder=Linear(d, n_latents) if signed else Doubled(),
            activation=AbsTopK(k),
            decoder=UnitNorm(d, n_latents),
            penalties=[AuxK()],
        )

    register_kind(request.param, formula="z = f(a)", paper="none")(build)
    yield request.param
    del KINDS._things[request.param], ABOUT[request.param]


def test_a_new_kind_trains_on_both_kernels_saves_and_loads(new_kind, tokens, gradients, tmp_path):
    sae = make_sae(new_kind, D, F, k=3)
    initialise(sae, tokens())
    x, dead = tokens(100).double(), torch.tensor([1, 5, 60])
    sae.double().train()
    slow, fast = (gradients(sae, x, kernels, dead) for kernels in (ops.Reference(), ops.Eager()))
    assert all(torch.allclose(slow[n], fast[n], rtol=1e-9, atol=1e-12) and float(slow[n].abs().max()) > 0 for n in slow)
    sae = make_sae(new_kind, D, F, k=3)
    config = TrainConfig(steps=60, batch=600, stat_rows=600, log_every=20, dead_window=600, device="cpu")
    result = Trainer(sae, config, progress=False).fit([tokens(seed=i) for i in range(5)])
    assert result.history[-1]["fvu"] < result.history[0]["fvu"]
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    codes = loaded.encode(tokens())
    assert torch.equal(codes.to_dense(), sae.encode(tokens()).to_dense())
    assert loaded.signed
    assert bool((codes.values < 0).any())
    assert loaded.options == {"k": 3}
