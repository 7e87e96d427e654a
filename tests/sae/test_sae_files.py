"""Saving and loading: the same codes back, and clear refusals of what is damaged or does not fit."""

import json
from dataclasses import dataclass

import pytest
import torch

from visae.sae import ABOUT, Card, MismatchError, initialise, load_card, load_sae, save_sae
from visae.sites import Site

MODEL = {"id": "visae:tiny-clip", "revision": "abc123"}
SITE = Site("blocks.2", "visual.blocks.2", "output", "NLC", 16, ("cls",) + ("patch",) * 4, (2, 2), (8.0, 8.0))


def card(kind="topk"):
    return Card(
        kind,
        16,
        64,
        model=MODEL,
        site=SITE.to_dict(),
        policy={"kinds": ["patch"]},
        geometry={"grid": [2, 2]},
        data={"name": "world", "fingerprint": "f00"},
        metrics={"fvu": 0.25, "n": 1000},
    )


def test_every_kind_comes_back_with_the_same_codes_and_its_card(sae, tokens, tmp_path, bring):
    x = bring(sae, tokens(100))
    before = sae.encode(x)
    written = save_sae(sae, tmp_path / "sae", card(sae.kind))
    loaded = load_sae(tmp_path / "sae", MODEL, SITE)
    assert torch.equal(loaded.encode(x).to_dense(), before.to_dense())
    assert torch.equal(loaded(x), sae(x))
    assert loaded.kind == sae.kind
    assert loaded.options == sae.options
    assert not loaded.training
    assert loaded.card == written == load_card(tmp_path / "sae")
    assert (written.model, written.metrics["fvu"], written.schema) == (MODEL, 0.25, 1)
    assert written.status == ABOUT[sae.kind].status
    if sae.kind == "batch_topk":
        assert written.threshold == pytest.approx(float(sae.activation.threshold))
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["sae.json", "sae.safetensors"]


def test_cards_of_before_have_no_status_and_get_one_when_saved_again(small, tokens, tmp_path):
    sae = small("vsae")
    initialise(sae, tokens())
    save_sae(sae, tmp_path)
    file = tmp_path / "sae.json"
    data = json.loads(file.read_text())
    assert data.pop("status").startswith("experimental: a worse reconstruction than topk")
    file.write_text(json.dumps(data))
    loaded = load_sae(tmp_path)
    assert loaded.card.status == ""
    assert save_sae(loaded, tmp_path).status == ABOUT["vsae"].status
    assert loaded.card.updated(kind="bag").status == "", "the registry does not describe ensembles"


@dataclass
class Model:
    id: str
    revision: str


def test_another_model_or_site_is_refused_with_both_values_unless_forced(small, tokens, tmp_path, sae):
    save_sae(sae, tmp_path, card(sae.kind))
    load_sae(tmp_path, "visae:tiny-clip", "blocks.2")
    load_sae(tmp_path, Model("visae:tiny-clip", "abc123"), SITE)
    with pytest.raises(MismatchError, match=r"model id 'visae:tiny-clip', asked for 'timm:vit'"):
        load_sae(tmp_path, "timm:vit")
    with pytest.raises(MismatchError, match=r"model revision 'abc123', asked for 'zzz'"):
        load_sae(tmp_path, Model("visae:tiny-clip", "zzz"))
    with pytest.raises(MismatchError, match=r"site name 'blocks.2', asked for 'blocks.3'"):
        load_sae(tmp_path, MODEL, "blocks.3")
    other = Site.from_dict({**SITE.to_dict(), "kind": "delta"})
    with pytest.raises(MismatchError, match=r"site kind 'output', asked for 'delta'.*force=True"):
        load_sae(tmp_path, MODEL, other)
    assert load_sae(tmp_path, "timm:vit", "blocks.3", force=True).kind == sae.kind


def test_a_card_without_model_is_not_taken_for_a_match(sae, tmp_path):
    save_sae(sae, tmp_path)
    load_sae(tmp_path)
    with pytest.raises(MismatchError, match="no model on its card"):
        load_sae(tmp_path, "timm:vit")


