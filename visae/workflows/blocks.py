"""What the blocks of a denoiser do: taken out in turn, measured and shown."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from visae.data.prompts import load_prompts
from visae.evaluate.blocks import Judge, Role, block_roles, block_sites
from visae.evaluate.erasure import draw
from visae.evaluate.pictures import DISTANCES
from visae.json_files import write_json
from visae.model import drawing, load_model
from visae.show import grid_figure
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.workflows.collecting import Weights
from visae.workflows.extract import announce
from visae.workflows.run import pick_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLD = ("shape", "style", "colour")
"""Factors that the judge answers for."""


@dataclass(frozen=True)
class Blocks:
    """What was measured; prints as a table.

    Attributes:
        roles: what each block does.
        prompts: of the pictures.
        file: the picture that was written.
    """

    roles: list[Role]
    prompts: list[str]
    file: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per block: means over the pictures."""
        return [
            {"block": role.site, **{name: role.mean(name) for name in DISTANCES}, **role.kept} for role in self.roles
        ]

    def __str__(self) -> str:
        kept = list(self.roles[0].kept)
        head = ["without", *DISTANCES, *(f"{factor} kept" for factor in kept)]
        rows = [[row["block"], *(float(row[name]) for name in (*DISTANCES, *kept))] for row in self.rows]
        note = "Means over pictures; distances of visae.evaluate.pictures: 0 is the plain picture."
        return "\n".join([text_table(head, rows), "", note, str(self.file)])


def blocks(
    model: str = "visae:tiny-sd",
    *,
    prompts: str = "world:prompts?split=test",
    n: int = 8,
    out: Path = Path("blocks"),
    sites: tuple[str, ...] = (),
    steps: int = 20,
    guidance: float | None = None,
    batch: int = 8,
    pretrained: bool = True,
    weights: Weights = "float32",
    device: str = "auto",
) -> Blocks:
    """Ask what each block of a text-to-image model does: layout, texture or colour.

    Makes the same pictures once as they are and once without each block of attention, and measures how far layout,
    texture and colour move; prompts of the built-in world are also judged by what the pictures show.

    Example:
        visae blocks visae:tiny-sd --prompts "world:prompts?split=test" --n 16 --out roles

    Args:
        model: a pipeline, e.g. `diffusers:stabilityai/sdxl-turbo` or a folder `diffusers:~/models/sd15`.
        prompts: a file with a prompt a line, `world:prompts?n=8`, or an entry of `datasets_cfg/` with prompts.
        n: at most so many of them.
        out: folder for the picture and the numbers.
        sites: deltas of the blocks to take out, see `visae sites MODEL`; the blocks of attention if not given.
        steps: denoising steps.
        guidance: guidance scale; the pipeline's default if not given.
        batch: pictures that are made together.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        device: `auto`, `cpu`, `cuda`, ...
    """
    dtype = getattr(torch, weights)
    pipeline = drawing(load_model(model, pretrained=pretrained, device=pick_device(device), dtype=dtype))
    data = load_prompts(prompts)
    wanted = [data[i] for i in range(min(n, len(data)))]
    found = [pipeline.site(name) for name in sites] or block_sites(pipeline)
    took: list[float] = []

    def make() -> list[Image.Image]:
        begun = time.perf_counter()
        made = draw(pipeline, wanted, batch, steps=steps, guidance=guidance)
        took.append(time.perf_counter() - begun)
        if len(took) == 1:
            announce(f"blocks: {len(wanted)} pictures without each of {len(found)} blocks, "
                     f"about {duration(took[0] * len(found))}")  # fmt: skip
        return made

    judge = world_judge() if all(factor in data.factors for factor in TOLD) else None
    with tqdm(total=len(found), desc="blocks", unit="block") as bar:
        plain, roles = block_roles(make, pipeline, found, judge, bar.update)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    done = Blocks(roles, [p.text for p in wanted], out / "blocks.png")
    picture(plain, done).savefig(done.file, dpi=110)
    write_json(out / "blocks.json", {"model": pipeline.id, "prompts": done.prompts, "steps": steps, "rows": done.rows})
    return done


def world_judge() -> Judge:
    """The shipped judge, on the factors that it answers for."""
    from visae.world.judging import judged

    def tell(pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
        told = judged(pictures)
        return {factor: told[factor] for factor in TOLD}

    return tell


def picture(plain: Sequence[Image.Image], done: Blocks, columns: int = 8) -> "Figure":
    """The first pictures: on top as they are, then a row without each block and what moved."""
    rows = [list(plain[:columns]), *(role.pictures[:columns] for role in done.roles)]
    moved = ["\n".join([row["block"], *(f"{name} {row[name]:.2f}" for name in DISTANCES)]) for row in done.rows]
    titles = [text if len(text) < 24 else f"{text[:22]}..." for text in done.prompts[:columns]]
    none = [[None] * len(row) for row in rows]
    return grid_figure(rows, none, row_titles=["as they are", *moved], column_titles=titles)
