"""Several sites from one forward pass bring what each would bring alone."""

import pytest
import torch

from visae.store import Stream, WideStream
from visae.tokens import TokenPolicy

SITES = ["blocks.0", "blocks.1.delta", "blocks.1"]
SMALL = 6 * 1536


def test_every_site_gets_the_rows_that_a_stream_of_its_own_would_bring(model, pictures):
    wide = WideStream(model, SITES, pictures(), dtype="float32")
    assert (wide.d, wide.widths) == (144, dict.fromkeys(SITES, 48))
    for name in SITES:
        alone = Stream(model, name, pictures(), dtype="float32")
        assert wide.metas[name].content_hash == alone.meta.content_hash
        for parts, chunk in zip(wide.parts(), alone.chunks(), strict=True):
            own = parts[name]
            torch.testing.assert_close(own.rows, chunk.rows)
            assert all(torch.equal(getattr(own, k), getattr(chunk, k)) for k in ("item", "index", "kind", "y", "x"))


def test_batches_are_those_of_single_streams_and_cost_one_forward_pass(model, pictures, monkeypatch):
    passes = []
    original = type(model).forward

    def forward(self, pixels):
        passes.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(type(model), "forward", forward)
    policy = TokenPolicy(per_image=5, seed=3)
    common = {"policy": policy, "batch": 8, "dtype": "float32"}
    wide = WideStream(model, SITES, pictures(), **common).loader(40, seed=2, buffer_bytes=SMALL, passes=1)
    batches = list(wide)
    assert sum(passes) == len(pictures())
    for i, name in enumerate(SITES):
        alone = Stream(model, name, pictures(), **common).loader(40, seed=2, buffer_bytes=SMALL, passes=1)
        for together, own in zip(batches, alone, strict=True):
            torch.testing.assert_close(together[:, 48 * i : 48 * i + 48], own)


def test_a_wide_loader_resumes_exactly(model, pictures):
    def loader():
        return WideStream(model, SITES[:2], pictures(), batch=8).loader(30, seed=1, buffer_bytes=SMALL)

    first = loader()
    for _ in range(7):
        next(first)
    state = first.state_dict()
    again = loader()
    again.load_state_dict(state)
    for _ in range(40):
        assert torch.equal(next(first), next(again))


def test_sites_whose_tokens_differ_and_sites_named_twice_are_refused(model, pictures):
    with pytest.raises(ValueError, match=r"blocks\.1 has 1 cls \+ 4 x 4 patch, .* has"):
        WideStream(model, ["blocks.1", "pooled"], pictures())
    with pytest.raises(ValueError, match="each once"):
        WideStream(model, ["blocks.1", "blocks.-1"], pictures())
