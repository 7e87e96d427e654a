"""`Card`: everything that must travel with the weights, as JSON beside them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from visae import __version__
from visae.clock import noise_scale
from visae.sae.registry import status

SCHEMA = 1


class MismatchError(ValueError):
    """A dictionary was asked to work on another model or site than the one it was trained on."""


@dataclass(frozen=True)
class Card:
    """Description of a trained dictionary.

    Attributes:
        kind: architecture, a name of `visae.sae.kinds()`.
        status: of the kind in the registry when the card was written: `stable`, or `experimental: ` and why; empty for
            baselines and ensembles, and on cards of before.
        d: length of a token.
        n_latents: width F.
        options: of the kind (k, coefficients, ...).
        normaliser: of the inputs, a name of `visae.sae.normalisers`; what is left of it where it is folded.
        folded: what `Dictionary.fold` has moved into the weights: `normaliser`, `norms`.
        signed: whether codes may be negative; heat maps and statistics then have two sides.
        threshold: of inference, where the kind has one scalar threshold.
        model: `{"id": ..., "revision": ...}` of the model it was trained on.
        site: `Site.to_dict()`.
        policy: `TokenPolicy.to_dict()`: which tokens it saw.
        preprocessing: how an image became the model's input.
        geometry: which pixels a token saw; None for sites without a grid.
        sampling: how a pipeline ran and what of it was collected: scheduler, steps, guidance, branch, noise levels,
            versions (`visae.store.Collection.to_dict()`); empty for models that see images.
        data: `{"name": ..., "fingerprint": ...}` of the data set or the set of prompts.
        dtype: of the weights.
        training: the `TrainConfig`, and how many samples were seen.
        metrics: measured on held-out data, with the number of tokens.
        version: of visae that wrote it.
        weights: sha256 of `sae.safetensors`; filled in by `save_sae`.
        schema: of this file.
    """

    kind: str
    d: int
    n_latents: int
    options: dict[str, Any] = field(default_factory=dict)
    normaliser: str = "scale"
    folded: list[str] = field(default_factory=list)
    signed: bool = False
    threshold: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    weights: str = ""
    schema: int = SCHEMA
    status: str = ""

    def to_json(self) -> str:
        """JSON text; what JSON cannot hold (NaN, odd types) is refused, not rounded."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, default=_plain) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "sae.json") -> "Card":
        """Reverse of `to_json`.

        Raises:
            ValueError: for text that is not JSON, another schema, or missing or unknown keys, all named.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error}); the file is damaged or not a card") from error
        if not isinstance(data, dict):
            raise ValueError(f"{where} should hold one JSON object, got {type(data).__name__}")
        if (schema := data.get("schema")) != SCHEMA:
            raise ValueError(
                f"{where} has card schema {schema!r}; this visae {__version__} reads {SCHEMA}: "
                "use the version of visae that wrote it, or export it again"
            )
        known = {f.name for f in fields(cls)}
        if unknown := sorted(data.keys() - known):
            raise ValueError(f"{where} has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if missing := sorted({"kind", "d", "n_latents", "weights"} - data.keys()):
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        return cls(**data)

    def updated(self, **changes: Any) -> "Card":
        """A card with some entries replaced; a kind brings its status."""
        told = {"status": status(changes["kind"])} if "kind" in changes else {}
        return replace(self, **told | changes)

    def check(self, model: Any = None, site: Any = None) -> None:
        """Refuses another model or site than the card's, and a scheduler whose noise levels mean something else.

        Args:
            model: an `AdaptedModel` or `AdaptedPipeline`, a model id, or `{"id": ..., "revision": ...}`; None is not
                checked.
            site: a `Site`, its name, or its `to_dict()`; None is not checked.

        Raises:
            MismatchError: naming both values.
        """
        wrong = []
        for noun, asked, known in (("model", _model(model), self.model), ("site", _site(site), self.site)):
            for key, value in asked.items():
                if value is not None and known.get(key) is not None and known[key] != value:
                    wrong.append(f"{noun} {key} {known[key]!r}, asked for {value!r}")
            if asked and not known:
                wrong.append(f"no {noun} on its card, asked for {asked}")
        pipe, scale = getattr(model, "pipe", None), self.sampling.get("scale")
        if pipe is not None and scale is not None and (own := noise_scale(pipe.scheduler)) != scale:
            wrong.append(
                f"noise levels of {self.sampling['scheduler']['class']} ({scale}), asked for those of "
                f"{type(pipe.scheduler).__name__} ({own})"
            )
        if wrong:
            raise MismatchError(
                f"this dictionary was trained on {'; '.join(wrong)}. Codes of another model or site "
                "mean nothing: load the right one, or pass force=True if you know they agree"
            )


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"a card holds JSON values; {type(value).__name__} {value!r} is none")


def _model(model: Any) -> dict[str, Any]:
    if model is None:
        return {}
    if isinstance(model, str):
        return {"id": model}
    if isinstance(model, Mapping):
        return {"id": model.get("id"), "revision": model.get("revision")}
    return {"id": model.id, "revision": model.revision}


def _site(site: Any) -> dict[str, Any]:
    if site is None:
        return {}
    if isinstance(site, str):
        return {"name": site}
    data = site if isinstance(site, Mapping) else site.to_dict()
    return {key: data.get(key) for key in ("name", "path", "kind", "index", "head", "d")}
