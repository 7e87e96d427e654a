"""Whether a pipeline still makes the same pictures through a dictionary's reconstructions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from visae.data import load_prompts
from visae.data.prompts import part_of
from visae.evaluate.preserved import Preserved as Numbers
from visae.evaluate.preserved import preserved as measure
from visae.json_files import write_json
from visae.show import grid_figure
from visae.sites import Site
from visae.store import Collection
from visae.text_table import text_table
from visae.workflows.blocks import TOLD, world_judge
from visae.workflows.run import Run, pick_device
from visae.world.judging import clip_vectors

SHOWN = 8
"""Pictures side by side."""


@dataclass(frozen=True)
class Preserved:
    """What was measured; prints as a table.

    Attributes:
        numbers: see `visae.evaluate.preserved`.
        file: the pictures side by side.
    """

    numbers: Numbers
    file: Path

    def __str__(self) -> str:
        told = self.numbers.to_dict()
        head = ["sigma", "plain", "reconstructed", "mean-ablated", "zero-ablated", "recovered", "of zero"]
        names = ["plain", "reconstructed", "mean", "zero", "recovered_mean", "recovered_zero"]
        rows = [[sigma, *(row[name] for name in names)] for sigma, row in told["losses"].items()]
        lines = [text_table(head, rows), ""]
        if self.numbers.agreement_plain is not None and self.numbers.agreement_reconstructed is not None:
            lines.append(
                f"judge agrees with the prompt: {self.numbers.agreement_plain:.1%} plain, "
                f"{self.numbers.agreement_reconstructed:.1%} reconstructed"
            )
        lines += [f"{name} kept: {share:.1%}" for name, share in self.numbers.kept.items()]
        lines.append(", ".join(f"{name} distance {far:.4f}" for name, far in self.numbers.distances.items()))
        return "\n".join([*lines, f"{told['n']} pictures of the same seeds side by side: {self.file}"])


def preserved(
    run: Path,
    prompts: str | None = None,
    *,
    n: int = 32,
    n_losses: int | None = None,
    batch: int = 8,
    out: Path | None = None,
    device: str = "auto",
) -> Preserved:
    """Measure what is lost of a pipeline's pictures when a dictionary's reconstructions replace a site's activations.

    The same seeds are drawn plain and with reconstructions, in the branches and at the noise levels that the dictionary
    was trained on. Told are the denoiser's loss that is recovered at every noise level, what the judge sees (prompts of
    the built-in world), and how far the pictures move apart. Writes `preserved.json` and `preserved.png`.

    Example:
        visae preserved runs/tiny "world:prompts?split=test" --n 64

    Args:
        run: folder of a run that was trained on a pipeline, see `visae train`.
        prompts: see `visae extract --help`; the test part of those of the training, else those themselves.
        n: at most so many prompts.
        n_losses: at most so many on which the denoiser's loss is measured, which costs most; all if not given.
        batch: pictures made at a time.
        out: folder for what is written; the run's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    opened = Run.open(run)
    pipeline = opened.pipeline(pick_device(device))
    sae, card = opened.sae(pipeline).to(pipeline.device), opened.card
    named = prompts or part_of(card.data["name"], "test", n) or card.data["name"]
    data = load_prompts(named)
    wanted = [data[i] for i in range(min(n, len(data)))]
    judge = world_judge() if all(factor in data.factors for factor in TOLD) else None
    with tqdm(total=len(wanted), desc="preserved", unit="img") as bar:
        numbers = measure(
            pipeline, sae, Site.from_dict(card.site), Collection.from_dict(card.sampling), wanted, judge=judge,
            embed=clip_vectors, batch=batch, n_losses=n_losses, after=bar.update,
        )  # fmt: skip
    folder = Path(out) if out else opened.folder
    folder.mkdir(parents=True, exist_ok=True)
    done = Preserved(numbers, folder / "preserved.png")
    picture(numbers).savefig(done.file, dpi=110)
    write_json(folder / "preserved.json", {"prompts": named, **numbers.to_dict()})
    return done


def picture(numbers: Numbers) -> Any:
    """The first pictures of both kinds, one row above the other."""
    rows = [numbers.plain[:SHOWN], numbers.reconstructed[:SHOWN]]
    titles = [p.text if len(p.text) < 24 else f"{p.text[:22]}..." for p in numbers.prompts[:SHOWN]]
    none = [[None] * len(row) for row in rows]
    return grid_figure(rows, none, row_titles=["plain", "reconstructed"], column_titles=titles)