def test_a_changed_byte_of_the_weights_is_noticed_by_file_name(sae, tmp_path):
    save_sae(sae, tmp_path)
    file = tmp_path / "sae.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"sae\.safetensors is damaged"):
        load_sae(tmp_path)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"sae\.safetensors is damaged"):
        load_sae(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"sae\.safetensors does not exist"):
        load_sae(tmp_path)


def test_damaged_or_foreign_cards_are_refused_with_what_is_wrong(sae, tmp_path):
    save_sae(sae, tmp_path)
    file = tmp_path / "sae.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"colour": 1}, "unknown keys colour"),
        ({"schema": 9}, "schema 9"),
        ({"n_latents": 65}, r"\[64.*\(expected \[65|width must be a multiple of"),
        ({"kind": "topkk"}, "Unknown kind"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises((ValueError, KeyError), match=message):
            load_sae(tmp_path)
    file.write_text(json.dumps({k: v for k, v in good.items() if k != "d"}))
    with pytest.raises(ValueError, match="lacks d"):
        load_sae(tmp_path)
    file.write_text("{ half")
    with pytest.raises(ValueError, match=r"sae\.json is not JSON"):
        load_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        load_sae(tmp_path / "nowhere")


def test_a_save_cut_short_at_any_rename_never_looks_whole(small, tokens, sae, tmp_path, monkeypatch):
    import os

    save_sae(sae, tmp_path)
    real, calls = os.replace, []

    for stop_at in (1, 2):
        calls.clear()

        def replace(a, b, stop_at=stop_at):
            calls.append(b)
            if len(calls) == stop_at:
                raise OSError("power cut")
            real(a, b)

        monkeypatch.setattr("os.replace", replace)
        with pytest.raises(OSError, match="power cut"):
            save_sae(sae, tmp_path)
        monkeypatch.setattr("os.replace", real)
        with pytest.raises(FileNotFoundError, match=r"sae\.json does not exist though sae\.safetensors does"):
            load_sae(tmp_path)
        save_sae(sae, tmp_path)
        load_sae(tmp_path)


def test_what_would_not_work_is_not_saved(small, sae, tmp_path):
    if sae.unit_parameters():
        with pytest.raises(ValueError, match=r"rows of decoder\.weight should have length 1"):
            save_sae(small(sae.kind), tmp_path)
    name, parameter = next(iter(sae.named_parameters()))
    with torch.no_grad():
        parameter[3] = float("nan")
    with pytest.raises(ValueError, match=rf"{name} hold values that are not finite"):
        save_sae(sae, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_goes_to_the_hub_and_back_as_two_files(sae, tokens, tmp_path, monkeypatch, bring):
    """The hub's client is replaced at its boundary by one that copies to and from a local folder."""
    import shutil
    from pathlib import Path

    import huggingface_hub

    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            assert private
            assert exist_ok
            (hub / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, path_in_repo, allow_patterns, commit_message):
            assert sae.kind in commit_message
            target = hub / repo_id / (path_in_repo or "")
            target.mkdir(parents=True, exist_ok=True)
            for file in Path(folder_path).iterdir():
                if file.name in allow_patterns:
                    shutil.copy(file, target)
            return "https://hub/commit/1"

    def snapshot_download(repo_id, *, revision, cache_dir, token, allow_patterns):
        assert revision in (None, "v1")
        wanted = [hub / repo_id / pattern for pattern in allow_patterns]
        assert all(file.is_file() for file in wanted)
        return str(hub / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    from visae.sae import pull_sae, push_sae

    save_sae(sae, tmp_path / "sae", card(sae.kind))
    (tmp_path / "sae" / "metrics.jsonl").write_text("private notes")
    assert push_sae(tmp_path / "sae", "ann/saes/blocks.2") == "https://hub/commit/1"
    assert sorted(p.name for p in pull_sae("ann/saes/blocks.2").iterdir()) == ["sae.json", "sae.safetensors"]
    loaded = load_sae("hf:ann/saes/blocks.2", MODEL, SITE, revision="v1")
    x = bring(sae, tokens(9))
    assert torch.equal(loaded(x), sae(x))
    with pytest.raises(MismatchError):
        load_sae("hf:ann/saes/blocks.2", "timm:vit")
    with pytest.raises(ValueError, match="user/repository"):
        push_sae(tmp_path / "sae", "saes")
    with pytest.raises(FileNotFoundError):
        push_sae(tmp_path, "ann/saes")
