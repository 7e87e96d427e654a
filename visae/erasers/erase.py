"""`visae.erase`: from a selection to a pipeline that does not draw the concept."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from visae.codes.build import fingerprint
from visae.edit import Edit, EditedSite, Erasing, at_levels, scale
from visae.edit.edits import Who
from visae.model import drawing
from visae.sae import Dictionary, load_sae
from visae.select.selection import Selection


def erase(
    pipe: Any,
    sae: Dictionary | str | Path,
    selection: Selection | str | Path | Iterable[int],
    *,
    site: str = "",
    factor: float = -1.0,
    branches: Who = "both",
    edits: Iterable[Edit] | None = None,
) -> Erasing:
    """Edits with which a pipeline does not draw a concept, to be entered, installed or exported.

    Example:
        >>> with visae.erase(pipe, "runs/sd15", "star.json"):
        ...     pipe("a red star")
        >>> visae.erase(pipe, "runs/sd15", "star.json").install()  # for serving

    Args:
        pipe: a diffusers pipeline, or one that visae adapted.
        sae: the dictionary, or the folder of a run; refused where its card names another model.
        selection: the concept's latents, or a file with them, or their numbers.
        site: where the dictionary was trained; read from its card if not given.
        factor: what the latents are multiplied by: 0 ablates, below 0 pushes away.
        branches: of guidance that are edited.
        edits: to be made instead, e.g. of `visae.edit`; the selection is then only told in the export.

    Raises:
        ValueError: if there is no site, the selection is of another dictionary, or the pipeline makes none.
    """
    model = drawing(pipe)
    if not isinstance(sae, Dictionary):
        sae = load_sae(sae, model=model).to(model.device)
    if isinstance(selection, str | Path):
        selection = Selection.load(selection)
    chosen = selection if isinstance(selection, Selection) else None
    card = getattr(sae, "card", None)
    place = site or (chosen.site if chosen else "") or (card.site.get("name", "") if card else "")
    if not place:
        raise ValueError("name the site where the dictionary was trained with site=: neither selection nor card does")
    if chosen and chosen.sae and chosen.sae != fingerprint(sae):
        raise ValueError(
            f"{chosen.name} was selected in a dictionary with the weights {chosen.sae[:8]}, this one has "
            f"{fingerprint(sae)[:8]}: numbers of latents mean nothing in another one; select again"
        )
    told = {"concept": chosen.name, "selection": chosen.to_dict()} if chosen else {}
    made = tuple(edits) if edits is not None else (_default(selection, factor).who(branches),)
    return Erasing(model, [EditedSite(sae, place, made)], told)


def _default(selection: Selection | Iterable[int], factor: float) -> Edit:
    if not isinstance(selection, Selection):
        return scale(selection, factor)
    edit = scale(selection.latents, factor).when(sigma=selection.sigmas)
    facts = selection.evidence
    return edit.where(at_levels(facts["levels"], facts["active"])) if "active" in facts else edit
