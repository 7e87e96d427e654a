"""A selection with its evidence: what it holds, what it says, and that nothing half-written looks whole."""

import json
import math
import os

import numpy as np
import pytest
import torch

from visae.select import Selection, select_concept

OLD = {
    "factor": "shape", "value": "circle", "latents": [3, 1], "weights": [1.0, 1.0], "thresholds": [0.5, None],
    "signs": [1, -1], "score": "f1", "scores": [0.9, 0.4], "chosen_on": {"data": "val"}, "sae": "0123",
}  # fmt: skip


def made(statistics_of, missed=0, n=10):
    """Latent 2 fires on all target prompts but some; latent 0 everywhere."""
    codes = np.zeros((2 * n, 2, 4, 4))
    codes[..., 0] = 1
    codes[missed:n, :, 0, 2] = [2.0, 4.0]
    return statistics_of(codes[:n], levels=(8.0, 2.0)), statistics_of(codes[n:], levels=(8.0, 2.0))


def test_evidence_holds_the_means_over_tokens_of_both_kinds_of_prompt(statistics_of):
    found = select_concept(*made(statistics_of), score="mean_difference", top_m=2, concept="shape=star")
    assert found.latents == (2, 0)
    assert (found.factor, found.value, found.name) == ("shape", "star", "shape=star")
    assert found.evidence["levels"].tolist() == [8.0, 2.0]
    assert found.evidence["target"].tolist() == [[0.5, 1.0], [1.0, 1.0]]
    assert found.evidence["retain"].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert found.evidence["everywhere"].tolist() == [[0.25, 1.0], [0.5, 1.0]]
    assert found.evidence["active"].dtype == torch.bool
    assert found.thresholds == (2.0, 0.5)
    assert found.chosen_on["false_alarms"] == 1
    one = select_concept(*made(statistics_of), score="mean_difference", top_m=1)
    assert one.chosen_on["false_alarms"] == 0
    assert one.scores == (1.0,)


def test_noise_levels_outside_the_range_have_no_part(statistics_of):
    found = select_concept(*made(statistics_of), score="mean_difference", top_m=1, sigmas=(5.0, 10.0))
    assert found.evidence["levels"].tolist() == [8.0]
    assert found.scores == (0.5,)
    assert found.sigmas == (5.0, 10.0)
    given = torch.tensor([[0.0, 0, 1, 0], [9.0, 0, 0, 0]])
    assert select_concept(*made(statistics_of), scores=given, score="mine", top_m=1, sigmas=(5, 10)).latents == (2,)
    with pytest.raises(ValueError, match="no noise level lies between 100 and 200"):
        select_concept(*made(statistics_of), sigmas=(100, 200))


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_coverage_is_always_said_and_warned_of_below_nine_tenths(missed, statistics_of, recwarn):
    found = select_concept(*made(statistics_of, missed), score="mean_difference", top_m=1, concept="a star")
    assert found.coverage == pytest.approx(1 - missed / 10)
    assert f"coverage {1 - missed / 10:.1%}" in str(found)
    assert ("warning" in str(found)) == (missed == 2)
    told = [str(one.message) for one in recwarn if issubclass(one.category, UserWarning)]
    assert len(told) == (missed == 2)
    if told:
        assert "not caught in 20.0% of the target prompts" in told[0]


def test_a_latent_counts_for_coverage_only_at_its_own_levels(statistics_of):
    codes = np.zeros((4, 2, 1, 2))
    codes[0, 0, :, 0] = codes[1, 1, :, 0] = 1  # the first target prompt early, the second late
    target, retain = statistics_of(codes[:2]), statistics_of(codes[2:])
    early = torch.tensor([[1.0, -math.inf], [-math.inf, -math.inf]])
    with pytest.warns(UserWarning, match="not caught in 50"):
        assert select_concept(target, retain, scores=early, score="mine").coverage == 0.5
    always = torch.tensor([[1.0, -math.inf], [1.0, -math.inf]])
    assert select_concept(target, retain, scores=always, score="mine").coverage == 1


def test_a_selection_and_its_evidence_survive_the_disk(statistics_of, tmp_path):
    found = select_concept(*made(statistics_of), score="auroc", top_m=2, sigmas=(1.0, 9.0))
    found.save(tmp_path / "deep" / "star.json")
    again = Selection.load(tmp_path / "deep" / "star.json")
    assert again == found
    assert again.evidence.keys() == found.evidence.keys()
    for name, tensor in found.evidence.items():
        assert torch.equal(again.evidence[name], tensor)
    assert str(again) == str(found)


def test_files_from_before_sites_and_evidence_still_load(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(OLD))
    found = Selection.load(tmp_path / "old.json")
    assert found.latents == (3, 1)
    assert found.thresholds == (0.5, math.inf)
    assert (found.site, found.sigmas, found.coverage, found.evidence) == ("", None, None, {})
    assert "coverage not measured" in str(found)
    assert Selection.from_dict(found.to_dict()) == found


def test_what_is_half_written_never_looks_whole(statistics_of, tmp_path, monkeypatch):
    file = tmp_path / "star.json"
    first = select_concept(*made(statistics_of), score="auroc", top_m=1)
    second = select_concept(*made(statistics_of), score="auroc", top_m=2)
    first.save(file)
    real = os.replace
    for failing in (1, 2):
        calls = []

        def breaks(source, goal, calls=calls, failing=failing):
            calls.append(goal)
            if len(calls) == failing:
                raise OSError("disk full")
            real(source, goal)

        monkeypatch.setattr(os, "replace", breaks)
        with pytest.raises(OSError, match="disk full"):
            second.save(file)
        monkeypatch.setattr(os, "replace", real)
        left = Selection.load(file)
        assert left == first
        assert torch.equal(left.evidence["target"], first.evidence["target"])
    second.save(file)
    assert Selection.load(file) == second
    assert len(list(tmp_path.glob("star.*.safetensors"))) == 1


def test_damaged_or_missing_evidence_is_refused(statistics_of, tmp_path):
    file = tmp_path / "star.json"
    select_concept(*made(statistics_of), score="auroc").save(file)
    (tensors,) = tmp_path.glob("*.safetensors")
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        Selection.load(file)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"star.json names it"):
        Selection.load(file)
