"""The `visae` command: each subcommand is a thin face over a function in `visae.workflows`.

A function's signature is the one home of its options: their names, types and defaults become flags and YAML keys, and
its docstring becomes the help.
"""

import ast
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, is_dataclass, make_dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from visae.launch import rank, world_size
from visae.registry import UnknownName

COMMANDS = {
    "demo": "visae.workflows.demo:demo",
    "demo diffusion": "visae.workflows.demo_diffusion:demo_diffusion",
    "demo erase": "visae.workflows.demo_erase:demo_erase",
    "models": "visae.workflows.listing:models",
    "sites": "visae.workflows.listing:sites",
    "kinds": "visae.workflows.listing:kinds",
    "estimate": "visae.workflows.estimate:estimate",
    "extract": "visae.workflows.extract:extract",
    "train": "visae.workflows.train:train",
    "specialise": "visae.workflows.specialise:specialise",
    "suite": "visae.workflows.suite:suite",
    "layer_groups": "visae.workflows.layer_groups:layer_groups",
    "timesteps": "visae.workflows.timesteps:timesteps",
    "preserved": "visae.workflows.preserved:preserved",
    "heatmap": "visae.workflows.heatmap:heatmap",
    "report": "visae.workflows.report:report",
    "timeline": "visae.workflows.timeline:timeline",
    "blocks": "visae.workflows.blocks:blocks",
    "erase": "visae.workflows.erase:erase",
    "bench extract": "visae.workflows.bench:extract",
    "bench store": "visae.workflows.bench:store",
    "bench codes": "visae.workflows.bench:codes",
    "bench step": "visae.workflows.bench:step",
    "bench quality": "visae.workflows.bench:quality",
    "bench erase": "visae.workflows.bench_erase:bench_erase",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2 for a mistake of the user, with one clear message)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads that wait by spinning make every step several times slower on a machine that is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    two = arguments[:1] == ["bench"] or " ".join(arguments[:2]) in COMMANDS
    name = " ".join(arguments[: 2 if two else 1])
    who = f"visae {name}" + (f" (process {rank()} of {world_size()})" if world_size() > 1 else "")
    if name in ("", "-h", "--help", "bench", "bench --help", "bench -h"):
        _say(overview(prefix="bench" if name.startswith("bench") else ""))
        return 0
    if name == "--version":
        _say(import_module("visae").__version__)
        return 0
    try:
        function = command(name)
        options = resolve(function, arguments[len(name.split()) :], f"visae {name}")
        if rank() == 0:
            _say(f"# visae {name}\n{to_yaml(options)}", sys.stderr)
        result = function(**options)
        if rank() == 0:
            _say(render(result))
    except (ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("VISAE_TRACEBACK"):
            raise
        _say(f"{who}: error: {error}\n(VISAE_TRACEBACK=1 shows where)", sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say(f"{who}: stopped; run the same command again to go on from where it was", sys.stderr)
        return 130
    return 0


def command(name: str) -> Callable[..., Any]:
    """The function behind a command."""
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS, "`visae --help` says what each does.")
    module, function = COMMANDS[name].split(":")
    return getattr(import_module(module), function)


def overview(prefix: str = "") -> str:
    """What `visae --help` prints. Docstrings are read without importing, so that help comes at once."""
    lines = ["visae: train sparse autoencoders on vision models and see where their features live", ""]
    for name, target in COMMANDS.items():
        if name.startswith(prefix):
            lines.append(f"  visae {name:<15} {_first_line(*target.split(':'))}")
    lines += [
        "",
        "visae COMMAND --help explains a command with an example. Every command also takes a YAML file",
        "(visae train run.yaml --k 16): its keys are the flags, and flags on the command line win.",
    ]
    return "\n".join(lines)


def _first_line(module: str, function: str) -> str:
    source = Path(__file__).with_name("workflows") / f"{module.rpartition('.')[2]}.py"
    tree = ast.parse(source.read_text(encoding="utf8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(found) or "").partition("\n")[0]


def resolve(function: Callable[..., Any], arguments: list[str], program: str) -> dict[str, Any]:
    """Options of a call: the function's defaults, then a YAML file if one is named, then flags.

    Raises:
        ValueError: for a YAML file that cannot be read, unknown keys or wrong types, each named.
    """
    import tyro

    config = config_class(function)
    given: dict[str, Any] = {}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        given = read_yaml(config, Path(arguments.pop(0)))
    help_text = inspect.cleandoc(function.__doc__ or "").split("\nArgs:")[0].strip()
    extra = {"default": _filled(config, function, given)} if given else {}
    chosen = tyro.cli(config, args=arguments, prog=program, description=help_text, **extra)
    return {name: getattr(chosen, name) for name in inspect.signature(function).parameters}


def _filled(config: type, function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """A configuration with what a file gives; what it lacks and has no default is asked of the command line."""
    import tyro

    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    made = config(**{**dict.fromkeys(needed, ""), **given})
    for name in set(needed) - set(given):
        setattr(made, name, tyro.MISSING)
    return made


def config_class(function: Callable[..., Any]) -> type:
    """A strict pydantic dataclass with the parameters of a function and the help of its docstring."""
    import docstring_parser
    import pydantic
    import tyro

    told = {p.arg_name: p.description or "" for p in docstring_parser.parse(function.__doc__ or "").params}
    rows: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        marks: list[Any] = [tyro.conf.arg(help=told.get(parameter.name, ""))]
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:  # keyword-only parameters become flags
            marks.append(tyro.conf.Positional)
        if Any in _atoms(parameter.annotation):  # settings that only a file can spell
            marks.append(tyro.conf.Suppress)
        kind = reduce(lambda base, mark: Annotated[base, mark], marks, parameter.annotation)  # type: ignore
        if default is inspect.Parameter.empty:
            rows.append((parameter.name, kind, field()))
        elif isinstance(default, dict | list):
            rows.append((parameter.name, kind, field(default_factory=default.copy)))
        else:
            rows.append((parameter.name, kind, field(default=default)))
    plain = make_dataclass(function.__name__.title(), rows, kw_only=True)
    plain.__doc__ = function.__doc__
    return pydantic.dataclasses.dataclass(plain, config=pydantic.ConfigDict(extra="forbid"))  # type: ignore[arg-type]


def read_yaml(config: type, path: Path) -> dict[str, Any]:
    """Options from a YAML file, checked against the command's own.

    Raises:
        ValueError: names every key that is unknown, missing or of the wrong type.
    """
    import pydantic
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} should map option names to values, got {type(data).__name__}")
    known = get_type_hints(config)
    if unknown := [name for name in data if name not in known]:
        raise ValueError(f"{path}: {UnknownName('option', unknown[0], known)}")
    try:
        listed = {name: _listed(known[name], value) for name, value in data.items()}
        checked: Any = pydantic.TypeAdapter(config).validate_python(listed)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path}: {wrong}. Options are: {', '.join(known)}") from error
    return {name: getattr(checked, name) for name in data}


def _listed(kind: Any, value: Any) -> Any:
    """One value where a list of any length is wanted, as a list of one; in mappings, too."""
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,) and not isinstance(value, list | tuple):
        return [value]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _listed(get_args(kind)[1], one) for key, one in value.items()}
    return value


def _atoms(kind: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [atom for part in get_args(kind) for atom in _atoms(part)] or [kind]


def to_yaml(options: dict[str, Any]) -> str:
    """Options as YAML that `read_yaml` reads back."""
    import yaml

    return yaml.safe_dump({name: _plain(value) for name, value in options.items()}, sort_keys=False).rstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {k: _plain(v) for k, v in asdict(value).items()}
    return value


def render(result: Any) -> str:
    """What a command prints of what its function returned."""
    if result is None:
        return ""
    return "\n".join(map(str, result)) if type(result) in (list, tuple) else str(result)


def _say(text: str, stream: Any = None) -> None:
    if text:
        (stream or sys.stdout).write(text + "\n")
        (stream or sys.stdout).flush()


if __name__ == "__main__":
    sys.exit(main())
