"""Prompts with seeds and labels, from files, from entries, and from the built-in world."""

import json
import re

import pytest

from visae.data import PromptData, config_names, load_prompts, read_config, split
from visae.data.prompts import PARTS, part_of, part_of_text
from visae.registry import UnknownName
from visae.world import World

TEXTS = [f"a {colour} cat number {i}" for i in range(100) for colour in ("red", "blue")]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "cats.txt"
    path.write_text("\n".join(["", *TEXTS, "  "]), encoding="utf8")
    return path


def test_a_text_file_gives_a_prompt_a_line_each_with_a_seed_of_its_own(lines):
    data = load_prompts(lines)
    assert isinstance(data, PromptData)
    assert [one.text for one in data] == TEXTS
    assert len({one.seed for one in data}) == len({one.key for one in data}) == len(TEXTS)
    assert data[0].labels == {}
    assert [one.seed for one in load_prompts(f"{lines}?seed=7")] == [one.seed + 7 for one in data]
    assert load_prompts(["a cat", "a dog"])[1].text == "a dog"


def test_many_seeds_of_one_prompt_stay_in_one_part_of_a_split(lines):
    data = load_prompts(f"{lines}?seeds=3&n=20")
    assert len(data) == 60
    assert len({(one.text, one.seed) for one in data}) == 60
    parts = split(data, {"train": 0.7, "test": 0.3})
    found = {name: {part[i].text for i in range(len(part))} for name, part in parts.items()}
    assert not found["train"] & found["test"]
    assert len(parts["train"]) % 3 == 0


def test_parts_share_no_text_and_keep_every_seed(lines):
    whole = {one.text: one.seed for one in load_prompts(lines)}
    parts = {part: load_prompts(f"{lines}?split={part}") for part in PARTS}
    texts = [one.text for part in parts.values() for one in part]
    assert sorted(texts) == sorted(TEXTS)
    assert all(whole[one.text] == one.seed for part in parts.values() for one in part)
    assert 140 <= len(parts["train"]) <= 180
    assert part_of(f"{lines}?split=train&n=50", "test", 10) == f"{lines}?split=test&n=10"
    assert part_of(str(lines), "test") is None
    assert part_of("world:prompts?n=5", "test") == "world:prompts?n=5&split=test"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_a_table_of_any_kind_gives_texts_seeds_groups_and_labels(kind, tmp_path):
    rows = [
        {"prompt": "a cat, red", "seed": 11, "group": "cats", "labels": "colour=red;animal=cat"},
        {"prompt": "a dog", "seed": "", "group": "", "labels": ""},
    ]
    path = tmp_path / f"table.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        quoted = [[f'"{value}"' for value in row.values()] for row in rows]
        path.write_text("\n".join(mark.join(cells) for cells in [list(rows[0]), *quoted]))
    else:
        rows[0] |= {"labels": {"colour": "red", "animal": ["cat"]}}
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    data = load_prompts(f"{path}?seed=100")
    assert [(one.text, one.seed, one.group) for one in data] == [("a cat, red", 11, "cats"), ("a dog", 101, "a dog")]
    assert data[0].labels == {"colour": ("red",), "animal": ("cat",)}
    assert data.factors == {"animal": ["cat"], "colour": ["red"]}
    assert data.fingerprint != load_prompts(path).fingerprint
    assert data.fingerprint == load_prompts(f"{path}?seed=100").fingerprint


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,seed\na cat,x\n")
    with pytest.raises(ValueError, match=r"has no column prompt; its columns are text, seed"):
        load_prompts(path)
    with pytest.raises(ValueError, match=r"whole number, got 'x' for seed in row 1 of .*t\.csv"):
        load_prompts(f"{path}?prompt_column=text")
    path.write_text("prompt,labels\na cat,red\n")
    with pytest.raises(ValueError, match=r"labels read factor=value;factor=value, got 'red' in row 1"):
        load_prompts(path)
    with pytest.raises(UnknownName, match="Did you mean 'seeds'"):
        load_prompts(f"{path}?sedes=3")
    with pytest.raises(UnknownName, match="Did you mean 'world-prompts'"):
        load_prompts("word-prompts")
    with pytest.raises(ValueError, match="celeba holds images, not prompts"):
        load_prompts("celeba")
    with pytest.raises(ValueError, match="n is a whole number of at least 1, got '0'"):
        load_prompts(["a"], n=0)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="has no prompts"):
        load_prompts(tmp_path / "empty.txt")


def test_captions_of_the_world_know_what_they_ask_for_and_no_text_is_in_two_parts():
    found = {}
    for part in PARTS:
        data = load_prompts(f"world:prompts?n=60&split={part}&objects=1")
        assert isinstance(data, PromptData)
        found[part] = {data[i].text for i in range(60)}
        assert all(part_of_text(text) == part for text in found[part])
        world = World(part, n=60, objects=1)
        for i in range(60):
            caption = data.caption(i)
            truth = world.labels(i)
            assert caption.holds(world.scene(i))
            assert data[i].labels, data[i].text
            assert all(set(values) <= set(truth[factor]) for factor, values in data[i].labels.items())
    assert not found["train"] & (found["validation"] | found["test"])
    again = load_prompts(load_prompts("world:prompts?n=6&seeds=2&first=9").name)
    assert len(again) == 12
    assert [again[i].seed for i in range(12)] == list(range(9, 21))
    assert again[0].text == again[1].text != again[2].text
    assert again.group_of(0) == again.group_of(1) != again.group_of(2)
    with pytest.raises(IndexError, match="prompts 0 to 11, got 12"):
        again[12]
    with pytest.raises(UnknownName, match="Did you mean 'validation'"):
        load_prompts("world:prompts?split=validatoin")


@pytest.mark.parametrize("name", [n for n in config_names() if "prompts" in read_config(n)])
def test_prompts_of_an_entry_are_read_or_say_where_they_should_be(name, tmp_path):
    if "folder" in read_config(name):
        with pytest.raises(FileNotFoundError, match=rf"should be at {re.escape(str(tmp_path))}.*\?root=/path/to/it"):
            load_prompts(f"{name}?root={tmp_path}")
    else:
        assert len(load_prompts(name)) > 0


def test_entries_read_files_as_their_sources_write_them(tmp_path):
    (tmp_path / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology-inspired concepts\n"
    )
    assert load_prompts(f"parti?root={tmp_path}")[0].labels == {"category": ("Abstract",), "challenge": ("Basic",)}
    (tmp_path / "i2p_benchmark.csv").write_text('prompt,categories,sd_seed\n"a, b","hate, violence",3868791268\n')
    one = load_prompts(f"i2p?root={tmp_path}")[0]
    assert (one.text, one.seed, one.labels) == ("a, b", 3868791268, {"category": ("hate", "violence")})
    (tmp_path / "annotations").mkdir()
    captions = [{"image_id": 7, "id": 2, "caption": "Later."}, {"image_id": 7, "id": 1, "caption": " A dog\n runs. "}]
    (tmp_path / "annotations/captions_val2017.json").write_text(json.dumps({"annotations": captions}))
    data = load_prompts(f"coco-prompts?root={tmp_path}")
    assert [(one.text, one.key) for one in data] == [("A dog runs.", "000000000007")]
    grid = load_prompts("unlearncanvas-prompts")
    assert len(grid) == 51 * 20 * 5
    assert grid[5].text == "A Architectures image in Artist Sketch style."
    assert grid[5].labels["style"] == ("Artist_Sketch",)
