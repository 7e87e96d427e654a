"""visae: sparse autoencoders (SAEs) on what vision encoders and diffusion models compute.

`load_model` brings a model, `tap` its tokens, `Trainer` makes a dictionary of them, `load_sae` brings one back. The
jobs a command does (`visae train`, `visae heatmap`, ...) are functions in `visae.workflows`.
"""

from pathlib import Path
from typing import Any

# A checkout keeps `adapters/` and `datasets_cfg/` beside this package; a wheel has them inside it.
if (_checkout := Path(__file__).resolve().parents[1]).joinpath("pyproject.toml").is_file():
    __path__.append(str(_checkout))

__version__ = "0.1.0"

_HOMES = {
    "AdaptedModel": "visae.model",
    "AdaptedPipeline": "visae.pipelines",
    "load_model": "visae.model",
    "models": "visae.model",
    "wrap": "visae.model",
    "Geometry": "visae.geometry",
    "Site": "visae.sites",
    "tap": "visae.taps",
    "TokenPolicy": "visae.tokens",
    "Tokens": "visae.tokens",
    "load_data": "visae.data",
    "make_sae": "visae.sae",
    "load_sae": "visae.sae",
    "open_store": "visae.store",
    "Trainer": "visae.train",
    "edited": "visae.edit",
    "erase": "visae.erasers",
    "load_erasure": "visae.edit",
    "TrainConfig": "visae.train",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Brings a public name on first use, so that `import visae` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'visae' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
