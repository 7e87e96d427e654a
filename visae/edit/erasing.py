"""`Erasing`: edits on a pipeline that can be entered, installed for serving, and taken to another process."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file, save_file

from visae.edit.apply import EditedSite, Editing, edited_sites
from visae.edit.saving import packed, unpacked
from visae.json_files import write_json
from visae.model import drawing
from visae.sae import Card, load_sae, save_sae
from visae.sites import Site

FILE, TABLES = "erasure.json", "erasure.safetensors"
FORMAT = 1
_INSTALLED: set["Erasing"] = set()
"""Keeps alive what is installed: hooks go when what holds them is collected."""


class Erasing:
    """Edits at sites of a pipeline.

    As a context, edits act inside the `with`. Installed, they act until `remove`, also in networks that are compiled
    afterwards with `torch.compile`: they stay outside of its graphs. `on` switches them without a recompilation.

    Attributes:
        pipeline: the adapted pipeline.
        sites: where edits are made.
        about: what was erased, as JSON, for `export`.

    Example:
        >>> with visae.erase(pipe, sae, selection):
        ...     pipe("a red star")
    """

    def __init__(self, pipe: Any, sites: Sequence[EditedSite], about: dict[str, Any] | None = None):
        self.pipeline = drawing(pipe)
        self.sites, self.about = list(sites), about or {}
        self._entered: list[ExitStack] = []
        self._installed: ExitStack | None = None
        self.editing: Editing | None = None

    def __enter__(self) -> Editing:
        if self._installed is not None:
            raise RuntimeError("these edits are installed already: use the pipeline, or remove() them first")
        with ExitStack() as stack:
            self.editing = stack.enter_context(edited_sites(self.pipeline, self.sites))
            self._entered.append(stack.pop_all())
        return self.editing

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._entered.pop().__exit__(kind, error, at)

    @property
    def on(self) -> bool:
        """Whether the installed edits act; may be set."""
        return self.editing is not None and self._installed is not None and self.editing.on

    @on.setter
    def on(self, value: bool) -> None:
        if self.editing is None or self._installed is None:
            raise RuntimeError("nothing is installed that could be switched: call install() first")
        self.editing.on = value

    def install(self) -> "Erasing":
        """Edits every run from now on, until `remove`.

        Raises:
            RuntimeError: if they are installed already.
            ValueError: if a network on the way is compiled already: install first, compile then.
        """
        if self._installed is not None:
            raise RuntimeError("these edits are installed already; remove() takes them away")
        with ExitStack() as stack:
            self.editing = stack.enter_context(edited_sites(self.pipeline, self.sites, lasting=True))
            self._installed = stack.pop_all()
        _INSTALLED.add(self)
        return self

    def remove(self) -> None:
        """Takes installed edits away; nothing is left on the pipeline."""
        if self._installed is not None:
            stack, self._installed = self._installed, None
            _INSTALLED.discard(self)
            stack.close()

    def export(self, folder: str | Path) -> Path:
        """Writes all that another process needs: dictionaries, edits, and what they are about.

        There, `visae.load_erasure(folder, pipe).install()` does on a diffusers pipeline what this one does here.
        The folder appears when it is complete.

        Raises:
            FileExistsError: if the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} exists; choose another folder, or remove it first")
        part, tables = folder.with_name(folder.name + ".part"), dict[str, Any]()
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        told = []
        for number, one in enumerate(self.sites):
            site = self.pipeline.site(one.site)
            save_sae(one.sae, part / f"sae-{number}", self._card(one, site))
            edits = [packed(edit, tables, f"site{number}.edit{i}") for i, edit in enumerate(one.edits)]
            told.append({"site": site.to_dict(), "sae": f"sae-{number}", "edits": edits})
        if tables:
            save_file(tables, part / TABLES)
        made_for = {"class": type(self.pipeline.pipe).__name__, "revision": self.pipeline.revision}
        write_json(part / FILE, {"format": FORMAT, "pipeline": made_for, "about": self.about, "sites": told})
        part.rename(folder)
        return folder

    def _card(self, one: EditedSite, site: Site) -> Card:
        return Card(
            kind="", d=one.sae.d, n_latents=0, model={"id": self.pipeline.id, "revision": self.pipeline.revision},
            site=site.to_dict(),
        )  # fmt: skip


def load_erasure(folder: str | Path, pipe: Any, *, strict: bool = True) -> Erasing:
    """The edits of an exported folder, for a pipeline.

    Args:
        folder: what `Erasing.export` wrote.
        pipe: a diffusers pipeline, or one that visae adapted.
        strict: whether the pipeline's weights must be those for which the edits were made.

    Raises:
        FileNotFoundError: if the folder holds no export.
        ValueError: if it was made for another pipeline, or by a later version of visae.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {FILE}; name a folder that Erasing.export wrote")
    told = json.loads((folder / FILE).read_text(encoding="utf8"))
    if told["format"] > FORMAT:
        raise ValueError(f"{folder} is of format {told['format']}, this visae reads up to {FORMAT}: update visae")
    pipeline = drawing(pipe)
    then, now = told["pipeline"], {"class": type(pipeline.pipe).__name__, "revision": pipeline.revision}
    if then["class"] != now["class"] or (strict and then["revision"] != now["revision"]):
        raise ValueError(
            f"{folder} was made for a {then['class']} (weights {then['revision']}), this is a {now['class']} (weights "
            f"{now['revision']}); load the same pipeline, or pass strict=False for other weights of the same class"
        )
    tables = load_file(folder / TABLES) if (folder / TABLES).is_file() else {}
    sites = [
        EditedSite(
            load_sae(folder / one["sae"]).to(pipeline.device),
            Site.from_dict(one["site"]),
            tuple(unpacked(edit, tables) for edit in one["edits"]),
        )
        for one in told["sites"]
    ]
    return Erasing(pipeline, sites, told["about"])
