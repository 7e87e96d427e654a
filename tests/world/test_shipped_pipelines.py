"""The judge's protocol for text-to-image pipelines, and those that ship with visae."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from visae.model import load_model
from visae.registry import UnknownName
from visae.world import models
from visae.world.pipeline_recipes import PIPELINE_RECIPES
from visae.world.sheet import _posed
from visae.world.training.latents import withheld_combinations
from visae.world.training.oracle import JUDGED, evaluate_pipeline, held_out_prompts
from visae.world.training.prompt_sheet import prompt_sheet


class Painter:
    """A pipeline that paints what `alter` makes of what the prompt states, and an autoencoder that loses nothing."""

    def __init__(self, alter) -> None:
        known = [*held_out_prompts(12, new=True), *held_out_prompts(12, new=False)]
        self.stated = {c.text: alter(c.things[0] | {"background": c.background}) for c in known}
        self.vae = SimpleNamespace(
            device="cpu",
            encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
            decode=lambda z: SimpleNamespace(sample=z),
        )

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, texts, generator, **_):
        assert len(texts) == len(generator)
        painted = [_render(self.stated[text], generator[k].initial_seed()) for k, text in enumerate(texts)]
        return SimpleNamespace(images=np.stack(painted) / 255.0)


def _render(stated: dict[str, str], seed: int) -> np.ndarray:
    from visae.world.render import render

    return render(_posed(seed, "large", **stated), 64)


def test_the_judge_finds_right_what_is_right_and_wrong_what_is_wrong() -> None:
    right = evaluate_pipeline(Painter(lambda stated: stated), 24, 3.0)
    assert set(right) == {p + f for p in ("", "new ") for f in (*JUDGED, "shape and style")} | {
        f"reconstructed {factor}" for factor in JUDGED
    }
    assert min(right.values()) > 0.95
    blue = evaluate_pipeline(Painter(lambda stated: stated | {"colour": "blue"}), 24, 3.0)
    asked = [*held_out_prompts(12, new=True), *held_out_prompts(12, new=False)]
    assert blue["colour"] == pytest.approx(np.mean([c.things[0]["colour"] == "blue" for c in asked]))
    assert min(blue["shape"], blue["style"], blue["background"], blue["reconstructed colour"]) > 0.9


def test_held_out_prompts_are_new_combinations_or_known_ones() -> None:
    kept = set(withheld_combinations())
    for new in (True, False):
        asked = [tuple(c.things[0][f] for f in ("shape", "style", "colour")) for c in held_out_prompts(96, new)]
        assert len(asked) == 96
        assert {combination in kept for combination in asked} == {new}
    assert len({c.text for c in held_out_prompts(96, True)}) > 90


def test_the_sheet_shows_every_prompt() -> None:
    sheet = prompt_sheet(Painter(lambda stated: stated), 8, 3.0)
    assert sheet.width == 6 * 140
    assert len(sheet.getcolors(1 << 20)) > 50


def test_what_is_not_shipped_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="tiny-sd"):
        models.pipeline("tiny-ds")
    with pytest.raises(FileNotFoundError, match=r"python -m visae\.world\.train tiny-dit"):
        models.pipeline("tiny-dit", tmp_path)


SHIPPED = [name for name in models.PIPELINES if (models.folder(name) / "model_index.json").exists()]


def test_all_that_ships_is_small() -> None:
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert sum(size(models.folder(name)) for name in SHIPPED) < 25e6
    assert size(Path(models.__file__).parent) < 40e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_pipeline_is_what_its_card_says(name: str) -> None:
    recipe, card = PIPELINE_RECIPES[name](), models.card(name)
    pipe = DiffusionPipeline.from_pretrained(models.folder(name))
    assert type(pipe).__name__ == recipe.classes["pipeline"]
    assert load_model(f"visae:{name}").options == recipe.call, "users meet it as it was measured"
    networks = {key: part for key, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert card["parameters"] == {key: sum(p.numel() for p in part.parameters()) for key, part in networks.items()}
    assert card["trained_on"]["withheld"] == [" ".join(combination) for combination in withheld_combinations()]
    assert {"metrics", "evaluated_on", "evaluation_command", "recipe", "step", "finished"} <= set(card)
    measured = evaluate_pipeline(pipe, 24, recipe.guidance, **recipe.call)
    for metric in ("shape", "style", "colour", "background"):
        claimed = card["metrics"][metric]
        # Three standard errors of 24 pictures, and one picture of slack.
        assert measured[metric] >= claimed - 3 * (claimed * (1 - claimed) / 24) ** 0.5 - 1 / 24, metric
