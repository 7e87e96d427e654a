"""Pages about dictionaries of pipelines: `visae report` on a run, and `visae demo diffusion` at its smallest."""

import json
import re
from importlib import import_module

import pytest
from PIL import Image

from visae.sae import load_card
from visae.workflows import demo_diffusion, report, train
from visae.workflows.drawn import Drawn
from visae.workflows.heatmap import CONCEPTS

SITE = "unet.mid_block.attentions.0"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


@pytest.fixture(scope="module")
def place(tiny_pipelines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    tiny_pipelines.build("sd").save_pretrained(folder / "sd")
    return folder


def trained(place, name, data):
    return train(
        place / name, model=f"diffusers:{place / 'sd'}", site=SITE, data=data, steps=2, branch="both", latents=32, k=4,
        batch=64, image_batch=4, image_size=(16, 24), workers=0, device="cpu",
    ).run  # fmt: skip


@pytest.fixture(scope="module")
def told(place):
    run = trained(place, "run", "world:prompts?split=train&n=8&objects=1")
    return run, report(run.folder, images=8, image_batch=4, workers=0, device="cpu")


def told_by(page):
    return re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))


def test_a_report_on_a_pipeline_shows_the_images_it_made_of_prompts_never_trained_on(told):
    run, made = told
    study, text = made.study, told_by(made.page)
    assert isinstance(study.test_data, Drawn)
    for part in ("validation", "test"):
        assert f"split={part}" in getattr(study, f"{part}_data").name
    assert "split=train" in load_card(run.folder).data["name"]
    assert (study.test.n_items, study.test_data[0].image.size) == (8, (24, 16))
    made_of = sorted(file.stem for file in run.folder.glob("codes/images-*/*.png"))
    assert made_of == [f"{i:05d}" for i in range(8)], "only the images that are shown are made"
    assert text.count("data:image/") >= 1
    assert "their labels are what the prompts ask for" in text


def test_a_report_on_a_pipeline_tells_every_noise_level_and_branch(told):
    run, made = told
    metrics, text = made.study.metrics, told_by(made.page)
    assert list(metrics.by_sigma) == list(run.card.metrics["by_sigma"])
    for name in (*(f"sigma {level}" for level in metrics.by_sigma), "branch cond", "branch uncond", "PCA, "):
        assert name in text
    assert sum(one.n for one in metrics.by_sigma.values()) == metrics.n == 8 * 2 * 2 * 24
    kept = json.loads((run.folder / CONCEPTS).read_text())
    assert "shape" in {one["factor"] for one in kept}
    assert all(concept.localisation is None for concept in made.study.concepts)


def test_a_second_report_makes_no_image_again_and_says_the_same(told, monkeypatch):
    run, made = told

    def refuse(*_args, **_options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(Drawn, "_make", refuse)
    again = report(run.folder, images=8, image_batch=4, workers=0, device="cpu", out=run.folder / "again.html")
    assert again.study.metrics.to_dict() == made.study.metrics.to_dict()
    assert again.page.read_bytes() == made.page.read_bytes()


def test_prompts_without_labels_are_told_and_prompts_without_parts_want_others_to_measure_on(place):
    (place / "p.txt").write_text("a red star\na blue star\na grey star\na red circle")
    run = trained(place, "plain", str(place / "p.txt"))
    with pytest.raises(ValueError, match="not the training part of a set of prompts"):
        report(run.folder, device="cpu")
    parts = {part: f"{place / 'p.txt'}?n={n}" for part, n in (("validation", 2), ("test", 3))}
    made = report(run.folder, **parts, image_batch=4, workers=0, device="cpu")
    assert (made.study.validation.n_items, made.study.test.n_items) == (2, 3)
    assert made.study.concepts == []
    assert "The prompts have no labels, so no latent is named" in told_by(made.page)


def test_the_demo_writes_a_page_with_strips_and_its_numbers(tmp_path, monkeypatch):
    demo = import_module("visae.workflows.demo_diffusion")  # the package has the function under this name
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE | {"steps": 2, "expansion": 2, "k": 4, "batch": 256})
    out = tmp_path / "demo"
    made = demo_diffusion(out, prompts=12, test=2)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= {
        "fvu_mean", "fvu_worst_bin", "dead_share", "agreement_plain", "agreement_reconstructed", "seconds"
    }  # fmt: skip
    assert made.summary == summary
    card = load_card(out)
    assert (card.kind, card.model["id"], card.sampling["steps"]) == ("batch_topk", "visae:tiny-sd", 2)
    assert (summary["fvu_mean"], summary["fvu_worst_bin"], summary["dead_share"]) == tuple(
        card.metrics[key] for key in ("fvu_mean", "fvu_worst_bin", "dead")
    )
    assert all(0 <= summary[key] <= 1 for key in ("dead_share", "agreement_plain", "agreement_reconstructed"))
    strips, moving = (sorted((out / "strips").glob(ending)) for ending in ("*.png", "*-moving.webp"))
    assert [file.stem for file in moving] == [f"{file.stem}-moving" for file in strips]
    assert {file.stem.split("-")[0] for file in strips} == {"shape", "style"}
    with Image.open(moving[0]) as picture:
        assert picture.n_frames == 2
    text = told_by(out / "index.html")
    for title in ("Each noise level", "The same pictures through reconstructions", "Latents over time"):
        assert title in text
    assert all(site in text for site in (demo.SITE, *demo.OTHER_SITES))
    assert all(file.stem.replace("-", "=", 1) in text for file in strips)
    assert load_card(out / "sites" / demo.OTHER_SITES[0]).site["name"] == demo.OTHER_SITES[0]
    assert str(out / "index.html") in str(made)
