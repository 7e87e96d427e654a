"""The README tells the truth: its Python runs, its commands exist, its files are there."""

import re
import subprocess
import sys
from pathlib import Path

from visae import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf8")


def test_every_python_block_of_the_readme_runs_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    (tmp_path / "readme.py").write_text("\n\n".join(blocks), encoding="utf8")
    out = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    assert "F1" in out.stdout
    assert (tmp_path / "runs" / "first" / "index.html").is_file()


def test_every_command_named_in_the_readme_exists():
    shown = "\n".join(re.findall(r"```text\n(.*?)```", README, re.DOTALL))
    named = re.findall(r"^visae (bench \w+|demo diffusion|demo erase|\w+)", shown, re.MULTILINE)
    assert set(named) <= set(cli.COMMANDS)
    assert {name for name in cli.COMMANDS if not name.startswith("bench")} <= {*named, "demo"}


def test_every_file_linked_from_the_readme_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
