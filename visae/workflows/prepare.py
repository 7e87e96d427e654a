"""What comes before training: the folder of a run, the rows to train on, whether there is anything left to do."""

import json
from pathlib import Path
from typing import Any

from visae import store
from visae.data.sample import ImageData, PromptData
from visae.json_files import write_json
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Card, load_sae
from visae.store import ActivationSource
from visae.store.estimate import duration
from visae.tokens import TokenPolicy
from visae.train import FREE, TrainConfig, TrainResult
from visae.workflows.extract import announce
from visae.workflows.run import CONFIG, Run


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Options as they come back from JSON."""
    return json.loads(json.dumps(config, default=str))


def begin(out: Path, config: dict[str, Any]) -> Run:
    """The folder of a new run, or of the same one again.

    Raises:
        ValueError: if the folder holds a run with other options, each named.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / CONFIG
    if file.is_file():
        then = json.loads(file.read_text(encoding="utf8"))
        if changed := [
            f"{key}: {then.get(key)!r} then, {value!r} now" for key, value in config.items() if then.get(key) != value
        ]:
            raise ValueError(
                f"{out} holds a run with other options ({'; '.join(changed)}): take another folder, or the same options"
            )
    else:
        write_json(file, config)
    return Run(out, config)


def rows_ahead(
    adapted: AdaptedModel | AdaptedPipeline,
    site: str,
    data: ImageData | PromptData,
    policy: TokenPolicy,
    dtype: str,
    activations: Path | None,
    collected: store.Collection | None = None,
) -> tuple[int, int]:
    """Rows in a pass if every image can be read, and their length, before anything is computed."""
    if activations is not None:
        found = store.open_store(activations)
        return found.n_rows, found.d
    meta = store.StoreMeta.describe(adapted, adapted.site(site), data, policy, dtype, collected)
    return meta.n_items * meta.tokens_per_item, meta.d


def open_source(
    adapted: AdaptedModel | AdaptedPipeline,
    site: str,
    data: ImageData | PromptData,
    folder: Path,
    policy: TokenPolicy,
    dtype: str,
    activations: Path | None,
    stream: bool,
    image_batch: int,
    workers: int,
    collected: store.Collection | None = None,
) -> ActivationSource:
    """Rows to train on: a store that exists, a stream, or a store made now in `folder`.

    Raises:
        ValueError: if a store of another model or site is named, or a store and a stream at once.
    """
    if activations is not None and stream:
        raise ValueError("give activations (a store) or stream, not both")
    if activations is not None:
        found = store.open_store(activations)
        if (found.meta.model, found.meta.revision) != (adapted.id, adapted.revision) or found.meta.site != adapted.site(
            site
        ):
            raise ValueError(
                f"{activations} holds {found.meta.model} {found.meta.site.name} (weights {found.meta.revision}), "
                "asked for "
                f"{adapted.id} {adapted.site(site).name} (weights {adapted.revision}): name the same model and site"
            )
        return found
    ahead = store.estimate(
        adapted, site, data, None if stream else folder, policy=policy, dtype=dtype, batch=image_batch,
        sampling=collected,
    )  # fmt: skip
    if stream:
        announce(f"activations: {ahead.rows:,} rows a pass, streamed in about {duration(ahead.seconds or 0.0)}")
        return store.Stream(
            adapted, site, data, policy, dtype=dtype, batch=image_batch, workers=workers, sampling=collected
        )
    announce(f"activations: {ahead}")
    return store.extract(
        adapted, site, data, folder, policy=policy, dtype=dtype, batch=image_batch, workers=workers, sampling=collected
    )


def finished(run: Run, meta: store.StoreMeta, settings: TrainConfig) -> bool:
    """Whether the folder holds the dictionary of this very run, so that there is nothing left to train."""
    try:
        card = run.card
    except FileNotFoundError:
        return False
    then, now = (
        {name: value for name, value in config.items() if name not in FREE}
        for config in (card.training.get("config", {}), plain(settings.to_dict()))
    )
    if then != now or card.data.get("hash") != meta.content_hash:
        raise ValueError(f"{run.folder} holds another dictionary already: take another folder")
    load_sae(run.folder)
    return True


def describe(
    adapted: AdaptedModel | AdaptedPipeline, source: ActivationSource, settings: TrainConfig, result: TrainResult
) -> Card:
    """The card, but for what the dictionary itself knows and what is measured later."""
    meta = source.meta
    return Card(
        kind="",
        d=source.d,
        n_latents=0,
        model={"id": adapted.id, "revision": adapted.revision},
        site=meta.site.to_dict(),
        policy=meta.policy.to_dict(),
        preprocessing=meta.preprocessing,
        geometry=meta.geometry,
        sampling=meta.collected.to_dict() if meta.collected else {},
        data={"name": meta.data, "fingerprint": meta.fingerprint, "hash": meta.content_hash, "rows": source.n_rows},
        training={
            "config": plain(settings.to_dict()),
            "steps": result.steps,
            "samples": result.samples,
            "warnings": result.warnings,
        },
    )
