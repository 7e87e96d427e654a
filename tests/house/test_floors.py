"""The house keeps its floors: a file imports only from floors below its own, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS: dict[str, float] = {
    "data": 1, "ops": 1, "sae": 1.5, "world": 1.5, "store": 2, "train": 2, "codes": 3,
    "evaluate": 4, "edit": 4, "select": 4, "label": 4, "show": 4.5, "erasers": 4.5,
    "workflows": 5, "app": 6, "cli": 6, "__main__": 7,
}  # fmt: skip
ADAPTERS = {"adapters", "datasets_cfg"}


def home(module: str) -> tuple[str, float]:
    """The package of a module, and its floor; files at the top of visae are floor 0."""
    part = module.split(".")[1] if "." in module else ""
    return part, FLOORS.get(part, 0.0)


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" if node.module == "visae" else node.module for alias in node.names]
    return [name for name in found if name.split(".")[0] == "visae"]


def allowed(importer: str, target: str) -> bool:
    """Whether module `importer` may import module `target`."""
    (own, floor), (part, below) = home(importer), home(target)
    if target == "visae.__version__" or own == part:
        return True
    if own in ADAPTERS or part in ADAPTERS:
        return own in ADAPTERS and below == 0 and part not in FLOORS
    return below < floor or floor == below == 0 or (own == "evaluate" and below == floor)


def files() -> list[tuple[str, Path]]:
    rows = []
    for folder, package in (("visae", "visae"), ("adapters", "visae.adapters"), ("datasets_cfg", "visae.datasets_cfg")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            rows.append((".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]), path))
    return rows


@pytest.mark.parametrize(("module", "path"), files(), ids=[m for m, _ in files()])
def test_a_file_imports_only_from_floors_below_its_own(module, path):
    wrong = [target for target in imported(path) if not allowed(module, target)]
    assert not wrong, (
        f"{module} (floor {home(module)[1]}) imports {wrong}: see the plan of the house in CONTRIBUTING.md"
    )


def test_the_rule_itself_refuses_what_it_should():
    assert allowed("visae.store.reader", "visae.data.sample")
    assert allowed("visae.evaluate.localise", "visae.select.labels")
    assert allowed("visae.adapters.timm", "visae.model")
    assert not allowed("visae.sae.card", "visae.store.reader")
    assert not allowed("visae.select.labels", "visae.evaluate.core")
    assert not allowed("visae.adapters.timm", "visae.world.models")
    assert not allowed("visae.geometry", "visae.adapters.timm")
