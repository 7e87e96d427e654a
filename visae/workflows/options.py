"""Options that several jobs share: those of a kind of dictionary, and how training departs from the plain run."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from visae.sae import KINDS


@dataclass(frozen=True)
class Schemes:
    """How training departs from the plain run; see `visae.train.TrainConfig` for each.

    Attributes:
        start: atoms start near data points, or at random directions.
        centre: reconstructions start from the mean of the data, or from their geometric median.
        start_k: codes per token at the first step, for kinds with k; with more, more latents learn at first.
        anneal: share of the steps over which start_k moves to k.
        anneal_shape: by equal steps or by equal factors.
        sparsity_warmup: share of the steps over which penalties rise from 0; each kind's own if not given.
        resample_every: steps between looks for dead latents, which start anew; for relu_l1, gated, jumprelu, ...
        ema: decay of an average of the weights, which is saved in their place; 0.999 is usual.
        tilt: above 0, tokens that are explained worst count more; for fine-tuning on rare things, by itself it harms.
        validate_every: steps between looks at held-out images while training.
        patience: stop after so many of these looks without a lower FVU.
        best: save the dictionary that had the lowest FVU at such a look instead of the last.
    """

    start: Literal["data", "random"] = "data"
    centre: Literal["mean", "median"] = "mean"
    start_k: float | None = None
    anneal: float = 0.2
    anneal_shape: Literal["linear", "exponential"] = "linear"
    sparsity_warmup: float | None = None
    resample_every: int | None = None
    ema: float | None = None
    tilt: float = 0.0
    validate_every: int | None = None
    patience: int | None = None
    best: bool = False

    def settings(self) -> dict[str, Any]:
        """The same as settings of `TrainConfig`."""
        return asdict(self)


def kind_choices(kind: str, k: float, options: Mapping[str, float | str]) -> dict[str, Any]:
    """Options for `make_sae`, of the types that the kind wants; k only where it has one. Unknown names stay.

    Raises:
        UnknownName: for an unknown kind.
        ValueError: for a value that an option cannot have.
    """
    parameters = inspect.signature(KINDS[kind]).parameters
    chosen: dict[str, Any] = {}
    for name, value in [*([("k", k)] if "k" in parameters else []), *options.items()]:
        chosen[name] = _typed(kind, name, parameters[name].annotation, value) if name in parameters else value
    return chosen


def _typed(kind: str, name: str, annotation: Any, value: float | str) -> Any:
    """A value as its annotation has it: 64.0 for an integer becomes 64, "[0.5, 0.5]" for a tuple becomes one."""
    import pydantic
    import yaml

    read = yaml.safe_load(value) if isinstance(value, str) and value[:1] == "[" else value
    try:
        return pydantic.TypeAdapter(annotation).validate_python(read)
    except pydantic.ValidationError as error:
        raise ValueError(f"option {name} of kind {kind!r} cannot be {value!r}: {error.errors()[0]['msg']}") from error
