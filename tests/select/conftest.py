"""Tables of hand-made item values, one patch per item, so that image level and token level are the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from visae.codes import CodeTable
from visae.geometry import Framing, Geometry


class DenseSae(nn.Module):
    def __init__(self, n_latents: int, signed: bool):
        super().__init__()
        self.n_latents, self.signed = n_latents, signed
        self.register_buffer("mean", torch.zeros(n_latents))

    def encode(self, x):
        return SimpleNamespace(indices=torch.arange(self.n_latents).expand(x.shape), values=x)

    def directions(self):
        return torch.eye(self.n_latents)


@pytest.fixture
def table_of(tmp_path):
    """`table_of(values [n, F], labels, name)` -> CodeTable with factor `shape`."""
    geometry = Geometry(Framing((8, 8)), (1, 1), (8.0, 8.0)).to_dict()

    def make(values, labels, name="val", signed=False):
        n = len(values)
        zeros = np.zeros(n, np.int64)
        chunk = SimpleNamespace(
            rows=torch.tensor(values, dtype=torch.float32),
            item=np.arange(n),
            index=zeros,
            region=None,
            kind=zeros.astype(np.uint8),
            y=zeros,
            x=zeros,
        )
        known = sorted({v for row in labels for v in row})
        source = SimpleNamespace(
            n_rows=n,
            keys=[str(i) for i in range(n)],
            item_labels=[{"shape": tuple(row)} for row in labels],
            factors={"shape": known},
            meta={"data": name, "fingerprint": name, "geometry": geometry},
            chunks=lambda: [chunk],
        )
        return CodeTable.build(DenseSae(np.shape(values)[1], signed), source, tmp_path / name, progress=False)

    return make


@pytest.fixture
def statistics_of():
    """`statistics_of(codes [P, S, T, F], texts, levels, signed)` -> PromptStatistics, computed densely in float64."""

    def make(codes, texts=None, levels=None, signed=False, **labels):
        from visae.data import Prompt
        from visae.select import PromptStatistics

        codes = torch.as_tensor(codes, dtype=torch.float64)
        if signed:
            codes = torch.cat([codes.clamp(min=0), (-codes).clamp(min=0)], dim=-1)
        texts = texts or [f"prompt {i}" for i in range(len(codes))]
        prompts = tuple(
            Prompt(text, i, str(i), {factor: (values[i],) for factor, values in labels.items()})
            for i, text in enumerate(texts)
        )
        tables = {"mean": codes.mean(2), "rms": codes.square().mean(2).sqrt(), "largest": codes.amax(2),
                  "fired": (codes > 0).double().mean(2)}  # fmt: skip
        n_latents = codes.shape[-1] // (2 if signed else 1)
        levels = tuple(levels or range(codes.shape[1], 0, -1))
        return PromptStatistics(prompts, levels, **{k: t.float() for k, t in tables.items()}, n_latents=n_latents)

    return make
