"""`visae suite` from images to a table: cards, metrics, stability, and going on where it was."""

import json
import shutil
from dataclasses import asdict

import pytest

from visae.sae import load_card, load_sae
from visae.train import Suite
from visae.workflows import Schemes, suite
from visae.workflows.run import Run

COMMON = {
    "model": "visae:tiny-vit", "data": "world:train?n=48&objects=1", "validation": "world:validation?n=24&objects=1",
    "site": ("blocks.1", "blocks.-2"), "latents": (64,), "k": (4, 8), "passes": 3, "batch": 256, "device": "cpu",
    "checkpoint_every": 10, "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    return suite(out / "run", seeds=2, kind=("topk", "relu_l1"), stream=True, **COMMON)


def test_every_member_has_a_folder_with_its_dictionary_card_metrics_and_options(made):
    names = [name for row in made.rows for name in row.members]
    assert len(names) == 2 * (2 + 1) * 2
    for name in names:
        run = Run.open(made.folder / name)
        card, sae = run.card, load_sae(made.folder / name)
        assert card.model["id"] == "visae:tiny-vit"
        assert name == f"{card.site['name']}-{run.config['kind']}" + name.split(run.config["kind"], 1)[1]
        assert (sae.n_latents, card.metrics["data"]) == (
            64,
            "world:validation?n=24&size=64&seed=0&objects=1&captions=4",
        )
        assert card.metrics["held_out"] is True
        assert card.training["config"]["seed"] == int(name[-1])
        assert len((made.folder / name / "metrics.jsonl").read_text().splitlines()) >= 1
    assert {row.setting.site for row in made.rows} == {"blocks.1", "blocks.3"}


def test_the_table_marks_what_is_dominated_and_reports_shared_latents_over_all_and_alive(made):
    text = str(made)
    assert "12 dictionaries in 6 rows" in text
    for word in ("pareto", "shared", "alive", "FVU", "L0", "dead", "blocks.1", "relu_l1"):
        assert word in text
    for row in made.rows:
        cards = [load_card(made.folder / name) for name in row.members]
        assert row.fvu == pytest.approx(sum(card.metrics["fvu"] for card in cards) / 2)
        assert row.fvu_range[0] <= row.fvu <= row.fvu_range[1]
        assert 0 <= row.shared <= 1
        assert 0 <= row.shared_alive <= 1
        rivals = [r for r in made.rows if r.setting.site == row.setting.site and r is not row]
        assert row.dominated == any(r.l0 <= row.l0 and r.fvu <= row.fvu for r in rivals)
    saved = json.loads((made.folder / "suite.json").read_text())
    assert [row["fvu"] for row in saved["rows"]] == [row.fvu for row in made.rows]
    assert (made.folder / "suite.png").stat().st_size > 10_000


def test_the_same_command_again_trains_nothing_and_finds_the_same(made, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("visae.train.suite.Trainer", refuse)
    again = suite(made.folder, seeds=2, kind=("topk", "relu_l1"), stream=True, **COMMON)
    assert again.rows == made.rows


def test_a_longer_sweep_trains_only_what_is_new_and_equals_a_sweep_at_once(made, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(made.folder, folder)
    longer = {**COMMON, "k": (4, 8, 6)}
    seen, original = [], Suite.__init__

    def spy(self, members, *args, **kwargs):
        seen.extend(member.name for member in members)
        original(self, members, *args, **kwargs)

    monkeypatch.setattr(Suite, "__init__", spy)
    grown = suite(folder, seeds=2, kind=("topk",), stream=True, **longer)
    assert sorted(seen) == sorted(f"blocks.{b}-topk-k6-f64-s{s}" for b in (1, 3) for s in (0, 1))
    fresh = suite(tmp_path / "fresh", seeds=2, kind=("topk",), stream=True, **longer)
    assert [row.fvu for row in fresh.rows] == [row.fvu for row in grown.rows]


def test_other_options_in_the_same_folder_are_refused_by_name(made):
    with pytest.raises(ValueError, match="passes: 3 then, 4 now"):
        suite(made.folder, stream=True, **{**COMMON, "passes": 4})


def test_stores_per_site_give_what_the_stream_gives_in_another_order(made, tmp_path):
    stored = suite(tmp_path / "run", **{**COMMON, "k": (8,)})
    assert sorted(p.name for p in (tmp_path / "run" / "activations").iterdir()) == ["blocks.1", "blocks.3"]
    streamed = {(r.setting.site, r.setting.k): r.fvu for r in made.rows if r.setting.kind == "topk"}
    for row in stored.rows:
        assert row.shared is None
        assert row.fvu == pytest.approx(streamed[row.setting.site, row.setting.k], rel=0.35)


def test_a_dictionary_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="k is the number of codes per token"):
        suite(tmp_path / "run", **{**COMMON, "k": (4, 65)})
    assert not (tmp_path / "run" / "activations").exists()


ONE = {**COMMON, "site": ("blocks.1",), "k": (4,), "stream": True}


def test_a_case_with_schemes_ends_as_in_a_sweep_of_its_own_with_these_schemes(tmp_path):
    own = {"resample_every": 5, "validate_every": 4, "sparsity_warmup": 0.5}
    cases = ({"kind": "topk"}, {"kind": "relu_l1"}, {"kind": "relu_l1", "schemes": own})
    found = suite(tmp_path / "run", cases=cases, schemes=Schemes(ema=0.9), **ONE)
    rows = [row for row in found.rows if row.setting.kind == "relu_l1"]
    assert [row.setting.schemes for row in rows] == [{}, own]
    assert "resample_every=5, validate_every=4" in str(found)
    assert rows[0].fvu != rows[1].fvu
    for row, schemes in ((rows[0], Schemes(ema=0.9)), (rows[1], Schemes(ema=0.9, **own))):
        alone = suite(tmp_path / f"alone{len(row.setting.schemes)}", kind=("relu_l1",), schemes=schemes, **ONE)
        assert alone.rows[0].fvu == row.fvu
        (name,) = row.members
        card, told = load_card(found.folder / name), Run.open(found.folder / name).config["schemes"]
        assert told == asdict(schemes)
        assert told.items() <= card.training["config"].items()
    again = suite(tmp_path / "run", cases=cases, schemes=Schemes(ema=0.9), **ONE)
    assert again.rows == found.rows


@pytest.mark.parametrize(
    ("schemes", "why"),
    [
        ({"sparsity_warmup": 0.2}, "kind 'batch_topk' has no penalty that rises"),
        ({"resample_every": 5}, "dead latents of kind 'batch_topk' cannot be resampled"),
    ],
)
def test_schemes_that_a_dictionary_cannot_have_name_it_and_the_way_out_and_leave_no_folder(schemes, why, tmp_path):
    with pytest.raises(ValueError, match=rf"blocks.1-batch_topk-k4-f64-s0: {why}.*cases: \[\{{\}}, \{{kind: relu_l1"):
        suite(tmp_path / "run", kind=("relu_l1", "batch_topk"), schemes=Schemes(**schemes), **ONE)
    assert not list(tmp_path.rglob("run.json")), "the same folder serves the sweep that is put right"


def test_bags_boosts_and_mfr_stand_in_the_table_beside_what_they_are_made_of(tmp_path):
    options = {**COMMON, "site": ("blocks.1",), "k": (4, 8), "seeds": 2, "bag": True, "boost": 2, "stream": True}
    found = suite(tmp_path, mfr=(0.0, 0.03), **options)
    rows = {(row.setting.k, row.setting.mfr, row.label): row for row in found.rows}
    assert len(rows) == 2 * 2 * 3
    for (k, mfr, label), row in rows.items():
        alone = rows[k, mfr, ""]
        if label:
            assert 1.5 * alone.l0 < row.l0 <= 2 * k  # the k largest of a token may be below 0
            (name,) = row.members
            card, sae = load_card(tmp_path / name), load_sae(tmp_path / name)
            assert (card.kind, sae.n_latents) == (label.split()[0], 128)
            assert card.metrics["fvu"] == row.fvu
            assert Run.open(tmp_path / name).config["ensemble"] == label
    for k in (4, 8):
        assert rows[k, 0.0, "boost of 2"].fvu < rows[k, 0.0, ""].fvu
        assert rows[k, 0.03, ""].mmcs > rows[k, 0.0, ""].mmcs
    assert rows[4, 0.0, "boost of 2"].fvu < rows[8, 0.0, ""].fvu_range[1] * 1.5
    assert "topk, boost of 2" in str(found)
    again = suite(tmp_path, mfr=(0.0, 0.03), **options)
    assert [row.fvu for row in again.rows] == pytest.approx([row.fvu for row in found.rows], rel=1e-6)
    with pytest.raises(ValueError, match="bag cannot hold"):
        suite(tmp_path / "unit", normaliser=("unit",), **options)
