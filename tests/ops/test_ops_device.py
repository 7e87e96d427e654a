"""A step of the GPU tier without a GPU: everything on torch's `meta` device, which has shapes and no numbers.

Nobody can read a number there, so a step that goes through makes the host wait for nothing; and a kernel that is given
a tensor from elsewhere is caught. Where there is a GPU, whole runs are compared on it.
"""

import os
import subprocess
import sys

import pytest
import torch

from visae.ops import Adam, Fused
from visae.sae import Rows, initialise, kind_options, kinds, make_sae

WAITS = {
    "adaptive_k": "how many codes a token has is known when they are counted",
    "contrastive": "how many codes two tokens share likewise",
    "atm": "how many latents a mask leaves likewise",
    "feature_choice": "how many entries its columns keep likewise",
    "gated": "whether few enough codes are left for the sparse kernels is looked up",
    "gba": "whether enough tokens have come to move its biases is looked up",
    "jumprelu": "as for gated",
    "p_anneal": "as for gated",
    "relu_l1": "as for gated",
}
"""Kinds whose steps ask the device for a number, and what for."""


class Launch:
    """Stands for a compiled kernel: launched, it looks where its tensors are."""

    def __getitem__(self, grid):
        def run(*args, **_options):
            assert {a.device.type for a in args if isinstance(a, torch.Tensor)} == {"meta"}

        return run


@pytest.fixture
def gpu(monkeypatch):
    pytest.importorskip("triton")
    from visae.ops.kernels import gpu

    for name in ("_top", "_dots", "_reconstruct", "_update"):
        monkeypatch.setattr(gpu, name, Launch())
    return gpu.Triton()


def steps(kind, precision, kernels, bring):
    """Two steps on the meta device, without dead latents and with."""
    sae = make_sae(kind, 16, 64, **({"k": 4} if "k" in kind_options(kind) else {}))
    rows = bring(sae, torch.randn(48, 16))
    initialise(sae, rows)
    sae = sae.to("meta").train()
    if isinstance(rows, Rows):
        rows = Rows(rows.rows.to("meta"), {name: t.to("meta") for name, t in rows.side.items()})
    else:
        rows = rows.to("meta")
    ops = Fused(kernels, precision)
    adam = Adam(dict(sae.named_parameters()), sae.unit_parameters(), ops=ops)
    for dead in (None, torch.arange(0, 64, 3, device="meta")):
        losses = sae.losses(rows, ops, dead=dead)
        losses.total.backward()
        adam.step(1e-3)
        sae.activation.observe(losses.codes)
        sae.count(losses.codes)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", kinds())
def test_a_step_stays_on_the_device_and_asks_it_for_nothing(kind, precision, gpu, bring):
    if kind not in WAITS:
        steps(kind, precision, gpu, bring)
        return
    with pytest.raises((NotImplementedError, RuntimeError), match=r"nonzero|meta tensor"):
        steps(kind, precision, gpu, bring)


RUNS = """
import sys
import torch
from visae.sae import make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer

world, found = PlantedConfig(d=32, n_features=64, active=4, noise=0.0), {}
for kind in ("topk", "batch_topk", "jumprelu", "matryoshka", "hierarchical_topk"):
    for tier in ("reference", "auto"):
        config = TrainConfig(steps=150, batch=512, stat_rows=8192, device=sys.argv[1], log_every=150, ops=tier)
        run = Trainer(make_sae(kind, 32, 128, k=4), config, progress=False)
        held_out = [Planted(world, part=1).sample(8192)[0]]
        found[tier] = run.fit(Planted(world, 512), held_out).metrics["val_fvu"]
        print(kind, run.kernels, found[tier])
    assert abs(found["auto"] - found["reference"]) < 0.05 * found["reference"], (kind, found)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_on_a_gpu_the_compiled_kernels_reach_the_fvu_of_the_dense_oracle():
    known = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", RUNS, "cuda"], env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton" in done.stdout
