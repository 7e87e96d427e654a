"""A page's worth of made-up results on real images of the built-in world: latents that are the world's own masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from visae.codes import CodeTable
from visae.evaluate.localise import summarise
from visae.evaluate.localise_concepts import METHODS, ConceptLocalisation
from visae.geometry import Framing, Geometry
from visae.select import best_latents, measure
from visae.show import Concept, ReportInputs
from visae.tokens import KINDS
from visae.world import World

GRID, N_LATENTS = 8, 60
GEOMETRY = Geometry(Framing((64, 64)), (GRID, GRID), (8.0, 8.0), prefix=("cls",))


class Truth(nn.Module):
    """Takes dense codes for activations."""

    n_latents, signed = N_LATENTS, False

    def __init__(self, signed: bool = False):
        super().__init__()
        self.signed = signed
        self.register_buffer("mean", torch.zeros(N_LATENTS))

    def encode(self, x):
        return SimpleNamespace(indices=torch.arange(N_LATENTS).expand(x.shape), values=x)

    def directions(self):
        return torch.ones(N_LATENTS, 3)


class Source:
    """Codes of a world: one latent per shape and colour (its mask on the grid), the others random, the last two dead.

    Latent 57 fires on class tokens only.
    """

    def __init__(self, world: World, signed: bool = False):
        self.world, rng = world, np.random.default_rng(len(world))
        self.factors = world.factors
        wanted = [(f, v) for f in ("shape", "colour") for v in world.factors[f]]
        samples = [world[i] for i in range(len(world))]
        self.keys, self.item_labels = [s.key for s in samples], [s.labels for s in samples]
        codes = np.zeros((len(world), 1 + GRID**2, N_LATENTS), np.float32)
        for code, sample in zip(codes, samples, strict=True):
            for j, (factor, value) in enumerate(wanted):
                if value in sample.labels[factor]:
                    code[1:, j] = 3 * GEOMETRY.coverage(sample.mask(factor, value)).ravel() * rng.uniform(0.5, 1)
        free = slice(len(wanted), 57)
        noise = rng.exponential(1, codes[:, 1:, free].shape) * (
            rng.random(codes[:, 1:, free].shape) < rng.uniform(0, 0.1, 57 - len(wanted))
        )
        codes[:, 1:, free] = noise * (np.sign(rng.normal(size=noise.shape)) if signed else 1)
        codes[:, 0, 57] = 1
        self.codes, self.n_rows = codes, codes.shape[0] * codes.shape[1]
        self.meta = {"data": world.name, "fingerprint": world.fingerprint, "geometry": GEOMETRY.to_dict()}

    def chunks(self):
        n, patch = len(self.world), np.arange(GRID**2 + 1) - 1
        kind = np.where(patch < 0, KINDS.index("cls"), KINDS.index("patch")).astype(np.uint8)
        yield SimpleNamespace(
            rows=torch.from_numpy(self.codes.reshape(-1, N_LATENTS)),
            item=np.repeat(np.arange(n), len(patch)),
            index=np.tile(patch + 1, n),
            kind=np.tile(kind, n),
            y=np.tile(np.where(patch < 0, -1, patch // GRID), n),
            x=np.tile(np.where(patch < 0, -1, patch % GRID), n),
            region=None,
        )


def located(selection, rng) -> ConceptLocalisation:
    def made_up(level):
        rows = [
            np.array([rng.random() < level, level * 0.7, level * 0.8, level * 0.6, 0.12, 0, np.nan]) for _ in range(40)
        ]
        return summarise(rows)

    levels = dict(zip(METHODS, (0.95, 0.6, 0.15, 0.5, 0.55), strict=True))
    return ConceptLocalisation(
        selection.factor, selection.value, selection, {m: made_up(p) for m, p in levels.items()}, {}
    )


def inputs(folder, signed=False, n=120) -> ReportInputs:
    val, test = World("validation", n=n), World("test", n=n)
    tables = [CodeTable.build(Truth(signed), Source(w, signed), folder / w.split, progress=False) for w in (val, test)]
    rng = np.random.default_rng(0)
    selections = [s for factor in ("shape", "colour") for s in best_latents(tables[0], factor).values()]
    concepts = [Concept(s, measure(s, tables[1]), located(s, rng)) for s in selections]
    card = {
        "kind": "batch_topk",
        "d": 128,
        "n_latents": N_LATENTS,
        "options": {"k": 16, "note": "</script><b>not markup</b>"},
        "model": {"id": "visae:tiny-clip", "revision": "0123456789abcdef"},
        "policy": {"kinds": ["patch", "cls"], "per_image": None},
        "site": {"name": "blocks.3", "path": "visual.transformer.resblocks.3", "kind": "output"},
        "version": "0.1.0",
        "data": {"name": "world:train?n=20000", "fingerprint": "abc"},
        "training": {"tokens": 1_300_000, "steps": 3000, "lr": 0.001, "seed": 0},
    }
    metrics = {
        "all": {"fvu": 0.0712, "cosine": 0.981, "l0": 15.94, "alive": 0.967, "n": 260_000},
        "patch": {"fvu": 0.0698, "cosine": 0.982, "l0": 16.0, "alive": 0.95, "n": 256_000},
        "cls": {"fvu": float("nan"), "cosine": 0.97, "l0": 12.1, "alive": 0.3, "n": 4_000},
    }
    return ReportInputs(
        title="Patches of tiny-clip, blocks.3",
        card=card,
        table=tables[1],
        data=test,
        chosen_on=tables[0],
        metrics=metrics,
        concepts=concepts,
        notes=["Dead is an upper bound: these are fewer than a million tokens."],
    )


@pytest.fixture(scope="session")
def report_inputs(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def signed_inputs(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("signed"), signed=True)
