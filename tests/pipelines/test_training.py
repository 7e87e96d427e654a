"""`visae train` on a pipeline: from a file of prompts to a card, by noise level and branch, and back."""

import json

import numpy as np
import pytest
import torch

import visae
from visae.clock import CODES
from visae.evaluate import evaluate_sae
from visae.evaluate.noise import bin_name, bin_of, noise_share, over_bins
from visae.sae import MismatchError, load_sae, make_sae
from visae.store import Chunk, Collection, Sampling
from visae.store.probing import collection
from visae.workflows import Schemes, estimate, extract, timesteps, train
from visae.workflows.timesteps import windows_of

SITE = "unet.mid_block.attentions.0"
COLOURS, SHAPES = ("red", "blue", "green", "grey"), ("square", "circle", "star")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


@pytest.fixture(scope="module")
def place(tiny_pipelines, tmp_path_factory):
    """A folder with a saved pipeline, `sd`, and a file of prompts, `p.txt`."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipelines.build("sd").save_pretrained(folder / "sd")
    texts = [f"a {a} {s} on {b}" for a in COLOURS for s in SHAPES for b in COLOURS[:2]]
    (folder / "p.txt").write_text("\n".join(texts))
    return folder


def options(place, **more):
    common = {
        "model": f"diffusers:{place / 'sd'}", "site": SITE, "data": f"{place / 'p.txt'}?split=train", "steps": 3,
        "image_size": (16, 24), "latents": 48, "k": 4, "batch": 128, "passes": 1, "device": "cpu", "workers": 0,
        "image_batch": 4, "collect_steps": (0, 1, -1), "branch": "both",
    }  # fmt: skip
    return common | more


@pytest.fixture(scope="module")
def made(place):
    schemes = Schemes(validate_every=8)
    return train(place / "run", kind="temporal", schemes=schemes, checkpoint_every=8, **options(place))


def test_the_card_says_how_the_pipeline_ran_and_on_which_prompts(made, place):
    card = made.run.card
    told = Collection.from_dict(card.sampling)
    assert (told.pipeline, told.scheduler["class"]) == ("StableDiffusionPipeline", "PNDMScheduler")
    assert (told.steps, told.guidance, told.branch, told.scale) == (3, 7.5, "both", "variance")
    assert [slot.step for slot in told.slots] == [0, 0, 1, 1, 2, 2]
    assert told.image_hw == (16, 24)
    assert set(told.versions) == {"diffusers", "torch"}
    assert card.data["name"] == f"{place / 'p.txt'}?split=train"
    assert json.loads(card.to_json())["sampling"]["slots"][0]["sigma"] > 1
    assert not (made.run.folder / "activations").exists()


def test_metrics_come_per_noise_level_and_branch_of_prompts_never_trained_on(made):
    metrics = made.metrics
    assert metrics["held_out"]
    assert "split=validation" in metrics["data"]
    assert list(metrics["by_branch"]) == ["uncond", "cond"]
    assert len(metrics["by_sigma"]) == 3
    assert sum(one["n"] for one in metrics["by_sigma"].values()) == metrics["n"]
    fvus = [one["fvu"] for one in metrics["by_sigma"].values()]
    assert metrics["fvu_worst_bin"] == max(fvus)
    assert metrics["fvu_mean"] == pytest.approx(np.mean(fvus))
    assert all({"l0", "dead", "fvu", "dense"} <= set(one) for one in metrics["by_branch"].values())


def test_a_stopped_run_goes_on_to_the_same_bytes(made, place, monkeypatch):
    schemes, more = Schemes(validate_every=8), {"kind": "temporal", "checkpoint_every": 8}
    steps = []

    def stop(_trainer, *_args, **_kwargs):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = visae.train.Trainer.update
        patch.setattr(visae.train.Trainer, "update", lambda self, *a, **k: (stop(self), original(self, *a, **k))[1])
        with pytest.raises(KeyboardInterrupt):
            train(place / "again", schemes=schemes, **options(place), **more)
    train(place / "again", schemes=schemes, **options(place), **more)
    first, second = ((place / name / "sae.safetensors").read_bytes() for name in ("run", "again"))
    assert first == second


def test_a_store_made_first_trains_as_a_stream_does(place):
    same = options(place)
    own = {name: value for name, value in same.items() if name not in ("latents", "k", "batch", "passes")}
    costs = estimate(**{name: value for name, value in same.items() if name != "workers"})
    store = extract(place / "acts", **own)
    assert store.n_rows == costs.extraction.rows
    assert "streamed (on disk, with --shards, " in str(costs)
    made = train(place / "from-store", activations=place / "acts", **same)
    assert made.run.card.sampling["slots"] == [dict(slot) for slot in store.meta.to_dict()["collected"]["slots"]]


def test_a_pipeline_streams_once_and_its_shards_are_read_often(place):
    given = {name: value for name, value in options(place).items() if name != "passes"}
    streamed = train(place / "streamed", **given).run
    stored = train(place / "stored", shards=True, **given).run
    rows = [run.card.training["config"]["tokens"] for run in (streamed, stored)]
    assert rows[1] == 8 * rows[0]
    assert [(run.folder / "activations").exists() for run in (streamed, stored)] == [False, True]
    with pytest.raises(ValueError, match="not both"):
        train(place / "both", stream=True, shards=True, **given)


def test_another_scale_of_noise_or_another_pipeline_is_refused(made, place):
    import diffusers

    model = visae.load_model(f"diffusers:{place / 'sd'}", image_size=(16, 24))
    assert load_sae(made.run.folder, model=model, site=model.site(SITE)).kind == "temporal"
    model.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(MismatchError, match=r"noise levels of PNDMScheduler \(variance\), asked for those of FlowM"):
        load_sae(made.run.folder, model=model)
    with pytest.raises(MismatchError, match="model id"):
        load_sae(made.run.folder, model="diffusers:other")
    with pytest.raises(ValueError, match="sees images and makes none, so it has no steps"):
        train(place / "vision", model="visae:tiny-vit", steps=4)


@pytest.mark.parametrize(("scale", "sigma", "share"), [("variance", 3.0, 0.75), ("flow", 0.3, 0.3)])
def test_bins_are_equal_shares_of_noise_on_either_scale(scale, sigma, share):
    assert noise_share(np.array([sigma]), scale)[0] == pytest.approx(share)
    assert bin_of([sigma], scale).tolist() == [int(share * 10 + 1e-9)]
    assert bin_of([0.0, 1.0 if scale == "flow" else 4096.0], scale).tolist() == [0, 9]
    low, high = bin_name(int(share * 10 + 1e-9), scale).split("-")
    assert float(low) <= sigma <= float(high)
    assert over_bins({}) == {}


def test_metrics_of_a_bin_are_those_of_its_tokens_alone():
    torch.manual_seed(0)
    x = torch.randn(600, 8)
    sigma = torch.tensor([0.05, 1.0, 9.0]).repeat(200)
    branch = torch.tensor([0, 1], dtype=torch.int8).repeat(300)
    x[sigma == 9.0] *= 3
    sae = make_sae("topk", 8, 16, k=2)
    blank = torch.zeros(600, dtype=torch.int64)
    chunk = Chunk(x, blank, blank, blank.byte(), blank, blank, None, blank.short(), sigma, branch)
    found = evaluate_sae(sae, [chunk], batch=100)
    for name, level in zip(found.by_sigma, (0.05, 1.0, 9.0), strict=True):
        alone = evaluate_sae(sae, [x[sigma == level]])
        assert found.by_sigma[name].fvu == pytest.approx(alone.fvu)
        assert np.array_equal(found.by_sigma[name].density, alone.density)
    for name, metrics in found.by_branch.items():
        assert metrics.fvu == pytest.approx(evaluate_sae(sae, [x[branch == CODES[name]]]).fvu)


def test_windows_end_where_bins_of_noise_levels_end_and_hold_every_step_once(place):
    model = visae.load_model(f"diffusers:{place / 'sd'}", image_size=(16, 24))
    for steps in (5, 20, 50):
        known = collection(model, model.site(SITE), Sampling(steps=steps, branch="both"))
        level = {slot.step: int(bin_of([slot.sigma], "variance")[0]) for slot in known.slots}
        for count in (1, 2, 3):
            windows = windows_of(known, count)
            assert [step for window in windows for step in window] == list(range(steps))
            held = [{level[step] for step in window} for window in windows]
            assert all(not a & b for i, a in enumerate(held) for b in held[:i])
            assert max(map(len, windows)) <= steps / count + 4
    with pytest.raises(ValueError, match="asked for 11 windows"):
        windows_of(known, 11)


def test_ways_across_the_timesteps_stand_side_by_side_in_one_table(place):
    common = {name: value for name, value in options(place).items() if name not in ("workers", "collect_steps")}
    found = timesteps(place / "ways", windows=2, kind="topk", **common)
    assert [way.name for way in found.ways] == ["all steps", "2 windows", "temporal"]
    assert len(found.ways[1].folders) == 2
    everything, windows, temporal = found.rows
    assert everything["n"] == windows["n"] == temporal["n"]
    assert all(None not in row["fvu"].values() for row in found.rows)
    for row in found.rows:
        assert row["fvu_mean"] == pytest.approx(np.mean(list(row["fvu"].values())))
        assert 3.5 < row["l0"] <= 4.0
    kinds = [load_sae(folder).kind for way in found.ways for folder in way.folders]
    assert kinds == ["topk", "topk", "topk", "temporal"]
    text = str(found)
    assert all(f"FVU {name}" in text for name in found.bins)
    assert json.loads(found.file.read_text())["rows"][1]["way"] == "2 windows"
