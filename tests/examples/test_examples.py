"""Every example runs as it stands, on small inputs and random weights where a hub would be needed."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two folders of pictures of several sizes and modes, and a file that is no picture."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "photos" / ("warm" if i % 2 else "cold")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (40 + 9 * i, 60 + 5 * i, 3)).astype(np.uint8)
        pixels[..., 0 if i % 2 else 2] += 120
        image = Image.fromarray(pixels)
        (image.convert("L") if i == 4 else image).save(folder / f"{i}.png")
    (tmp_path / "photos" / "cold" / "broken.jpg").write_bytes(b"not a picture")
    return tmp_path / "photos"


def run(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    out = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


def test_own_images_with_open_clip_trains_draws_and_reports(photos, tmp_path):
    told = run(
        "own_images_open_clip.py", photos, "--model", "open_clip:ViT-B-32", "--no-pretrained", "--latents", 64,
        "--k", 4, "--passes", 3, "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert "4 heat maps" in told
    assert (tmp_path / "run" / "index.html").is_file()


def test_dinov2_by_hand_trains_and_draws(photos, tmp_path):
    told = run(
        "dinov2_timm.py", photos, "--model", "timm:vit_small_patch14_reg4_dinov2", "--no-pretrained",
        "--image-size", 56, "--steps", 6, "--batch", 32, "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert "heat maps of latents" in told
    assert len(list((tmp_path / "run").glob("*-latent-*.png"))) >= 1


def test_diffusion_over_time_trains_draws_strips_and_asks_what_blocks_do(tiny_pipelines, tmp_path):
    tiny_pipelines.build("sd").save_pretrained(tmp_path / "pipe")
    told = run(
        "diffusion_over_time.py", "sd15", "world:prompts?n=8", "--model", f"diffusers:{tmp_path / 'pipe'}",
        "--weights", "float32", "--steps", 2, "--k", 4, "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert "batch_topk dictionary" in told
    assert len(list((tmp_path / "run" / "timeline").glob("*-moving.webp"))) == 4
    assert (tmp_path / "run" / "blocks" / "blocks.png").is_file()


@pytest.mark.parametrize(
    ("script", "name", "sites", "method"),
    [
        ("erase_sd15.py", "sd", ("--text-site", "text_encoder.encoder.layers.1"), "sauce"),
        ("erase_flux.py", "flux", ("--layer", 1, "--text-layer", 0), "steerers"),
    ],
)
def test_a_concept_is_erased_reported_and_gone_from_a_plain_pipeline(
    script, name, sites, method, tiny_pipelines, tmp_path
):
    tiny_pipelines.build(name).save_pretrained(tmp_path / "pipe")
    for file, ends in (("prompts", ("square", "circle", "star")), ("retain", ("square", "circle")), ("on", ("star",))):
        lines = [f"a {colour} {end}" for end in ends for colour in ("red", "blue", "green")]
        (tmp_path / f"{file}.txt").write_text("\n".join(lines))
    told = run(
        script, "a star", "prompts.txt", "retain.txt", "--target", "on.txt", "--method", method, "--model", "pipe",
        *sites, "--show", "a star", "--expansion", 2, "--k", 4, "--images", 4, "--pictures", 2, "--steps", 2,
        "--batch", 2, "--size", 16, 24, "--weights", "float32", "--device", "cpu", "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    folder = next(tmp_path.rglob(f"a-star-{method}"))
    assert f"Open {folder.relative_to(tmp_path) / 'index.html'}" in told
    with Image.open(folder / "drawn.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (32, 24, 3)
    assert not np.array_equal(pixels[:16], pixels[16:]), "the exported erasure changes what plain diffusers draws"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(EXAMPLES / "first_journey.ipynb", as_version=4)
    for cell in notebook.cells:  # the same journey on fewer images
        cell.source = cell.source.replace("n=1000", "n=200").replace("images=500", "images=150")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "execute_result"]
    assert any("image/png" in out.data or "matplotlib" in str(out.data) for out in shown)
