"""Strips and the table of what blocks do, on a tiny pipeline with random weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import visae
from visae.sae import make_sae
from visae.workflows.blocks import blocks
from visae.workflows.timeline import draw

SITE = "unet.mid_block.attentions.0"


@pytest.fixture(scope="module")
def folder(tiny_pipelines, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipe")
    tiny_pipelines.build("sd").save_pretrained(path)
    return path


def test_strips_and_shares_over_the_steps_of_every_prompt(folder, tmp_path):
    pipeline = visae.load_model(f"diffusers:{folder}")
    sae = make_sae("topk", pipeline.site(SITE).d, 48, k=4)
    torch.nn.init.normal_(sae.encoder.weight, generator=torch.manual_seed(1))
    made = draw(pipeline, sae, SITE, ("a red square", "a star"), tmp_path, steps=5, columns=3, strongest=2)
    assert [file.name for file in made.files] == ["0000.png", "0000-moving.webp", "0001.png", "0001-moving.webp"]
    with Image.open(made.files[1]) as moving:
        assert moving.n_frames == 5
    kept = json.loads((tmp_path / "timeline.json").read_text())
    assert len(kept["sigmas"]) == 5
    for share in kept["shares"].values():
        assert sum(share) == pytest.approx(1.0)
    text = str(made)
    assert all(latent in text for latent in kept["shares"])


def test_blocks_are_measured_shown_and_judged_by_the_labels_of_their_prompts(folder, tmp_path):
    options = {"sites": (f"{SITE}.delta",), "steps": 2}
    made = blocks(f"diffusers:{folder}", prompts="world:prompts?split=test&n=2", out=tmp_path / "b", **options)
    (row,) = json.loads((tmp_path / "b" / "blocks.json").read_text())["rows"]
    assert row["block"] == f"{SITE}.delta"
    assert {"layout", "texture", "colour", "shape", "style"} <= set(row)
    assert np.isfinite(row["layout"])
    assert made.file.is_file()
    assert "shape kept" in str(made)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\n")
    assert "kept" not in str(blocks(f"diffusers:{folder}", prompts=str(prompts), out=tmp_path / "c", **options))
    with pytest.raises(ValueError, match="sees images and makes none"):
        blocks("visae:tiny-clip")


def test_a_shipped_pipeline_is_loaded_by_name_and_says_where_its_weights_are_missing(folder, tmp_path, monkeypatch):
    from visae.adapters import shipped

    monkeypatch.setattr(shipped, "_folder", lambda name: {"tiny-sd": folder}.get(name, tmp_path / name))
    (folder / "card.json").write_text(json.dumps({"recipe": {"call": {"guidance_scale": 3.0}}}))
    loaded = visae.load_model("visae:tiny-sd")
    assert (loaded.id, loaded.options) == ("visae:tiny-sd", {"guidance_scale": 3.0})
    assert "tiny-sd" in shipped.names()
    with pytest.raises(FileNotFoundError, match=r"python -m visae.world.train tiny-dit"):
        visae.load_model("visae:tiny-dit")
