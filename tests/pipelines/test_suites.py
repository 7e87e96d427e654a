"""Many dictionaries from one stream of a pipeline's tokens: suites, layers in groups, fine-tuning."""

import json

import pytest

import visae
from visae.pipelines import AdaptedPipeline
from visae.sae import load_card, load_sae
from visae.store import Sampling
from visae.store.wide import WideStream, alike
from visae.workflows import Schemes, layer_groups, specialise, suite, train
from visae.workflows.run import Run

SITES = ("unet.mid_block.attentions.0", "unet.mid_block", "unet.up_blocks.1.attentions.0")
"""Two with the same tokens, and one with more of them."""
KINDS = ("topk", "temporal")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]


@pytest.fixture(scope="module")
def place(tiny_pipelines, tmp_path_factory):
    """A folder with a saved pipeline, `sd`, and a file of prompts, `p.txt`."""
    folder = tmp_path_factory.mktemp("suites")
    tiny_pipelines.build("sd").save_pretrained(folder / "sd")
    texts = [f"a {a} {s}" for a in ("red", "blue", "green", "grey") for s in ("square", "circle", "star")]
    (folder / "p.txt").write_text("\n".join(texts))
    return folder


def options(place, **more):
    common = {
        "model": f"diffusers:{place / 'sd'}", "data": f"{place / 'p.txt'}?split=train", "steps": 2, "branch": "both",
        "image_size": (16, 24), "batch": 64, "device": "cpu", "workers": 0, "image_batch": 4,
    }  # fmt: skip
    return common | more


