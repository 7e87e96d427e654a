import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from visae.show import ReportInputs, build_report
from visae.show.latents import best_labels
from visae.show.report import concept_summary, density_bars, number
from visae.show.sections import Picture, Section


def page_of(inputs, folder, **options):
    text = build_report(inputs, folder / "report.html", **options).read_text(encoding="utf-8")
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_is_one_file_that_names_no_other_place(report_inputs, tmp_path):
    text, _ = page_of(report_inputs, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"https?://|//cdn|@import|src=\"(?!data:)|<link(?! rel=\"icon\" href=\"data:)", text)
    assert "default-src 'none'" in text
    assert len(text) < 1_000_000


def test_metrics_have_the_definitions_of_the_metrics_file_and_missing_numbers_are_dashes(report_inputs, tmp_path):
    text, _ = page_of(report_inputs, tmp_path)
    assert 'title="sum |x - r|^2 / sum |x - mean x|^2, one global mean of these tokens"' in text
    assert "<td>–</td>" in text
    assert "nan" not in re.sub(r"<script.*", "", text, flags=re.DOTALL).lower()


def test_every_thumbnail_is_stored_once_and_every_gallery_points_to_the_right_one(report_inputs, tmp_path):
    _, data = page_of(report_inputs, tmp_path)
    keys = [t["key"] for t in data["thumbs"]]
    assert len(keys) == len(set(keys))
    for latent, galleries in data["galleries"].items():
        top = report_inputs.table.top(int(latent), 12)
        assert [keys[i] for g in galleries for i, _, _ in g["items"]] == [
            report_inputs.table.keys[i] for i in top.items
        ]


def test_room_is_given_to_the_latents_of_concepts_first_and_the_table_still_lists_all(report_inputs, tmp_path):
    text, data = page_of(report_inputs, tmp_path, max_bytes=60_000)
    chosen = {j for c in report_inputs.concepts for j in c.selection.latents}
    shown = {int(j) for j in data["galleries"]}
    assert 0 < len(shown) < 58
    assert shown <= chosen or chosen <= shown
    assert data["latents"]["id"] == report_inputs.table.alive.tolist()
    assert f"{len(shown)} of 58 latents have images here" in text
    assert "until 0.1 MB" in text


def test_best_labels_are_chosen_on_one_table_and_measured_on_the_other(report_inputs):
    labels = best_labels(report_inputs.chosen_on, report_inputs.table)
    for c in report_inputs.concepts:
        best = labels[c.selection.latents[0]][0]
        if best.name == c.selection.name:
            assert best.held_out == pytest.approx(c.measured.f1)
            assert best.f1 == pytest.approx(c.selection.scores[0])
    noise = [j for j in range(20, 57) if j in labels]
    assert max(labels[j][0].lift for j in noise) < 0.5 < min(labels[j][0].lift for j in range(20))
    assert (
        np.mean([labels[j][0].held_out - labels[j][0].f1 for j in noise]) < 0
    )  # chosen by chance, found out elsewhere


def test_a_run_without_labels_or_concepts_or_metrics_still_makes_a_page(report_inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(report_inputs.table, "factors", {})
    bare = ReportInputs(title="bare", card={}, table=report_inputs.table, data=report_inputs.data)
    text, data = page_of(bare, tmp_path)
    assert "Which latents mean a label" not in text
    assert set(data["latents"]["f1"]) == {None}


def test_the_summary_counts_values_reached_and_averages_pointing(report_inputs):
    shape = concept_summary(report_inputs.concepts)[0]
    mine = [c for c in report_inputs.concepts if c.selection.factor == "shape"]
    assert shape["n"] == len(mine)
    assert shape["reached"] == sum(c.measured.f1 >= 0.9 for c in mine)
    assert shape["pointing"]["latent"] == pytest.approx(
        np.mean([c.localisation.methods["latent"].pointing for c in mine])
    )


def test_density_bars_hold_every_latent_that_fires():
    bars = density_bars(np.array([0, 1e-4, 1e-4, 0.5, 1.0]))
    counts = [int(bar["text"].split()[0]) for bar in bars["bars"]]
    assert sum(counts) == 4
    assert max(counts) == 2
    assert (bars["alive"], bars["dead"], bars["dense"]) == (4, 1, 2)
    assert density_bars(np.zeros(3))["dead"] == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("inf"), "–"),
        (1234567, "1,234,567"),
        (0.00012345, "0.000123"),
        (0.98765, "0.9877"),
        (True, "True"),
        ([0.1, 0.2], "0.1 to 0.2"),
        ({"n": 3}, "n 3"),
    ],
)
def test_numbers_are_written_as_people_read_them(value, text):
    assert number(value) == text


def test_a_table_of_other_images_is_refused(report_inputs, tmp_path):
    class Shorter:
        name = "other"

        def __len__(self):
            return 3

    with pytest.raises(ValueError, match="must be the same images"):
        build_report(ReportInputs("x", {}, report_inputs.table, Shorter()), tmp_path / "x.html")


def test_a_data_set_that_begins_with_broken_files_is_judged_by_the_first_that_can_be_read(tmp_path):
    from visae.data import load_data
    from visae.workflows.study import _has_regions
    from visae.world import World

    (tmp_path / "a.png").write_bytes(b"not a picture")
    assert not _has_regions(load_data(tmp_path / "a.png"))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert not _has_regions(load_data(tmp_path))
    assert _has_regions(World("test", n=2))


def test_further_sections_show_their_sentences_tables_and_pictures(report_inputs, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "dot.png")
    section = Section(
        "Over <time>", ["A line."], ["sigma", "FVU"], [["0.4", 0.125]], [Picture.of(tmp_path / "dot.png", "a dot", 90)]
    )
    text, _ = page_of(replace(report_inputs, sections=[section]), tmp_path / "page")
    assert "Over &lt;time&gt;" in text
    assert '<th scope="row">0.4</th><td>0.125</td>' in text
    assert re.search(r'max-width: 90px"><img src="data:image/png;base64,[^"]+" alt="a dot">', text)
    assert text.index("Over &lt;time&gt;") < text.index('id="latents"')
