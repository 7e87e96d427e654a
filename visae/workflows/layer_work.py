"""The work of `visae layer_groups`: comparing layers, training on rows of several, giving each its dictionary."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from visae.data.sample import ImageData, PromptData
from visae.evaluate import Evaluation
from visae.evaluate.layers import AngularDistances
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary, Moments, Rows, load_sae, make_sae, save_sae
from visae.sae.normalisers import Scale
from visae.store import WideStream
from visae.tokens import TokenPolicy
from visae.train import Member, Suite, TrainConfig, TrainResult
from visae.train.mixed import Mixed, shares
from visae.workflows.prepare import begin, describe, finished, plain
from visae.workflows.run import Run
from visae.workflows.site_rows import SiteRows

STATISTICS = "layers.safetensors"
SAMPLE = 65_536
"""Tokens that layers are compared on."""


def blocks(adapted: AdaptedModel | AdaptedPipeline) -> list[str]:
    """Outputs of all blocks, in the order of the network.

    Raises:
        ValueError: if the model has none under the name `blocks.N`.
    """
    found = [name for name in adapted.sites() if re.fullmatch(r"blocks\.\d+", name)]
    if not found:
        raise ValueError(f"{adapted.id} has no sites blocks.N: name the layers, see `visae sites {adapted.id}`")
    return sorted(found, key=lambda name: int(name.split(".")[1]))


@dataclass(frozen=True)
class Statistics:
    """What was measured of layers before training.

    Attributes:
        distances: `[L, L]` float64 angular distances.
        scales: what brings each layer's rows to mean 0 and `E|u|^2 = d`, by name.
    """

    distances: np.ndarray
    scales: dict[str, Scale]


def measure_layers(
    adapted: AdaptedModel | AdaptedPipeline,
    layers: Sequence[str],
    data: ImageData | PromptData,
    policy: TokenPolicy,
    folder: Path,
    **options: Any,
) -> Statistics:
    """Compares layers on the same tokens, in one forward pass over a sample of the images; once per folder.

    Args:
        adapted: the model, or a pipeline.
        layers: names of sites.
        data: images or prompts to draw from.
        policy: which tokens count.
        folder: where the result is kept.
        **options: of the `WideStream`.
    """
    file = folder / STATISTICS
    if not file.is_file():
        from tqdm.auto import tqdm

        wide = WideStream(adapted, layers, data, policy, dtype="float32", **options)
        distances, moments = AngularDistances(layers), {name: Moments(width) for name, width in wide.widths.items()}
        wanted = min(SAMPLE, wide.n_rows)
        with tqdm(total=wanted, unit="token", desc="compare layers", dynamic_ncols=True) as bar:
            for x in wide.loader(min(4096, wanted), seed=0, passes=1):
                tokens = x.rows if isinstance(x, Rows) else x
                parts = dict(zip(layers, tokens.split(list(wide.widths.values()), dim=1), strict=True))
                distances.add(parts)
                for name, rows in parts.items():
                    moments[name].add(rows)
                bar.update(len(x))
                if distances.n >= wanted:
                    break
        found = {"distances": torch.from_numpy(distances.matrix)}
        for name, its in moments.items():
            scale = Scale(len(its.mean))
            scale.fit(its, torch.empty(0))
            found |= {f"{name}.{key}": value for key, value in scale.state_dict().items()}
        partial = file.with_suffix(".tmp")
        save_file(found, partial)
        os.replace(partial, file)
    found = load_file(file)
    scales = {}
    for name in layers:
        scales[name] = Scale(len(found[f"{name}.mean"]))
        scales[name].load_state_dict({key: found[f"{name}.{key}"] for key in scales[name].state_dict()})
    return Statistics(found["distances"].numpy(), scales)


@dataclass(frozen=True)
class Form:
    """What every dictionary is: kind, width and options."""

    kind: str
    n_latents: int
    options: dict[str, Any]

    def make(self, d: int, normaliser: str = "scale") -> Dictionary:
        """An empty one."""
        return make_sae(self.kind, d, self.n_latents, normaliser=normaliser, **self.options)


class LayerWork:
    """Everything the steps of the job need.

    Args:
        adapted: the model.
        source: rows of the layers.
        form: of the dictionaries.
        config: settings of each training run.
        folder: of everything.
        told: options, for the folders.
    """

    def __init__(
        self,
        adapted: AdaptedModel | AdaptedPipeline,
        source: SiteRows,
        form: Form,
        config: TrainConfig,
        folder: Path,
        told: dict[str, Any],
    ):
        self.adapted, self.source, self.form, self.config = adapted, source, form, config
        self.folder, self.told = folder, told

    def grouped(self, groups: Sequence[Sequence[str]], scales: Mapping[str, Scale], stream: bool) -> float | None:
        """Trains one dictionary per group and gives each layer its own copy; returns the seconds it took."""
        layers = [name for group in groups for name in group]
        if all(self._done(name, name) for name in layers):
            return None
        members, loaders = [], dict[str, Iterable[Any]]()
        for group, mixed in zip(groups, self._mixed(groups, scales, stream), strict=True):
            name = f"group-{group[0]}-{group[-1]}"
            loaders[name] = mixed
            members.append(Member(name, self.form.make(self._d(group[0]), "none"), self.config, name))
        results, seconds = self._fit(members, loaders)
        for group, member in zip(groups, members, strict=True):
            for layer in group:
                own = self.form.make(self._d(layer))
                weights = {k: v for k, v in member.sae.state_dict().items() if not k.startswith("normaliser.")}
                scale = {f"normaliser.{k}": v for k, v in scales[layer].state_dict().items()}
                own.load_state_dict(weights | scale)
                self._keep(own, layer, layer, results[member.name])
        return seconds

    def alone(self, layers: Sequence[str]) -> float | None:
        """Trains one dictionary per layer on as many rows; returns the seconds it took."""
        if all(self._done(f"alone/{name}", name) for name in layers):
            return None
        members = [Member(f"alone/{name}", self.form.make(self._d(name)), self.config, name) for name in layers]
        results, seconds = self._fit(members, self.source.loaders(self.config.batch, self.config.seed, layers))
        for layer, member in zip(layers, members, strict=True):
            self._keep(member.sae, member.name, layer, results[member.name])
        return seconds

    def fvu(self, layers: Sequence[str], held_out: ImageData | PromptData, compare: bool) -> list[dict[str, float]]:
        """FVU of each layer by its group's dictionary, and by its own if that is there; written into the cards."""
        places = {name: name for name in layers}
        places |= {f"alone/{name}": name for name in layers} if compare else {}
        saes = {name: load_sae(self.folder / name, device=self.config.device) for name in places}
        evaluations = {name: Evaluation(sae, scale=self.source.scale) for name, sae in saes.items()}
        for parts in self.source.held_out(held_out):
            for name, layer in places.items():
                if layer in parts:
                    evaluations[name].add(parts[layer])
        found: list[dict[str, float]] = [{}, {}]
        for name, layer in places.items():
            metrics = evaluations[name].metrics()
            found[name != layer][layer] = metrics.fvu
            card = Run(self.folder / name, {}).card.updated(metrics=plain(metrics.to_dict()) | {"data": held_out.name})
            save_sae(saes[name], self.folder / name, card)
        return found

    def _d(self, layer: str) -> int:
        return self.source.metas[layer].d

    def _mixed(self, groups: Sequence[Sequence[str]], scales: Mapping[str, Scale], stream: bool) -> list[Mixed]:
        """Batches of each group: from one pass over all layers, or from as much of each store as is needed."""
        batch, seed = self.config.batch, self.config.seed
        whole = self.source.loaders(batch, seed, [name for group in groups for name in group]) if stream else {}
        found = []
        for group in groups:
            parts: list[Any] = [
                whole[name] if stream else self.source.sources[name].loader(share, seed=seed)
                for name, share in zip(group, shares(batch, len(group)), strict=True)
            ]
            found.append(Mixed(parts, [scales[n].mean for n in group], [scales[n].scale for n in group], batch))
        return found

    def _fit(
        self, members: Sequence[Member], loaders: Mapping[str, Iterable[Any]]
    ) -> tuple[dict[str, TrainResult], float | None]:
        """Trains; the seconds are None where a run was gone on with, or one failed."""
        fresh = not any((self.folder / member.name / "checkpoints").exists() for member in members)
        started = time.perf_counter()
        result = Suite(members, self.folder).fit(loaders, resume=True)
        seconds = time.perf_counter() - started
        if result.failed:
            raise FloatingPointError("; ".join(f"{name}: {why}" for name, why in result.failed.items()))
        return result.results, seconds if fresh else None

    def _done(self, name: str, layer: str) -> bool:
        run = Run(self.folder / name, {})
        return finished(run, self.source.metas[layer], self.config)

    def _keep(self, sae: Dictionary, name: str, layer: str, result: TrainResult) -> None:
        begin(self.folder / name, self.told | {"site": layer})
        save_sae(sae, self.folder / name, describe(self.adapted, self.source.sources[layer], self.config, result))
