"""Collects prompt statistics: codes are reduced as the tokens come, and what was collected once is not made again."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from visae.clock import CODES
from visae.codes.build import fingerprint
from visae.data.prompts import load_prompts
from visae.data.sample import ImageData, Prompt, PromptData
from visae.json_files import write_json
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.readings import arguments
from visae.sae import Dictionary
from visae.sae.side import at_sigma
from visae.select.statistics import TABLES, PromptStatistics, narrowed
from visae.sites import Site
from visae.store.batches import split_into
from visae.store.forward import as_torch
from visae.store.sampling import Collection, Sampling
from visae.store.stream import Stream
from visae.tokens import TokenPolicy

BATCH_BYTES = 2**30
"""Activations that are held at a time; batches are made smaller to fit."""

PART_BYTES, PART_PROMPTS = 2**26, 64
"""Tables of a part, and prompts in it, at most: a run that is stopped loses no more than a part."""

IDENTITY = "identity.json"

Entry = tuple[str, int]
"""What decides a prompt's statistics in a run: its text and seed."""


@torch.no_grad()
def collect_statistics(
    model: AdaptedPipeline | AdaptedModel,
    sae: Dictionary,
    site: str | Site,
    collected: Collection | Sampling | None,
    prompts: PromptData | ImageData | Sequence[str],
    folder: str | Path | None = None,
    *,
    policy: TokenPolicy | None = None,
    words: bool = True,
    batch: int = 8,
    workers: int = 2,
    progress: bool = True,
) -> PromptStatistics:
    """What a dictionary's codes are on prompts, at every noise level that is collected.

    Memory holds the activations of one batch and the statistics, never all tokens. With a folder, prompts of which the
    statistics lie there (same dictionary, weights, site and run) are not run again, whatever they were collected for;
    new ones are added part by part, so that a stopped collection goes on where it was.

    Args:
        model: a pipeline; or a model that sees images.
        sae: the dictionary.
        site: where it was trained.
        collected: how the pipeline runs, e.g. `Collection.from_dict(sae.card.sampling)`; the mode `text` runs the text
            encoder alone. Of two branches of guidance the conditional one counts. None for models that see images.
        prompts: with their seeds; texts get the seeds 0, 1, ...; images for the mode `noise` and for models of images.
        folder: where statistics are kept.
        policy: which tokens count; patches by default, of a site of text its text.
        words: of a text encoder's tokens leave out the first (BOS) and the padding, which say nothing of the prompt.
        batch: images made at a time, fewer where their activations are large.
        workers: threads that read images.
        progress: show a bar.

    Raises:
        ValueError: if model, site, run and prompts do not fit together, or no image can be read.
    """
    if not hasattr(prompts, "fingerprint"):
        prompts = load_prompts([str(text) for text in cast(Sequence[str], prompts)])
    run = None if isinstance(model, AdaptedModel) else one_branch(collected or Sampling())
    data = cast(PromptData | ImageData, prompts)
    stream = Stream(model, site, data, policy, dtype="float32", batch=batch, workers=workers, sampling=run)
    content = words and run is not None and stream.site.stream == "text"
    identity = _identity(stream, sae, content)
    asked = _asked(stream)
    kept = _Kept(None if folder is None else Path(folder), identity)
    missing: dict[Entry, int] = {}
    for place, one in enumerate(asked):
        if kept.entry(one) not in kept.places:
            missing.setdefault(kept.entry(one), place)
    levels = _levels(stream)
    per_part = max(1, min(PART_PROMPTS, PART_BYTES // (8 * _columns(sae) * len(levels))))
    bar = tqdm(total=len(missing), desc="statistics", unit="prompt", disable=not progress or not missing)
    with token_ids(stream, content) as ids, bar:
        for part in split_into(list(missing.values()), per_part):
            done, tables = _measured(stream, sae, part, ids, bar.update)
            if done:
                whole = tuple(asked[i] for i in done)
                kept.add(
                    PromptStatistics(whole, levels, **narrowed(tables), n_latents=sae.n_latents, identity=identity)
                )
    return kept.gathered(asked)


def _columns(sae: Dictionary) -> int:
    return sae.n_latents * (2 if sae.signed else 1)


def one_branch(run: Collection | Sampling) -> Collection | Sampling:
    """The run with the conditional branch alone, where it collects both."""
    if run.branch != "both":
        return run
    if isinstance(run, Sampling):
        return replace(run, branch="cond")
    slots = tuple(slot for slot in run.slots if slot.branch != CODES["uncond"])
    return replace(run, branch="cond", slots=slots)


def _identity(stream: Stream, sae: Dictionary, content: bool) -> dict[str, Any]:
    """What decides statistics beside the prompts; of images all, since a name alone does not tell what they show."""
    meta = stream.meta.to_dict()
    names = ("model", "revision", "site", "policy", "preprocessing", "collected")
    told = {name: meta[name] for name in names if name in meta}
    told.get("collected", {}).pop("versions", None)
    told |= {"sae": fingerprint(sae), "words": content}
    return told if _prompted(stream) else told | {"images": stream.meta.fingerprint}


def _prompted(stream: Stream) -> bool:
    return stream.meta.collected is not None and stream.meta.collected.mode != "noise"


def _asked(stream: Stream) -> list[Prompt]:
    """The prompts; an image stands for its caption, with its place in the data set as seed."""
    if _prompted(stream):
        return [cast(Prompt, stream.data[i]) for i in range(stream.n_items)]
    return [
        Prompt(next(iter(note.captions), ""), place, note.key, note.labels, note.group)
        for place, note in enumerate(stream.notes)
    ]


def _measured(
    stream: Stream, sae: Dictionary, items: Sequence[int], ids: list[Tensor], after: Callable[[int], object]
) -> tuple[list[int], dict[str, Tensor]]:
    """Places of the samples that could be read, and tables `[P, S, columns]` float32 of them on the CPU."""
    size = max(1, min(stream.batch, BATCH_BYTES // stream.meta.bytes_per_item))
    sigmas = _levels(stream)
    done: list[int] = []
    parts: list[dict[str, Tensor]] = []
    for batch, rows in stream.extracted(split_into(items, size)):
        if n := len(batch.notes):
            tokens = as_torch(rows, stream.meta.dtype).reshape(n, len(sigmas), -1, stream.d)
            keep = None
            if ids:
                keep = content_tokens(ids[-1][:n], stream).gather(1, torch.from_numpy(batch.places.astype(np.int64)))
            levels = [_reduced(sae, tokens[:, s], keep, sigma) for s, sigma in enumerate(sigmas)]
            parts.append({name: torch.stack([one[name] for one in levels], dim=1) for name in TABLES})
            done += batch.items.tolist()
        after(n + len(batch.skipped))
    return done, {name: torch.cat([part[name] for part in parts]) for name in TABLES} if parts else {}


def _levels(stream: Stream) -> tuple[float, ...]:
    collected = stream.meta.collected
    return (math.nan,) if collected is None else tuple(slot.sigma for slot in collected.slots)


def _reduced(sae: Dictionary, tokens: Tensor, keep: Tensor | None, sigma: float) -> dict[str, Tensor]:
    """Tables `[n, columns]` of the codes of tokens `[n, m, d]`, of which those of `keep` `[n, m]` count."""
    n, m, d = tokens.shape
    device, columns = sae.mean.device, _columns(sae)
    owner, rows = torch.arange(n).repeat_interleave(m), tokens.reshape(-1, d)
    if keep is not None:
        owner, rows = owner[keep.flatten()], rows[keep.flatten()]
    counts = torch.bincount(owner, minlength=n).clamp(min=1).float()[:, None]
    rows, owner = rows.to(device), owner.to(device)
    codes = sae.encode(rows, **at_sigma(sae, len(rows), sigma))
    fires = (codes.indices >= 0) & (codes.values != 0)
    values = codes.values[fires].float()
    column = torch.where(values < 0, codes.indices[fires] + sae.n_latents, codes.indices[fires])
    place = owner[:, None].expand_as(fires)[fires] * columns + column
    sums = [torch.zeros(n * columns, device=device) for _ in range(4)]
    sums[0].index_add_(0, place, values.abs())
    sums[1].index_add_(0, place, values.square())
    sums[2].scatter_reduce_(0, place, values.abs(), "amax")
    sums[3].index_add_(0, place, torch.ones_like(values))
    mean, square, largest, fired = (found.cpu().reshape(n, columns) for found in sums)
    return {"mean": mean / counts, "rms": (square / counts).sqrt(), "largest": largest, "fired": fired / counts}


@contextmanager
def token_ids(stream: Stream, content: bool) -> Iterator[list[Tensor]]:
    """The numbers `[n, t]` of the tokens that a site's text encoder was given last; empty where nobody asks."""
    seen: list[Tensor] = []
    if not content:
        yield seen
        return

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[:] = [next(v for v in arguments(module, args, kwargs).values() if isinstance(v, Tensor)).cpu()]

    encoder: nn.Module = stream.model.module.get_submodule(stream.site.path.partition(".")[0])
    handle = encoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def tokenizer_of(pipe: Any, path: str) -> Any:
    """The tokenizer of a pipeline's text encoder, in which a site has this path."""
    return getattr(pipe, path.partition(".")[0].replace("text_encoder", "tokenizer"))


def content_tokens(ids: Tensor, stream: Stream) -> Tensor:
    """Which tokens `[n, t]` (bool) belong to the prompts: not the first special one, and nothing after the end.

    The token that ends the prompt counts: encoders that read from left to right gather the prompt in it. Where nothing
    would be left, all do.
    """
    tokenizer = tokenizer_of(cast(AdaptedPipeline, stream.model).pipe, stream.site.path)
    end, pad, begin = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    keep = torch.ones_like(ids, dtype=torch.bool)
    if pad is not None and pad != end:
        keep &= ids != pad
    if begin is not None and begin != end:
        keep &= ids != begin
    if end is not None:
        ended = ids == end
        keep &= ended.cumsum(1) - ended.long() == 0
    return keep | ~keep.any(1, keepdim=True)


class _Kept:
    """Statistics by prompt, in memory and, with a folder, in parts on the disk."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]):
        self.places: dict[Entry, tuple[int, int]] = {}
        self._seeded = identity.get("collected", {}).get("mode") != "text"
        self._parts: list[PromptStatistics | Path] = []
        self._folder: Path | None = None
        if folder is None:
            return
        told = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder / told
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self._folder.glob("part-*.json")):
            known = json.loads(file.read_text(encoding="utf8"))["prompts"]
            self._note([self.entry(Prompt(**one)) for one in known], file)
        write_json(self._folder / IDENTITY, identity)

    def entry(self, one: Prompt) -> Entry:
        """What decides the statistics of a prompt in this run."""
        return one.text, one.seed if self._seeded else 0

    def add(self, found: PromptStatistics) -> None:
        """Takes a part, and writes it."""
        entries = [self.entry(one) for one in found.prompts]
        if self._folder is not None:
            told = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]
            found.save(self._folder / f"part-{told}.json")
        self._note(entries, found)

    def gathered(self, asked: Sequence[Prompt]) -> PromptStatistics:
        """The statistics of prompts, in their order; images that could not be read are left out.

        Raises:
            ValueError: if none could be read.
        """
        have = [one for one in asked if self.entry(one) in self.places]
        if not have:
            raise ValueError("none of the images can be read: there are no statistics")
        places = [self.places[self.entry(one)] for one in have]
        parts: list[PromptStatistics] = []
        order: list[int] = []
        for number in sorted({part for part, _ in places}):
            mine = [j for j, (part, _) in enumerate(places) if part == number]
            part = self._parts[number]
            whole = PromptStatistics.load(part) if isinstance(part, Path) else part
            parts.append(whole[[places[j][1] for j in mine]])
            order += mine
        found = PromptStatistics.cat(parts)[np.argsort(order).tolist()]
        return replace(found, prompts=tuple(have))

    def _note(self, entries: Sequence[Entry], part: PromptStatistics | Path) -> None:
        self.places |= {entry: (len(self._parts), row) for row, entry in enumerate(entries)}
        self._parts.append(part)
