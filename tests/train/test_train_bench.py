"""The step benchmark: what it prints has the promised form; its steps are the trainer's own."""

import json
import sys

import pytest
import torch

from visae.ops import usable_kernels
from visae.sae import kinds
from visae.train.bench import Size, bare_step, batches, peak_memory
from visae.workflows import bench

SMALL = Size(d=16, n_latents=64, batch=32, k=4)


def test_the_numbers_have_the_promised_form_and_ratios_follow_from_them(tmp_path):
    file = tmp_path / "step.json"
    shown = str(bench.step(d=16, latents=64, batch=32, k=4, repeats=2, peers=False, device="cpu", json=file))
    numbers = json.loads(file.read_text())
    assert numbers["size"] == {"d": 16, "n_latents": 64, "batch": 32, "k": 4, "kind": "topk"}
    assert set(numbers["floors"]) == {"fp32_ms", "bf16_ms"}
    fused = [f"{name} {precision}" for name in usable_kernels("cpu") for precision in ("fp32", "bf16")]
    assert [row["name"] for row in numbers["rows"]] == ["reference fp32", "eager fp32", "eager bf16", *fused]
    for row in numbers["rows"]:
        assert row["what"] == "tier"
        assert row["ms"] > 0
        assert row["over_fp32_floor"] == pytest.approx(row["ms"] / numbers["floors"]["fp32_ms"], rel=0.05)
        assert row["peak_mb"] >= 0 or sys.platform != "linux"
    assert "encoder product bf16" in shown
    assert "eager bf16" in shown


@pytest.mark.parametrize("kind", kinds())
def test_a_bare_step_trains_every_kind(kind):
    size = Size(d=16, n_latents=64, batch=64, k=4, kind=kind)
    torch.manual_seed(0)
    trainer, step = bare_step(size, "eager", "fp32", batches(size, n=1))
    before = {name: p.detach().clone() for name, p in trainer.sae.named_parameters()}
    for _ in range(3):
        step()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.sae.named_parameters())
    assert trainer.step == 3


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_sees_what_a_step_allocates():
    wide = Size(d=64, n_latents=4096, batch=1024, k=4)
    assert peak_memory(wide, "reference", "fp32") > 1024 * 4096 * 4 / 2**20
