"""`python -m visae.world.train NAME` makes a shipped model or pipeline again; `... train eval NAME` measures one."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visae.world import models, recipes
from visae.world.models.word_tokenizer import WorldTokenizer, write_tokenizer
from visae.world.pipeline_recipes import PIPELINE_RECIPES
from visae.world.recipes import Recipe
from visae.world.training.cache import open_cache
from visae.world.training.evaluate import evaluate
from visae.world.training.export import export
from visae.world.training.loop import fit
from visae.world.training.oracle import evaluate_pipeline
from visae.world.training.pipelines import train_pipeline
from visae.world.training.prompt_sheet import prompt_sheet
from visae.world.training.tasks import Task

_QUICK = 500
"""Test images behind the metrics of a card that is not final."""


def _recipe(name: str, target: Path) -> tuple[Recipe, WorldTokenizer | None]:
    if name != "tiny-clip":
        return (recipes.tiny_vit if name == "tiny-vit" else recipes.judge)(), None
    write_tokenizer(target)
    context = recipes.tiny_clip(0).config["model_cfg"]["text_cfg"]["context_length"]
    tokenizer = WorldTokenizer(target / "tokenizer.json", context)
    return recipes.tiny_clip(tokenizer.vocab_size), tokenizer


def train(name: str, target: Path, work: Path, device: str, n_test: int = 4000) -> dict[str, float]:
    """Train a model (or go on where a killed run stopped) and write it to a folder.

    Args:
        name: of the model.
        target: folder for weights, configuration, card; an interim model lies there from the first checkpoint on.
        work: folder for drawn images and the checkpoint (about 2 GB).
        device: "cpu" or "cuda".
        n_test: test images for the final metrics.

    Returns:
        The final metrics.
    """
    recipe, tokenizer = _recipe(name, target)
    cache = open_cache(work, recipe.singles, recipe.several)
    task = Task(recipe, cache, device, tokenizer)

    def interim(step: int, weights: dict[str, Tensor]) -> None:
        if step == recipe.last:
            return
        metrics = export(recipe, weights, target, step, tokenizer, _QUICK)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        print(f"step {step}: {shown}", flush=True)  # noqa: T201

    weights = fit(task, recipe, work / f"{name}.checkpoint", interim)
    return export(recipe, weights, target, recipe.last, tokenizer, n_test)


def _show(metrics: dict[str, float]) -> None:
    for key, value in metrics.items():
        print(f"{key:24s} {100 * value:7.2f} %")  # noqa: T201


def _make(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    making = train_pipeline if args.command in models.PIPELINES else train
    _show(making(args.command, args.out, args.work, args.device))


def _call(args: argparse.Namespace) -> dict[str, Any]:
    recipe = PIPELINE_RECIPES[args.name]()
    return {"guidance": args.guidance or recipe.guidance} | recipe.call


def _measure(args: argparse.Namespace) -> None:
    if args.name in models.PIPELINES:
        _show(evaluate_pipeline(models.pipeline(args.name, args.folder), args.n or 960, **_call(args)))
        return
    tokenizer = models.tokenizer(args.name) if args.name == "tiny-clip" else None
    _show(evaluate(models.build(args.name), models.config(args.name), tokenizer, args.n or 4000))


def _sheet(args: argparse.Namespace) -> None:
    prompt_sheet(models.pipeline(args.name, args.folder), args.n, **_call(args)).save(args.out)
    print(args.out)  # noqa: T201


def _pipeline_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="folder of a pipeline, instead of the shipped one")
    command.add_argument("--guidance", type=float, help="strength of guidance, instead of the recipe's")


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m visae.world.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*models.MODELS, *models.PIPELINES):
        make = commands.add_parser(name, help=f"train {name}")
        make.add_argument("--out", type=Path, default=models.folder(name), help="folder for the model")
        make.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "visae-world")
        make.add_argument("--threads", type=int, help="CPU threads; 1 is fastest on a busy machine")
        make.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        make.set_defaults(run=_make)
    measure = commands.add_parser("eval", help="metrics of a shipped model on the test split")
    measure.add_argument("name", choices=(*models.MODELS, *models.PIPELINES))
    measure.add_argument("--n", type=int, help="test images (4000), or prompts for a pipeline (960)")
    _pipeline_options(measure)
    measure.set_defaults(run=_measure)
    sheet = commands.add_parser("sheet", help="prompts against pictures of a pipeline, to be looked at")
    sheet.add_argument("name", choices=models.PIPELINES)
    sheet.add_argument("out", type=Path)
    sheet.add_argument("--n", type=int, default=36, help="prompts, half of combinations withheld from training")
    _pipeline_options(sheet)
    sheet.set_defaults(run=_sheet)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
