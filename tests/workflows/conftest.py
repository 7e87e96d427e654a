"""Settings of the tests in this folder."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

torch.set_num_threads(1)  # tensors this small only lose time between threads


@pytest.fixture
def few_cells(monkeypatch):
    """Few shapes and styles, so that little is drawn, the targets of a bench of two among them."""
    concepts = import_module("visae.workflows.concepts")
    shapes, styles = ("triangle", "circle", "ring"), ("flat", "checker", "stripes")

    def some(prompts):
        return [p for p in prompts if p.labels["shape"][0] in shapes and p.labels.get("style", ("flat",))[0] in styles]

    cells_of, tuning = concepts.cells, concepts.tuning

    def tuned(*args):
        found = tuning(*args)
        return type(found)(found.words, some(found.target), some(found.retain), found.pairs)

    monkeypatch.setattr(concepts, "cells", lambda *args: SimpleNamespace(items=some(cells_of(*args))))
    monkeypatch.setattr(concepts, "tuning", tuned)
