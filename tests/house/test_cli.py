"""The command line is a thin, strict face over the workflow functions."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml

from visae import cli


def paint(
    picture: Path = Path("in.png"),
    *,
    colour: Literal["red", "blue"] = "red",
    size: tuple[int, int] | None = None,
    layers: tuple[str, ...] = ("one",),
    strength: float = 1.0,
    options: dict[str, float] = {},  # noqa: B006
):
    """Paint a picture.

    Example:
        visae paint in.png --colour blue

    Args:
        picture: what to paint on.
        colour: which colour.
        size: height and width in pixels.
        layers: names of layers.
        strength: how much.
        options: further numbers.
    """


def test_flags_come_from_the_signature_and_keep_their_types():
    options = cli.resolve(paint, ["a.png", "--colour", "blue", "--size", "3", "4", "--layers", "x", "y"], "visae paint")
    assert options["picture"] == Path("a.png")
    assert (options["colour"], options["size"], options["layers"]) == ("blue", (3, 4), ("x", "y"))
    assert (options["strength"], options["options"]) == (1.0, {})


def test_a_yaml_file_gives_options_and_flags_win_over_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("colour: blue\nstrength: 2.5\nsize: [5, 6]\n")
    options = cli.resolve(paint, [str(file), "--strength", "9"], "visae paint")
    assert (options["colour"], options["strength"], options["size"]) == ("blue", 9.0, (5, 6))


def test_the_resolved_configuration_printed_by_a_command_can_be_read_back_as_its_yaml(tmp_path):
    first = cli.resolve(paint, ["a.png", "--size", "3", "4", "--options", "gamma", "2"], "visae paint")
    file = tmp_path / "again.yaml"
    file.write_text(cli.to_yaml(first))
    assert cli.resolve(paint, [str(file)], "visae paint") == first


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colr: blue", "colr"),
        ("strength: strong", "strength"),
        ("- just\n- a list", "map option names"),
        ("colour: green", "colour"),
        ("a: [", "cannot read"),
    ],
)
def test_a_wrong_yaml_is_refused_by_name_and_lists_the_options(tmp_path, text, told):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=told):
        cli.resolve(paint, [str(file)], "visae paint")


def test_an_unknown_command_is_told_the_nearest_one(capsys):
    assert cli.main(["heatmpa"]) == 2
    assert "Did you mean 'heatmap'" in capsys.readouterr().err


def test_a_mistake_of_the_user_ends_with_one_message_and_status_two(capsys):
    assert cli.main(["sites", "timm:vit_bse_patch16_224", "--no-pretrained"]) == 2
    err = capsys.readouterr().err
    assert "vit_base_patch16_224" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_teaches_with_an_example_and_explains_every_option(name):
    import docstring_parser

    function = cli.command(name)
    assert f"visae {name}" in (function.__doc__ or ""), "the help shows a command that can be copied"
    told = {p.arg_name for p in docstring_parser.parse(function.__doc__ or "").params}
    assert told >= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", ["models", "train"])
def test_help_comes_from_the_installed_command(name):
    out = subprocess.run([sys.executable, "-m", "visae.cli", name, "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    assert f"visae {name}" in out.stdout


@pytest.mark.parametrize("how", [["-m", "visae"], ["visae"]], ids=["as a module", "as a folder"])
def test_launchers_that_want_a_module_or_a_folder_get_the_command(how):
    root = Path(cli.__file__).parents[1]
    code = ["kinds", "--help"]
    out = subprocess.run([sys.executable, *how, *code], capture_output=True, text=True, cwd=root)
    assert out.returncode == 0, out.stderr
    assert "visae kinds" in out.stdout


def test_of_several_processes_only_the_first_talks_and_each_says_which_it_is(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["kinds"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["sites", "timm:vit_bse_patch16_224", "--no-pretrained"]) == 2
    assert "visae sites (process 1 of 2): error: " in capsys.readouterr().err


def test_the_overview_lists_every_command_without_importing_torch():
    code = "import sys; from visae import cli; cli.main([]); sys.exit('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, "help should come at once"
    assert all(f"visae {name}" in out.stdout for name in cli.COMMANDS)


def test_the_configuration_goes_to_the_error_stream_so_that_results_can_be_piped(capsys):
    assert cli.main(["models", "visae:*"]) == 0
    captured = capsys.readouterr()
    assert "visae:tiny-clip" in captured.out.splitlines()
    assert yaml.safe_load("\n".join(captured.err.splitlines()[1:]))["pattern"] == "visae:*"