@pytest.fixture(scope="module")
def counted():
    """Calls of `generate` in the functions that were run by `counted.run`."""

    class Counted:
        def run(self, job, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                original, calls = AdaptedPipeline.generate, []
                patch.setattr(AdaptedPipeline, "generate", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
                return job(*args, **kwargs), len(calls)

    return Counted()


SCHEMES = Schemes(validate_every=4, best=True)


@pytest.fixture(scope="module")
def made(place, counted):
    several = {"site": SITES[:2], "kind": KINDS, "latents": (48,), "k": (4,), "schemes": SCHEMES}
    return counted.run(suite, place / "suite", **options(place, **several))


@pytest.fixture(scope="module")
def alone(place, counted):
    one = {"latents": 48, "k": 4, "schemes": SCHEMES}
    return counted.run(train, place / "alone", site=SITES[0], kind="temporal", **options(place, **one))


def member(made, site, kind):
    (name,) = (row.members[0] for row in made.rows if (row.setting.site, row.setting.kind) == (site, kind))
    return made.folder / name


def test_a_suite_of_a_pipeline_ends_with_the_dictionary_that_is_trained_alone(made, alone):
    folder = member(made[0], SITES[0], "temporal")
    first, second = (load_card(one) for one in (folder, alone[0].run.folder))
    assert (folder / "sae.safetensors").read_bytes() == (alone[0].run.folder / "sae.safetensors").read_bytes()
    assert first.sampling == second.sampling
    assert first.training["config"] == second.training["config"]
    assert first.metrics == second.metrics
    assert not (made[0].folder / "activations").exists()


def test_one_generation_serves_all_sites_with_the_same_tokens(made, alone):
    assert made[1] == alone[1]


def test_a_site_with_more_tokens_is_trained_once_over_the_prompts_too(place, alone):
    several = {"site": (SITES[2], SITES[0]), "latents": (48,), "k": (4,)}
    found = suite(place / "mixed", **options(place, **several))
    tokens = [load_card(member(found, site, "topk")).training["config"]["tokens"] for site in several["site"]]
    assert tokens == [4 * tokens[1], alone[0].run.card.training["config"]["tokens"]]
    text = train(place / "larger", site=SITES[2], **options(place, latents=48, k=4)).run.folder
    larger = member(found, SITES[2], "topk")
    assert (larger / "sae.safetensors").read_bytes() == (text / "sae.safetensors").read_bytes()


def test_the_table_tells_the_fvu_of_every_noise_level(made):
    report = made[0]
    saved = json.loads((report.folder / "suite.json").read_text())["rows"]
    for row, kept in zip(report.rows, saved, strict=True):
        told = load_card(report.folder / row.members[0]).metrics
        assert kept["fvu_by_sigma"] == row.fvu_by_sigma == {s: m["fvu"] for s, m in told["by_sigma"].items()}
        assert len(row.fvu_by_sigma) == 2
        assert f"{told['fvu_mean']:.3f}" in str(report)
        assert f"{told['fvu_worst_bin']:.3f}" in str(report)
    assert all(f"FVU {name}" in str(report) for name in report.rows[0].fvu_by_sigma)


def test_the_same_suite_again_generates_only_to_measure_and_another_way_to_run_is_refused(made, place, monkeypatch):
    several = {"site": SITES[:2], "kind": KINDS, "latents": (48,), "k": (4,), "schemes": SCHEMES}
    with pytest.raises(ValueError, match="steps: 2 then, 3 now"):
        suite(made[0].folder, **options(place, **several, steps=3))
    monkeypatch.delattr("visae.train.Suite.fit")
    assert suite(made[0].folder, **options(place, **several)).rows == made[0].rows
    with pytest.raises(ValueError, match="belongs to unet, which the mode 'text' does not run"):
        suite(place / "text", **options(place, **several, collect="text"))
    with pytest.raises(ValueError, match="sees images and makes none, so it has no steps"):
        suite(place / "vision", model="visae:tiny-vit", steps=3)


def test_a_fine_tuned_dictionary_is_fed_as_its_general_one_was_but_where_it_is_told_otherwise(alone, place):
    general = alone[0].run
    given = {"data": f"{place / 'p.txt'}?n=3", "batch": 64, "image_batch": 4, "workers": 0, "device": "cpu"}
    same = specialise(general.folder, place / "same", **given).run
    assert same.card.sampling == general.card.sampling
    assert same.card.training["specialised_from"]["weights"] == general.card.weights != same.card.weights
    assert same.card.training["config"]["tokens"] == 3 * 2 * 2 * 24, "once over the prompts"
    assert load_sae(same.folder).mean.equal(load_sae(general.folder).mean)
    last = specialise(general.folder, place / "last", collect_steps=(-1,), branch="cond", passes=2, **given).run
    told, then = last.card.sampling, general.card.sampling
    assert [slot["step"] for slot in told["slots"]] == [1]
    assert told["slots"][0] in then["slots"]
    assert (told["steps"], told["guidance"]) == (then["steps"], then["guidance"])
    assert Run.open(last.folder).config["image_size"] == [16, 24]
    more = specialise(general.folder, place / "more", steps=3, shards=True, passes=1, **given).run
    assert sorted({slot["step"] for slot in more.card.sampling["slots"]}) == [0, 1, 2]
    assert (more.folder / "activations").exists()


def test_layers_of_a_pipeline_share_a_dictionary_with_a_scale_each(place):
    found = layer_groups(
        place / "layers", layers=SITES[:2], groups=1, kind="temporal", **options(place, latents=48, k=4, passes=2)
    )
    assert found.groups == [list(SITES[:2])]
    first, second = (load_sae(place / "layers" / name) for name in SITES[:2])
    assert first.W_dec.equal(second.W_dec)
    assert not first.mean.equal(second.mean)
    assert not (place / "layers" / "activations").exists()
    assert len(load_card(place / "layers" / SITES[0]).metrics["by_sigma"]) == 2
    with pytest.raises(ValueError, match="name those to read"):
        layer_groups(place / "none", **options(place))


def test_sites_of_two_text_encoders_are_not_read_in_one_run(tiny_pipelines):
    model, text = visae.wrap(tiny_pipelines.build("sdxl")), Sampling("text")
    encoders = [part.name for part in model.texts]
    first, second = (next(site for site in model.sites() if site.startswith(f"{part}.")) for part in encoders)
    prompts = visae.data.load_prompts(["a red square"])
    assert alike(model.site(first), text) != alike(model.site(second), text)
    with pytest.raises(ValueError, match="one forward pass serves sites with the same tokens"):
        WideStream(model, [first, second], prompts, sampling=text)
