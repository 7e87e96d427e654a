"""The shipped models: there, small, native, and as good as their cards say."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from visae.registry import UnknownName
from visae.world import World, models, prompts
from visae.world.factors import FACTORS
from visae.world.models.network import Judge
from visae.world.models.word_tokenizer import write_tokenizer
from visae.world.training.evaluate import evaluate
from visae.world.training.tasks import normalised

THRESHOLDS = {
    "tiny-clip": {"zero-shot shape": 0.97, "zero-shot style": 0.97, "zero-shot colour": 0.97},
    "tiny-vit": {"shape": 0.98, "style": 0.98},
    "judge": dict.fromkeys(
        ("shape", "family", "subfamily", "style", "colour", "background", "count", "size", "position", "rotation"), 0.99
    ),
}


def test_all_weights_together_are_small() -> None:
    files = [file for name in models.MODELS for file in models.folder(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 12e6


@pytest.mark.parametrize("name", models.MODELS)
def test_weights_are_fp16_and_cards_are_complete(name: str) -> None:
    stored = load_file(models.folder(name) / "model.safetensors")
    assert {v.dtype for v in stored.values()} <= {torch.float16, torch.int64}
    card = models.card(name)
    assert card["finished"]
    assert card["parameters"] == sum(v.numel() for v in stored.values())
    assert {"recipe", "command", "evaluated_on", "metrics"} <= set(card)
    for metric, least in THRESHOLDS[name].items():
        assert card["metrics"][metric] >= least, metric


@pytest.mark.parametrize("name", models.MODELS)
def test_a_sample_of_the_test_split_agrees_with_the_card(name: str) -> None:
    model = models.build(name)
    tokenizer = models.tokenizer() if name == "tiny-clip" else None
    measured = evaluate(model, models.config(name), tokenizer, n=300)
    card = models.card(name)["metrics"]
    for metric, least in THRESHOLDS[name].items():
        # Three standard errors of 300 images, and two images of slack.
        error = 3 * (card[metric] * (1 - card[metric]) / 300) ** 0.5 + 2 / 300
        assert measured[metric] >= least - error, metric
        assert abs(measured[metric] - card[metric]) <= error, metric


def test_models_are_native_and_in_evaluation_mode() -> None:
    kinds = {"tiny-clip": open_clip.model.CLIP, "tiny-vit": VisionTransformer, "judge": Judge}
    for name, kind in kinds.items():
        model = models.build(name)
        assert type(model) is kind
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    vit = models.build("tiny-vit")
    assert (vit.num_prefix_tokens, vit.num_reg_tokens, vit.patch_embed.grid_size) == (5, 4, (8, 8))
    assert models.build("tiny-clip").visual.grid_size == (8, 8)


def test_open_clip_reads_the_folder_itself() -> None:
    ours = models.build("tiny-clip")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{models.folder('tiny-clip')}")
    world = World("test", 4)
    pictures = [world[i].image for i in range(4)]
    x = torch.stack([transform(picture) for picture in pictures])
    mine = normalised(np.stack([np.asarray(p) for p in pictures]), models.preprocess_config("tiny-clip"))
    torch.testing.assert_close(x, mine, atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval().encode_image(x), ours.encode_image(x))


def test_labels_name_every_output() -> None:
    for name in ("tiny-vit", "judge"):
        with torch.inference_mode():
            assert models.build(name)(torch.zeros(1, 3, 64, 64)).shape == (1, len(models.labels(name)))
        assert all(value in FACTORS[factor] for factor, value in models.labels(name))


def test_the_tokenizer_knows_every_caption() -> None:
    tokenizer = models.tokenizer()
    world = World("test", 300, objects=(1, 3))
    texts = [world.caption(i, j).text for i in range(300) for j in range(3)]
    texts += [p for f in ("shape", "style", "colour", "position") for v in FACTORS[f] for p in prompts(f, v)]
    assert not [word for text in texts for word in tokenizer.unknown(text)]
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), 40)
    assert not (ids == 1).any()
    assert (ids.max(1).values == tokenizer.vocab_size - 1).all()


def test_tokenizer_on_other_texts() -> None:
    tokenizer = models.tokenizer()
    assert tokenizer("A Red CIRCLE.").tolist() == tokenizer(["a red circle ."]).tolist()
    assert tokenizer.unknown("a mauve circle") == ["mauve"]
    assert (tokenizer("a mauve circle") == 1).sum() == 1
    long = tokenizer(" ".join(["red"] * 100))[0]
    assert long[-1] == tokenizer.vocab_size - 1


def test_the_shipped_tokenizer_is_the_one_the_lexicon_makes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((models.folder("tiny-clip") / name).read_text()) == json.loads((tmp_path / name).read_text())


def test_open_clips_own_tokenizer_agrees() -> None:
    pytest.importorskip("transformers")
    theirs = open_clip.get_tokenizer(f"local-dir:{models.folder('tiny-clip')}")
    texts = ["a red circle", "a polka-dot star , outlined ,", "an oval on a dark background"]
    assert theirs(texts).tolist() == models.tokenizer()(texts).tolist()


def test_unknown_models_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'tiny-clip'"):
        models.build("tiny-clp")
    with pytest.raises(ValueError, match="no text tower"):
        models.tokenizer("judge")
