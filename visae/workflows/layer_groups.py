"""Group the layers of a model by what they compute, and train one dictionary per group."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from visae.evaluate.layers import amad as average
from visae.evaluate.layers import fewest_groups, group_layers
from visae.json_files import write_json
from visae.text_table import text_table
from visae.tokens import TokenPolicy
from visae.train import FREE, TrainConfig
from visae.workflows.collecting import Branch, Collect, Weights, ground, looks
from visae.workflows.estimate import training_estimate
from visae.workflows.extract import announce
from visae.workflows.held_out import held_out_data
from visae.workflows.layer_work import Form, LayerWork, blocks, measure_layers
from visae.workflows.options import Schemes, kind_choices
from visae.workflows.prepare import begin, plain
from visae.workflows.run import pick_device
from visae.workflows.site_rows import SiteRows

FOUND = "layers.json"


@dataclass(frozen=True)
class LayerGroups:
    """Which layers share a dictionary, and how well that works; prints as a table.

    Attributes:
        folder: of everything.
        layers: names, in the order of the network.
        distances: `[L][L]` angular distances, see `visae.evaluate.layers`.
        amad: of every number of groups, from one to one per layer.
        groups: names of the layers of each group.
        fvu: of each layer, held out, by the dictionary of its group.
        alone: the same by a dictionary of its own, if that was asked for.
        seconds: of training the groups' dictionaries, and the layers' own; None where it was not done in one go.
    """

    folder: Path
    layers: list[str]
    distances: list[list[float]]
    amad: list[float]
    groups: list[list[str]]
    fvu: dict[str, float]
    alone: dict[str, float]
    seconds: tuple[float | None, float | None]

    def write(self) -> None:
        """Writes `layers.json`."""
        write_json(self.folder / FOUND, asdict(self) | {"folder": str(self.folder)})

    @property
    def ratios(self) -> dict[str, float]:
        """FVU of each layer over that of a dictionary of its own; empty if there is none."""
        return {name: self.fvu[name] / value for name, value in self.alone.items()}

    def __str__(self) -> str:
        number = {name: i for i, group in enumerate(self.groups) for name in group}
        head = ["layer", "group", "FVU", *(["alone", "ratio"] if self.alone else [])]
        rows: list[list[Any]] = []
        for name in self.layers:
            more = [f"{self.alone[name]:.4f}", f"{self.fvu[name] / self.alone[name]:.2f}"] if self.alone else []
            rows.append([name, number[name], f"{self.fvu[name]:.4f}", *more])
        told = ", ".join(f"{n}: {value:.3f}" for n, value in enumerate(self.amad, start=1))
        lines = [text_table(head, rows), "", f"AMAD by number of groups: {told}"]
        if ratios := self.ratios.values():
            lines.append(
                f"FVU against a dictionary per layer: {sum(ratios) / len(ratios):.2f} times, at most {max(ratios):.2f}"
            )
        grouped, alone = self.seconds
        if grouped is not None and alone is not None:
            lines.append(f"training took {grouped:.0f} s, {grouped / alone:.2f} times that of a dictionary per layer")
        return "\n".join([*lines, f"a folder per layer in {self.folder}: visae report {self.folder}/{self.layers[0]}"])


def layer_groups(
    out: Path = Path("runs/layers"),
    *,
    model: str = "visae:tiny-vit",
    layers: tuple[str, ...] = (),
    groups: int | None = None,
    amad: float = 0.2,
    compare: bool = False,
    data: str | None = None,
    validation: str | None = None,
    stream: bool = False,
    shards: bool = False,
    tokens: str = "patch",
    per_image: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    kind: str = "topk",
    latents: int | None = None,
    expansion: float = 8,
    k: float = 32,
    options: dict[str, float | str] = {},  # noqa: B006 (read only)
    rows: int | None = None,
    passes: float | None = None,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    schemes: Schemes = Schemes(),  # noqa: B008 (frozen)
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    checkpoint_every: int = 500,
    collect: Collect = "generate",
    steps: int | None = None,
    guidance: float | None = None,
    collect_steps: tuple[int, ...] = (),
    branch: Branch = "cond",
    image_batch: int | None = None,
    workers: int = 2,
    pretrained: bool = True,
    weights: Weights = "float32",
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
) -> LayerGroups:
    """Group the layers of a model by what they compute, and train one dictionary per group.

    Layers are compared by the angle between the same token at both; neighbours that are alike share a dictionary,
    which is trained on rows of all of them, each layer centred and scaled by itself, as many rows in all as a layer
    alone would get. Every layer then has a folder with that dictionary and its own scale, to be used like any other.

    Example:
        visae layer_groups runs/layers --model visae:tiny-vit --groups 2 --latents 512 --k 16 --compare

    Args:
        out: folder of everything.
        model: model name, see `visae models`.
        layers: sites in the order of the network; the outputs of all blocks if not given. A pipeline's must be named,
            and have the same tokens.
        groups: number of groups; as few as `amad` allows if not given.
        amad: largest average maximum angular distance (0: the same direction, 0.5: right angles) of a grouping.
        compare: train a dictionary for each layer, too, and tell the ratios of FVU and time.
        data: images to train on, or prompts for a pipeline, see `visae extract --help`.
        validation: images or prompts to measure on, see `visae train --help`.
        stream: compute activations while training, all layers in one forward pass or one generation, and store nothing;
            a pipeline's always are, but for `--shards`.
        shards: extract a pipeline's activations into the folder and train on them there.
        tokens: kinds of token to keep: `patch`, `cls`, `reg`, joined by `+`, or `all`.
        per_image: keep this many tokens of each image; all if not given.
        dtype: of the rows.
        kind: kind of dictionary, see `visae kinds`.
        latents: width; `expansion` times the token's length if not given.
        expansion: width as a multiple of the token's length.
        k: codes per token, for kinds that have it.
        options: further options of the kind.
        rows: rows to train each dictionary on; `passes` over the rows of one layer if not given.
        passes: passes over the data, see `visae train --help`.
        batch: rows per step.
        lr: peak learning rate; a rule of width and budget if not given.
        seed: of the weights and of the order of the rows.
        schemes: how training departs from the plain run; nothing is looked at while training.
        precision: of the encoder's matrix product.
        checkpoint_every: steps between checkpoints.
        collect: how a pipeline runs, see `visae train --help`, like the next four.
        steps: of a pipeline: denoising steps.
        guidance: of a pipeline: guidance scale.
        collect_steps: of a pipeline: collect at these of its timesteps.
        branch: of a pipeline's guidance: tokens of which branch.
        image_batch: images per forward pass, or made at a time; 64, of a pipeline 8 if not given.
        workers: threads that read and frame images.
        pretrained: trained weights; `--no-pretrained` builds the model with random ones.
        weights: type of the model's weights; on a GPU, pipelines want `float16` or `bfloat16`.
        image_size: height and width of the input in pixels; the model's own if not given.
        device: `auto`, `cpu`, `cuda`, ...
    """
    told = plain(
        {name: value for name, value in locals().items() if name not in (*FREE, "out", "compare", "workers")}
        | {"schemes": asdict(schemes)}
    )
    place, folder = pick_device(device), begin(Path(out), told).folder
    on = ground(
        model, layers, data, collect=collect, steps=steps, guidance=guidance, collect_steps=collect_steps,
        branch=branch, image_batch=image_batch, pretrained=pretrained, weights=weights, image_size=image_size,
        device=place,
    )  # fmt: skip
    stream, passes = on.streams(stream, shards, None), on.passes(passes, shards, None)
    names = [on.model.site(name).name for name in layers] if layers else blocks(on.model)
    policy = TokenPolicy.parse(tokens, per_image=per_image)
    source = SiteRows(
        on.model, names, on.data, policy, folder,
        dtype=dtype, stream=stream, image_batch=on.batch, workers=workers, collected=on.collected,
    )  # fmt: skip
    d = source.metas[names[0]].d
    chosen = kind_choices(kind, k, options)
    form = Form(kind, latents or round(expansion * d), chosen)
    form.make(d)  # what no dictionary can have is refused before anything runs
    n_rows = source.n_rows[names[0]]  # layers have the same tokens
    budget = rows or round(passes * n_rows)
    config = TrainConfig(
        tokens=budget, batch=batch, lr=lr, seed=seed, precision=precision, device=place,
        checkpoint_every=checkpoint_every,
        **{"stat_rows": min(65_536, n_rows)} | looks(on.collected, n_rows), **schemes.settings(),
    )  # fmt: skip
    likeness = measure_layers(
        on.model, names, on.data, policy, folder, batch=on.batch, workers=workers, sampling=on.collected
    )
    distances = likeness.distances
    found = fewest_groups(distances, amad) if groups is None else group_layers(distances, groups)
    parted = [[names[i] for i in group] for group in found]
    number = len(parted) + (len(names) if compare else 0)
    announce(f"groups: {'; '.join(' '.join(group) for group in parted)}")
    cost = training_estimate(kind, d, form.n_latents, chosen, budget, batch, place, schemes.settings())
    announce(f"{number} dictionaries, each: {cost}")
    work = LayerWork(on.model, source, form, config, folder, told)
    seconds = work.grouped(parted, likeness.scales, stream), work.alone(names) if compare else None
    fvu, alone = work.fvu(names, held_out_data(on.data, validation, on.collected), compare)
    every = [average(distances, group_layers(distances, n)) for n in range(1, len(names) + 1)]
    report = LayerGroups(folder, names, distances.tolist(), every, parted, fvu, alone, seconds)
    report.write()
    return report
