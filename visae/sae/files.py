"""`sae.safetensors` and `sae.json`: writing, reading, and refusing what is damaged or does not fit."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visae.sae.baselines import BASELINES, make_baseline
from visae.sae.card import Card
from visae.sae.dictionary import Dictionary
from visae.sae.ensemble import ENSEMBLES, Ensemble
from visae.sae.registry import make_sae

WEIGHTS, CARD = "sae.safetensors", "sae.json"


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(sae: Dictionary | Ensemble, card: Card | None = None) -> Card:
    """The card with the entries that the dictionary itself knows; the rest comes from `card`, else stays empty."""
    threshold = getattr(getattr(sae, "activation", None), "threshold", None)  # an ensemble has one per member
    scalar = float(threshold) if threshold is not None and threshold.ndim == 0 else None
    base = card or sae.card or Card(sae.kind, sae.d, sae.n_latents)
    return base.updated(
        kind=sae.kind,
        d=sae.d,
        n_latents=sae.n_latents,
        options=sae.options,
        normaliser=sae.normaliser.name,
        folded=list(sae.folded),
        signed=sae.signed,
        threshold=scalar,
        dtype=str(sae.mean.dtype).removeprefix("torch."),
    )


def check_weights(sae: Dictionary | Ensemble) -> None:
    """Refuses to save what would not work: values that are not finite, rows off the unit sphere.

    Raises:
        ValueError: naming the tensors.
    """
    state = sae.state_dict()
    if bad := [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise ValueError(f"not saved: {', '.join(bad)} hold values that are not finite; training went wrong")
    for name in sorted(sae.unit_parameters()):
        norms = torch.linalg.vector_norm(state[name].double(), dim=1)
        if bool(((norms - 1).abs() > 1e-2).any()):
            raise ValueError(
                f"not saved: rows of {name} should have length 1, found {float(norms.min()):.3g} to "
                f"{float(norms.max()):.3g}; initialise or train the dictionary first"
            )


def save_sae(sae: Dictionary | Ensemble, path: Path | str, card: Card | None = None) -> Card:
    """Writes `sae.safetensors` and `sae.json` into a folder.

    Both are written under other names first; the card goes last and carries the sha256 of the weights, so what is
    half written never looks whole.

    Args:
        sae: the dictionary.
        path: folder, made if needed; an SAE that lies there is replaced.
        card: what is known beside the weights (model, site, data, ...); `describe` fills in the rest.

    Returns:
        The card as written.

    Raises:
        ValueError: see `check_weights`.
    """
    check_weights(sae)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = folder / f".{WEIGHTS}.{os.getpid()}.tmp", folder / f".{CARD}.{os.getpid()}.tmp"
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in sae.state_dict().items()}, weights)
        written = describe(sae, card).updated(weights=digest(weights))
        text.write_text(written.to_json(), encoding="utf-8")
        (folder / CARD).unlink(missing_ok=True)
        os.replace(weights, folder / WEIGHTS)
        os.replace(text, folder / CARD)
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)
    sae.card = written = Card.from_json(written.to_json())  # as it will be read: JSON has lists, no tuples
    return written


def load_card(path: Path | str) -> Card:
    """The card in a folder, without the weights.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: see `Card.from_json`.
    """
    file = Path(path) / CARD
    if not file.is_file():
        weights = file.with_name(WEIGHTS).is_file()
        raise FileNotFoundError(
            f"{file} does not exist"
            + (
                f" though {WEIGHTS} does: the save was cut short, save again"
                if weights
                else f"; an SAE is a folder with {WEIGHTS} and {CARD}, as save_sae writes it"
            )
        )
    return Card.from_json(file.read_text(encoding="utf-8"), str(file))


def load_sae(
    path: Path | str,
    model: Any = None,
    site: Any = None,
    force: bool = False,
    *,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> Dictionary:
    """A dictionary from a folder, or from the Hugging Face hub as `hf:user/repository[/folder]`.

    Args:
        path: where it lies.
        model: the model it shall be used on (`AdaptedModel`, id, or `{"id", "revision"}`); checked against the card.
        site: the site (`Site`, name, or its dict); checked likewise.
        force: use it on another model or site all the same.
        device: where the weights go.
        revision: of a hub repository: branch, tag or commit.

    Returns:
        The dictionary in eval mode; `sae.card` is its card.

    Raises:
        FileNotFoundError: if a file is missing.
        MismatchError: if model or site differ from the card's.
        ValueError: for a damaged file, by name.
        UnknownName: for a kind that is not known here.
    """
    if str(path).startswith("hf:"):
        from visae.sae.hub import pull_sae

        folder = pull_sae(str(path)[3:], revision=revision)
    else:
        folder = Path(path)
    card = load_card(folder)
    if not force:
        card.check(model, site)
    sae = _empty(card)
    sae.load_state_dict(_weights(folder / WEIGHTS, card, sae.state_dict()))
    sae.card = card
    return sae.to(device).eval().requires_grad_(False)


def _empty(card: Card) -> Dictionary:
    """A dictionary of the card's form, without weights."""
    if card.kind in ENSEMBLES:
        members = [_form(card.d, **member) for member in card.options["members"]]
        return cast(Dictionary, Ensemble(cast(Any, card.kind), members))
    return _form(card.d, card.kind, card.n_latents, card.normaliser, card.folded, card.options)


def _form(
    d: int, kind: str, n_latents: int, normaliser: str, folded: Sequence[str], options: dict[str, Any]
) -> Dictionary:
    if kind in BASELINES:
        sae = make_baseline(kind, d, n_latents)
    else:
        sae = make_sae(kind, d, n_latents, normaliser=normaliser, **options)
    return sae.fold("normaliser" in folded, "norms" in folded) if folded else sae


def _weights(file: Path, card: Card, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; the card beside it describes it, so the folder is incomplete")
    if (found := digest(file)) != card.weights:
        raise ValueError(
            f"{file} is damaged or not the file its card describes: sha256 {found[:16]}..., the card says "
            f"{card.weights[:16]}...; copy or save it again"
        )
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error
    wrong = sorted(state.keys() ^ wanted.keys())
    wrong += [
        f"{n} {list(state[n].shape)} (expected {list(wanted[n].shape)})"
        for n in state.keys() & wanted.keys()
        if state[n].shape != wanted[n].shape
    ]
    if wrong:
        raise ValueError(f"{file} does not fit kind {card.kind!r} of the card; differing tensors: {', '.join(wrong)}")
    return state
