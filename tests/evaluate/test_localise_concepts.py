from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visae.codes import CodeTable
from visae.data.sample import Sample
from visae.evaluate.localise_concepts import METHODS, localise_concepts
from visae.geometry import Framing, Geometry
from visae.select import best_latents
from visae.tokens import KINDS

GRID, D = 6, 8
GEOMETRY = Geometry(Framing((48, 48)), (GRID, GRID), (8.0, 8.0), prefix=("cls",))


class Planted:
    """Images of one shape on 2 x 2 patches; activations are a direction of the shape there, plus noise and a mean."""

    def __init__(self, n, seed, axes):
        rng = np.random.default_rng(seed)
        self.name = self.fingerprint = f"split {seed}"
        self.factors = {"shape": ["circle", "square"]}
        self.shape = [("circle", "square")[i % 2] for i in range(n)]
        self.corner = rng.integers(0, GRID - 1, (n, 2))
        grid = rng.normal(0, 0.05, (n, GRID, GRID, D)) + 3
        for x, shape, (r, c) in zip(grid, self.shape, self.corner, strict=True):
            x[r : r + 2, c : c + 2] += 2 * axes[int(shape == "square")]
        first = rng.normal(0, 5, (n, 1, D))
        self.rows = torch.from_numpy(np.concatenate([first, grid.reshape(n, -1, D)], 1)).float()
        self.n_rows = n * (GRID * GRID + 1)
        self.keys, self.item_labels = [str(i) for i in range(n)], [{"shape": (s,)} for s in self.shape]
        self.meta = {"data": self.name, "fingerprint": self.name, "geometry": GEOMETRY.to_dict()}

    def __len__(self):
        return len(self.shape)

    def __getitem__(self, i):
        regions = np.zeros((48, 48), np.int64)
        r, c = self.corner[i] * 8
        regions[r : r + 16, c : c + 16] = 1
        return Sample(
            Image.new("RGB", (48, 48)), self.keys[i], self.item_labels[i], regions, ({"shape": self.shape[i]},)
        )

    def chunks(self):
        patch = np.arange(GRID * GRID + 1) - 1
        for start in range(0, len(self), 7):
            n = len(rows := self.rows[start : start + 7])
            yield SimpleNamespace(
                rows=rows.flatten(0, 1),
                item=np.repeat(np.arange(start, start + n), len(patch)),
                index=np.tile(patch + 1, n),
                region=None,
                kind=np.tile(np.where(patch < 0, KINDS.index("cls"), KINDS.index("patch")), n).astype(np.uint8),
                y=np.tile(np.where(patch < 0, -1, patch // GRID), n),
                x=np.tile(np.where(patch < 0, -1, patch % GRID), n),
            )


class Oracle(nn.Module):
    """Latents 0 and 1 are the planted directions; 2 and 3 fire at random places."""

    n_latents, signed = 4, False

    def __init__(self, axes):
        super().__init__()
        self.register_buffer("mean", torch.full((D,), 3.0))
        self.register_buffer("axes", torch.tensor(axes, dtype=torch.float32))

    def encode(self, x):
        real = (x - self.mean) @ self.axes.T
        real = torch.where(real > 1, real, 0)
        noise = torch.rand(len(x), 2, generator=torch.Generator().manual_seed(0))
        values = torch.cat([real, torch.where(noise > 0.9, noise, 0)], 1)
        return SimpleNamespace(indices=torch.arange(4).expand(values.shape), values=values)

    def directions(self):
        return torch.ones(4, D)


def run(axes, tmp_path, **options):
    val, test = Planted(30, 0, axes), Planted(40, 1, axes)
    tables = [CodeTable.build(Oracle(axes), split, tmp_path / split.name, progress=False) for split in (val, test)]
    selections = list(best_latents(tables[0], "shape").values())
    return localise_concepts(selections, *tables, val, test, val, test, progress=False, **options)


def test_the_planted_latent_lies_on_its_shape_and_all_baselines_stand_beside_it(tmp_path):
    spread = np.linalg.qr(np.random.default_rng(3).normal(size=(D, D)))[0][:2]  # no neuron means a shape
    circle, square = run(spread, tmp_path)
    assert [circle.selection.latents, square.selection.latents] == [(0,), (1,)]
    for found in (circle, square):
        assert set(found.methods) == set(METHODS)
        latent = found.methods["latent"]
        assert latent.n == 20
        assert latent.chance == pytest.approx(256 / 48**2)
        assert latent.pointing == 1.0
        assert latent.energy > 0.7
        assert latent.pixel_ap > 0.9
        assert latent.iou_best >= latent.iou > 0.5
        assert latent.ci["pointing"] == (1.0, 1.0)
        assert found.methods["random latent"].pointing < 0.9
        assert found.methods["top 5 latents"].pointing < latent.pointing
        assert found.methods["random latent"].energy < latent.energy
        assert found.methods["latent"].energy > found.methods["neuron"].energy
        assert len(found.chosen["random latent"].split(", ")) == 5


def test_where_a_neuron_carries_the_shape_the_neuron_is_found_on_its_side(tmp_path):
    axes = np.eye(D)[:2] * np.array([[1.0], [-1.0]])
    circle, square = run(axes, tmp_path)
    assert circle.chosen["neuron"] == "neuron 0"
    assert square.chosen["neuron"] == "-neuron 1"
    for found in (circle, square):
        assert (
            found.methods["neuron"].pointing == found.methods["pca"].pointing == 1.0
        )  # the two axes are the components


def test_the_number_of_images_is_bounded_and_told(tmp_path):
    assert run(np.eye(D)[:2], tmp_path, max_images=5)[0].methods["pca"].n == 5


def test_a_label_without_a_mask_on_any_test_image_is_left_out(tmp_path):
    class NoSquares(Planted):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return Sample(sample.image, sample.key, sample.labels, sample.regions, ({"shape": "circle"},))

    axes = np.eye(D)[:2]
    val, test = Planted(30, 0, axes), NoSquares(40, 1, axes)
    tables = [CodeTable.build(Oracle(axes), split, tmp_path / split.name, progress=False) for split in (val, test)]
    found = localise_concepts(
        list(best_latents(tables[0], "shape").values()), *tables, val, test, val, test, progress=False
    )
    assert [one.value for one in found] == ["circle"]
