"""`CodeTable`: the sparse token x latent table of a data set, on disk, answering questions about any latent at once."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from visae.codes.answers import ClassStatistics, Top, one_side, rank_latents
from visae.codes.build import Encoder, TokenSource, build
from visae.codes.columns import SIDES
from visae.codes.stored import StoredCodes
from visae.registry import UnknownName
from visae.tokens import KINDS


class CodeTable(StoredCodes):
    """Codes of every token of a data set under one dictionary, by rows and by latents, memory-mapped.

    Item maxima ("image level") are taken over the tokens of `pooled_kinds`: the patches where there are some. Where
    a dictionary is signed, `sign=1` asks about positive values and `sign=-1` about negative ones; a latent of an
    unsigned dictionary has only the former.

    Example:
        >>> table = CodeTable.build(sae, open_store("runs/world/val"), "runs/world/codes")  # doctest: +SKIP
        >>> table.top(17, 9).items  # doctest: +SKIP
    """

    @classmethod
    def build(
        cls,
        sae: Encoder,
        source: TokenSource,
        out: str | Path,
        *,
        kinds: tuple[str, ...] | None = None,
        progress: bool = True,
    ) -> "CodeTable":
        """Encodes all tokens of `source` in one pass and writes the table.

        Memory is bounded by a chunk and by blocks of some million entries; disk needs about 16 bytes per non-zero
        code and 13 per token.

        Args:
            sae: a dictionary, `encode([n, d]) -> Codes`.
            source: a store or a stream, see `visae.store`.
            out: a folder that does not exist yet; it appears when the table is complete.
            kinds: kinds of token over which item maxima are taken; None means patches where there are some, else all.
            progress: show a bar.

        Raises:
            FileExistsError: if `out` exists.
        """
        build(sae, source, Path(out), kinds, progress)
        return cls.load(out)

    # --- all latents at once -------------------------------------------------------------------------------------

    @cached_property
    def density(self) -> np.ndarray:
        """Share `[F]` of all tokens on which each latent is not zero."""
        return np.asarray(self.array("counts")).sum(0) / self.n_rows

    def density_of(self, kind: str) -> np.ndarray:
        """Share `[F]` of the tokens of one kind (NaN where the data set has none)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.array("counts"))[KINDS.index(kind)] / np.float64(self.rows_of_kind[kind])

    @cached_property
    def alive(self) -> np.ndarray:
        """Latents that fire at least once."""
        return np.flatnonzero(self.density > 0)

    @cached_property
    def highest(self) -> np.ndarray:
        """Largest value `[F]` of each latent, at least 0."""
        return np.asarray(self.array("highest"))

    @cached_property
    def lowest(self) -> np.ndarray:
        """Smallest value `[F]` of each latent, at most 0."""
        return np.asarray(self.array("lowest"))

    @cached_property
    def mean_active(self) -> np.ndarray:
        """Mean value `[F]` over the tokens on which each latent fires, NaN for a dead one."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.array("total")) / np.asarray(self.array("counts")).sum(0)

    @cached_property
    def norm(self) -> np.ndarray:
        """Length `[F]` of each latent's direction: value times norm is what it adds to the activation."""
        return np.asarray(self.array("norm"))

    @property
    def timed(self) -> bool:
        """Whether tokens have a step, a noise level and a branch (`array("step")`, `"sigma"`, `"branch"`)."""
        return "sigma" in self._files

    def density_by(self, name: str) -> dict[float, np.ndarray]:
        """Value of `step`, `sigma` or `branch` -> share `[F]` of its tokens on which each latent is not zero; rising.

        Raises:
            ValueError: if the tokens are not those of a pipeline.
        """
        if not self.timed:
            raise ValueError(f"{self.name} holds images, whose tokens have no {name}")
        values, place, count = np.unique(np.asarray(self.array(name)), return_inverse=True, return_counts=True)
        rows = np.repeat(place, np.diff(np.asarray(self.array("row_ptr"))))
        hits = np.bincount(rows * self.n_latents + self.array("latent"), minlength=len(values) * self.n_latents)
        shares = hits.reshape(len(values), self.n_latents) / count[:, None]
        return {value.item(): share for value, share in zip(values, shares, strict=True)}

    def item_maxima(self, sign: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pointers `[F + 1]`, items and values: entries `pointers[j]` to `pointers[j + 1]` belong to latent j."""
        side = self._side(sign)
        return self.array(f"{side}_ptr"), self.array(f"{side}_item"), self.array(f"{side}_value")

    # --- one latent ----------------------------------------------------------------------------------------------

    def latent(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows on which a latent fires (ascending) and its values there."""
        span = self._span("latent_ptr", latent)
        return np.asarray(self.array("latent_row")[span]), np.asarray(self.array("latent_value")[span])

    def item_max(self, latent: int, sign: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Items in which a latent fires (ascending) and its value furthest from zero in each."""
        side = self._side(sign)
        span = self._span(f"{side}_ptr", latent)
        return np.asarray(self.array(f"{side}_item")[span]), np.asarray(self.array(f"{side}_value")[span])

    def top(self, latent: int, n: int = 16, sign: int = 1) -> Top:
        """The `n` items in which a latent is strongest (fewer if it fires in fewer); ties go to the earlier item."""
        side = self._side(sign)
        span = self._span(f"{side}_ptr", latent)
        strength = np.abs(self.array(f"{side}_value")[span])
        best = np.argsort(-strength, kind="stable")[:n] + span.start
        rows = self.array(f"{side}_row")[best]
        return Top(
            items=np.asarray(self.array(f"{side}_item")[best]),
            values=np.asarray(self.array(f"{side}_value")[best]),
            y=np.asarray(self.array("y")[rows]),
            x=np.asarray(self.array("x")[rows]),
        )

    def histogram(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts `[bins]` of the non-zero values and the edges `[bins + 1]`, from the lowest (or 0) to the highest."""
        counts = np.asarray(self.array("histogram")[self._known(latent)])
        return counts, np.linspace(self.lowest[latent], self.highest[latent], len(counts) + 1)

    def class_statistics(self, latent: int, factor: str, sign: int = 1) -> ClassStatistics:
        """How a latent behaves on the items of each value of a factor."""
        pointers, shown = self.labels(factor)
        n = len(self.factors[factor])
        items, values = self.item_max(latent, sign)
        sums = self.array(f"{self._side(sign)}_sum")[self._span(f"{self._side(sign)}_ptr", latent)]
        repeats = pointers[items + 1] - pointers[items]
        place = np.repeat(pointers[items] - (np.cumsum(repeats) - repeats), repeats) + np.arange(repeats.sum())
        value = shown[place]
        count, tokens = self._class_sizes(factor)
        active = np.bincount(value, minlength=n)
        with np.errstate(invalid="ignore"):
            return ClassStatistics(
                values=self.factors[factor],
                count=count,
                active=active,
                rate=active / count.astype(float),
                mean=np.bincount(value, np.repeat(values, repeats), minlength=n) / count,
                token_mean=np.bincount(value, np.repeat(sums, repeats), minlength=n) / tokens,
            )

    # --- one item ------------------------------------------------------------------------------------------------

    def rows_of(self, item: int) -> slice:
        """Rows that belong to an item.

        Raises:
            IndexError: if there is no such item.
        """
        if not 0 <= item < self.n_items:
            raise IndexError(f"item {item} of a table of {self.n_items} items, counted from 0")
        pointers = self.array("item_ptr")
        return slice(int(pointers[item]), int(pointers[item + 1]))

    def grid(self, item: int, latent: int, sign: int | None = None) -> np.ndarray:
        """Values `[h, w]` of a latent on the token grid of one item; 0 where it is silent or the token was not kept."""
        return self.grids(item, [latent], None if sign is None else [sign])[0]

    def grids(self, item: int, latents: Any, signs: Any = None) -> np.ndarray:
        """Values `[L, h, w]` of several latents on the token grid of one item.

        Of the steps and branches of a pipeline, each token shows the value furthest from zero.

        With signs, 1 or -1 for each, only the values of that side, as positive ones.

        Raises:
            ValueError: if the tokens have no grid, and see `one_side`.
        """
        if self.geometry is None:
            raise ValueError("this table's tokens have no grid (a pooled site): there is nothing to draw a map of")
        wanted = np.array([self._known(int(j)) for j in latents], np.int64)
        out = np.zeros((len(wanted), *self.geometry.grid), np.float32)
        latent, value, row = self._entries(item)
        for i, j in enumerate(wanted):
            mine = np.flatnonzero(latent == j)
            mine = mine[np.argsort(np.abs(value[mine]), kind="stable")]
            y, x = np.asarray(self.array("y")[row[mine]]), np.asarray(self.array("x")[row[mine]])
            on = y >= 0
            out[i, y[on], x[on]] = value[mine][on]
        return one_side(out, signs, self.signed)

    def strongest(self, item: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The latents that add most to an item, and their values: ranked by |largest value| times direction norm."""
        latent, value, row = self._entries(item)
        pooled = np.isin(self.array("kind")[row], [KINDS.index(kind) for kind in self.pooled_kinds])
        return rank_latents(latent[pooled], value[pooled], self.norm, n)

    def labels(self, factor: str) -> tuple[np.ndarray, np.ndarray]:
        """Pointers `[n_items + 1]` and value numbers: which values of a factor each item shows.

        Raises:
            UnknownName: if the data set has no such factor.
        """
        if factor not in self.factors:
            raise UnknownName("factor", factor, self.factors, "A data set without labels has none.")
        number = list(self.factors).index(factor)
        return self.array(f"label{number}_ptr"), self.array(f"label{number}_value")

    def shows(self, factor: str) -> np.ndarray:
        """Whether `[V, n_items]` (bool) each item shows each value of a factor."""
        pointers, shown = self.labels(factor)
        out = np.zeros((len(self.factors[factor]), self.n_items), bool)
        out[shown, np.repeat(np.arange(self.n_items), np.diff(pointers))] = True
        return out

    def labelled(self, factor: str) -> np.ndarray:
        """Items `[n_items]` (bool) that have any value of a factor; the others are unknown, not negative."""
        return np.diff(self.labels(factor)[0]) > 0

    # --- inside --------------------------------------------------------------------------------------------------

    def _entries(self, item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latents, values and rows of the non-zero codes of an item."""
        rows = self.rows_of(item)
        pointers = np.asarray(self.array("row_ptr")[rows.start : rows.stop + 1])
        span = slice(int(pointers[0]), int(pointers[-1]))
        row = np.repeat(np.arange(rows.start, rows.stop), np.diff(pointers))
        return np.asarray(self.array("latent")[span]), np.asarray(self.array("value")[span]), row

    def _class_sizes(self, factor: str) -> tuple[np.ndarray, np.ndarray]:
        """Items and pooled tokens `[V]` of each value of a factor; worked out once."""
        name = f"sizes of {factor}"
        if name not in self._open:
            pointers, shown = self.labels(factor)
            pooled = np.isin(self.array("kind"), [KINDS.index(kind) for kind in self.pooled_kinds])
            running = np.concatenate([[0], np.cumsum(pooled)])
            tokens = np.diff(running[np.asarray(self.array("item_ptr"))])
            repeated = np.repeat(tokens, np.diff(pointers))
            n = len(self.factors[factor])
            self._open[name] = np.stack([np.bincount(shown, minlength=n), np.bincount(shown, repeated, minlength=n)])
        sizes = self._open[name]
        return sizes[0].astype(np.int64), sizes[1]

    def _side(self, sign: int) -> str:
        if sign not in SIDES or (sign < 0 and not self.signed):
            raise ValueError(
                f"sign is 1, or -1 where the dictionary is signed; got {sign} "
                f"for a{'' if self.signed else 'n un'}signed one"
            )
        return SIDES[sign]

    def _known(self, latent: int) -> int:
        if not 0 <= latent < self.n_latents:
            raise IndexError(f"latent {latent} of a dictionary of {self.n_latents}, counted from 0")
        return latent

    def _span(self, pointers: str, latent: int) -> slice:
        ends = self.array(pointers)
        return slice(int(ends[self._known(latent)]), int(ends[latent + 1]))
