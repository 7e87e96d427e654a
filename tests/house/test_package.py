"""The package is complete, light to import, typed, and says of itself only what is true."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))


def test_the_package_list_names_every_package_of_the_tree():
    mapping = {"visae": "visae", "adapters": "visae.adapters", "datasets_cfg": "visae.datasets_cfg"}
    found = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for folder, name in mapping.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(found) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_importing_visae_brings_no_heavy_library():
    heavy = ("timm", "open_clip", "transformers", "diffusers", "matplotlib", "pydantic")
    code = f"import sys, visae; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_every_public_name_of_visae_can_be_brought():
    import visae

    assert all(getattr(visae, name) is not None for name in visae.__all__)
    with pytest.raises(AttributeError, match="load_model"):
        _ = visae.no_such_name


def test_adapters_are_importable_as_part_of_visae_and_not_as_a_global_module(tmp_path):
    code = "import visae.adapters, importlib.util as u; print(u.find_spec('adapters') is None)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert out.stdout.strip() == "True"


def test_contributing_fits_on_a_page():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf8").splitlines()) <= 60


def test_ci_runs_exactly_the_test_command_of_the_readme():
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.DOTALL)
    tests = [c.strip() for c in commands if "pytest" in c]
    assert len(tests) == 1
    assert tests[0] in (ROOT / ".ci" / "run").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The built wheel, unpacked."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True, capture_output=True)
    changed = subprocess.run(
        ["git", "ls-files", "-m", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in changed.stdout.split():  # what is not committed yet is built too
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = out.glob("visae-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_the_wheel_holds_models_pages_configurations_and_the_typing_mark(wheel):
    for part in (
        "py.typed",
        "adapters/timm.py",
        "world/models/tiny-clip/model.safetensors",
        "datasets_cfg/imagenet.yaml",
    ):
        assert (wheel / "visae" / part).is_file(), f"{part} is not in the wheel"
    assert list((wheel / "visae" / "show" / "assets").iterdir())
    assert not (wheel / "adapters").exists()


def test_a_shipped_model_loads_from_the_wheel_without_network(wheel, tmp_path):
    code = "import visae; m = visae.load_model('visae:tiny-clip'); assert '/site/visae' in visae.__file__; print(m.id)"
    env = {**os.environ, "PYTHONPATH": str(wheel), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "visae:tiny-clip"


def test_types_of_the_built_wheel_check(wheel):
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "visae"]
    env = {**os.environ, "MYPYPATH": str(wheel), "PYTHONPATH": ""}
    out = subprocess.run(command, capture_output=True, text=True, cwd=wheel, env=env)
    assert out.returncode == 0, out.stdout[-4000:]


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        out = subprocess.run([sys.executable, "-m", "ruff", *command, "."], capture_output=True, text=True, cwd=ROOT)
        assert out.returncode == 0, out.stdout[-3000:]
