"""From a trace to sites: names for blocks and their parts, and what may be tapped at any module path."""

import re
from dataclasses import replace

from torch import nn

from visae.naming import SUFFIXES, Naming
from visae.places import continues, is_text, make_site, n_heads, one_head, pick, place_of, unread, without_text
from visae.readings import Call, Reading
from visae.registry import UnknownName
from visae.sites import Site, SiteKind
from visae.trace import Trace


class Catalogue:
    """The sites of one model.

    Attributes:
        sites: alias to site, in the order in which the model runs them.
        refused: alias to the reason why it cannot be offered.
    """

    def __init__(self, module: nn.Module, trace: Trace, naming: Naming):
        self.module, self.calls, self.naming = module, trace.calls, naming
        self.trusted = any(type(part).__name__ in naming.raster for part in module.modules())
        self.blocks = self._find_blocks()
        self.bad_streams = self._judge_streams()
        self.sites: dict[str, Site] = {}
        self.refused: dict[str, str] = {}
        for number, call in enumerate(self.blocks):
            self._offer_block(f"blocks.{number}" if naming.numbered else call.path, call.path)
        if naming.numbered:
            self._offer_ends()
        self._by_place = {place_of(s): s for s in reversed(self.sites.values())}

    def find(self, name: str) -> Site:
        """The site of an alias or of a module path with or without a suffix.

        Raises:
            UnknownName: if there is neither such an alias nor such a module.
            ValueError: if the place exists but holds nothing that can be tapped.
        """
        name = self._positive(name)
        if name in self.sites:
            return self.sites[name]
        if name in self.refused:
            raise ValueError(f"site {name!r} cannot be tapped: {self.refused[name]}")
        path, text = (name, False) if name in self.calls else without_text(name)
        path, kind, head = self._split(path)
        site = self._site(name, path, kind, head, text=text)
        return self._by_place.get(place_of(site), site)

    def recall(self, site: Site) -> Site:
        """This model's own site at the place that a site (of a card, say) names.

        Raises:
            UnknownName: if the model has no such module.
            ValueError: if the module gives other tokens.
        """
        place = place_of(site)
        if (same := self.sites.get(site.name)) is not None and same == site:
            return same
        if place not in self._by_place and site.path not in self.calls:
            raise UnknownName(
                "module path of a site",
                site.path,
                [p for p in self.calls if p],
                f"Site {site.name!r} is of another model.",
            )
        own = self._by_place.get(place) or self._rebuild(site)
        if own.d != site.d:
            raise ValueError(
                f"site {site.name!r} has tokens of length {site.d}, but module {site.path!r} of this "
                f"model gives {own.d}: it is of another model"
            )
        return own

    def _rebuild(self, site: Site) -> Site:
        """A site at a module path that has no alias."""
        if site.kind in ("heads", "head"):
            call = self._called(site.path)
            fused = isinstance(self.module.get_submodule(site.path), nn.MultiheadAttention)
            reading = call.output if fused else call.taken
            width = site.d if site.head is None else site.d * (site.n_heads or 1)
            if reading is None or reading.layout is None or reading.d != width:
                raise ValueError(f"site {site.name!r} is of another model: module {site.path!r} has no such heads")
            heads = replace(make_site(site.name, site.path, "heads", reading), n_heads=site.n_heads)
            return heads if site.head is None else one_head(heads, site.name, site.head)
        text = site.stream == "text"
        if site.kind == "input":
            return self._site(site.name, site.path, "input", None, text=text)
        kind: SiteKind = "delta" if site.kind == "delta" else "output"
        return replace(self._site(site.name, site.path, kind, None, site.index, text), kind=site.kind)

    def _positive(self, name: str) -> str:
        found = re.match(r"blocks\.-(\d+)(?=\.|$)", name)
        if not found or not 0 < int(found[1]) <= len(self.blocks):
            return name
        return f"blocks.{len(self.blocks) - int(found[1])}{name[found.end() :]}"

    def _split(self, name: str) -> tuple[str, SiteKind, int | None]:
        paths = dict(self.module.named_modules())
        if name in paths:
            return name, "output", None
        head = re.fullmatch(r"(.+)\.head\.(\d+)", name)
        path, suffix = (head[1], "heads") if head else tuple(name.rpartition(".")[::2])
        path = self.sites[path].path if path in self.sites else path
        if path in paths and suffix in SUFFIXES:
            return path, "head" if head else SUFFIXES[suffix], int(head[2]) if head else None
        raise UnknownName(
            "site",
            name,
            {*self.sites, *(p for p in self.calls if p)},
            f"After a module path may stand {', '.join('.' + s for s in SUFFIXES)} or .head.0.",
        )

    def _find_blocks(self) -> list[Call]:
        for pattern in self.naming.blocks:
            found = [
                call
                for path, call in self.calls.items()
                if re.fullmatch(pattern, path) and not re.match(self.naming.elsewhere, path)
            ]
            if any(call.output is not None for call in found):
                return found
        return []

    def _judge_streams(self) -> set[object]:
        """Streams of tokens whose order is not that of the picture, by a majority of their first four blocks."""
        votes: dict[object, list[bool]] = {}
        for call in self.blocks:
            if call.output and call.output.map and call.output.layout in ("NLC", "LNC") and call.output.hit is not None:
                votes.setdefault(call.output.stream, []).append(call.output.hit)
        return {s for s, hits in votes.items() if not self.trusted and sum(hits[:4]) * 2 < len(hits[:4])}

    def _offer(self, alias: str, path: str, kind: SiteKind, index: int | str | None = None, text: bool = False) -> None:
        try:
            self.sites[alias] = replace(self._site(alias, path, kind, None, index, text), name=alias)
        except ValueError as reason:
            self.refused[alias] = str(reason)

    def _offer_block(self, alias: str, path: str) -> None:
        for suffix in ("", *(f".{name}" for name in SUFFIXES)):
            self._offer(alias + suffix, path, SUFFIXES.get(suffix[1:], "output"))
        if f"{alias}.cross_out" in self.refused:
            for part in (p for p in self.naming.cross if f"{path}.{p}" in self.calls):
                self._offer(f"{alias}.{part}", f"{path}.{part}", "output")
                if f"{alias}.{part}" in self.sites:
                    self.sites[f"{alias}.{part}"] = replace(self.sites[f"{alias}.{part}"], kind="attn_out")
        if (main := self.calls[path].output) is not None and main.map and self.calls[path].text:
            for suffix in ("", ".input", ".delta", ".attn_out", ".mlp_out"):
                self._offer(f"{alias}.text{suffix}", path, SUFFIXES.get(suffix[1:], "output"), text=True)
        if (heads := self.sites.get(f"{alias}.heads")) is not None and heads.n_heads:
            for j in range(heads.n_heads):
                self.sites[f"{alias}.head.{j}"] = one_head(heads, f"{alias}.head.{j}", j)

    def _offer_ends(self) -> None:
        if last := next((call for call in reversed(self.blocks) if call.output and call.output.map), None):
            after = [c for c in self.calls.values() if c.begin > last.end and c.runs == 1 and continues(last, c)]
            self._offer("final", (after or [last])[-1].path, "final")
        if self.naming.pooled is not None:
            self._offer("pooled", self.naming.pooled[0], "pooled", self.naming.pooled[1])
        if "pooled" not in self.sites and (found := self._last_vector()):
            self._offer("pooled", found[0].path, found[1])

    def _last_vector(self) -> tuple[Call, SiteKind] | None:
        """The last module, before the classifier, that gives one vector per image; else what the classifier takes."""
        vectors = [
            c for c in self.calls.values() if c.path and c.runs == 1 and c.output and c.output.kinds == ("pooled",)
        ]
        vectors.sort(key=lambda call: call.end)
        linear = [c for c in vectors if isinstance(self.module.get_submodule(c.path), nn.Linear)]
        heads = [self.calls[path] for path in self.naming.classifier if path in self.calls] or linear[-1:]
        before = [c for c in vectors if not heads or c.end < min(head.begin for head in heads)]
        if before:
            return before[-1], "pooled"
        taken = [c for c in heads if c.taken and c.taken.kinds == ("pooled",)]
        return (taken[0], "input") if taken else None

    def _site(
        self,
        name: str,
        path: str,
        kind: SiteKind,
        head: int | None,
        index: int | str | None = None,
        text: bool = False,
    ) -> Site:
        """Builds the site of a module; raises ValueError with the reason where there is none."""
        if kind in ("heads", "head"):
            heads = self._heads(name, path)
            return heads if head is None else one_head(heads, name, head)
        if kind in ("attn_out", "cross_out", "mlp_out"):
            path = self._part(path, self._candidates(kind, text))
        call = self._called(path)
        if kind == "cross_out" and not any(is_text(taken) for taken in call.arguments):
            raise ValueError(f"module {path!r} is called without a text: it is no cross-attention")
        reading = pick(call.arguments if kind == "input" else call.given, call, kind, index, text)
        if reading is None or reading.layout is None:
            raise ValueError(unread(path, kind, call) + self._behind_a_text(call))
        source = call.source(reading)
        if kind == "delta" and (source is None or source.shape != reading.shape):
            taken = source.shape if source else None
            raise ValueError(f"module {path!r} takes {taken} and gives {reading.shape}: it has no delta")
        self._check_order(path, call, reading)
        site = make_site(name, path, kind, reading)
        if kind == "delta" and source is not None:
            site = replace(site, overwritten=source.overwritten, argument=source.index)
        if kind == "input":
            site = replace(site, argument=reading.index)
        first = call.taken is not None and site.argument == call.taken.index
        return replace(site, argument=None) if first else site

    def _behind_a_text(self, call: Call) -> str:
        """What to add where a sequence is as long as the image's tokens behind a part of a text; else nothing."""
        texts = [len(r.kinds) for c in self.calls.values() for r in c.arguments + c.given if set(r.kinds) == {"text"}]
        for block in self.blocks:
            image = len(block.output.kinds) if block.output and block.output.map else 0
            for given in call.given:
                more = given.shape[1] - image if len(given.shape) == 3 else 0
                if image and 0 < more < max(texts, default=0):
                    return (
                        f". Its tokens are as many as the image's {image} and {more} of a text's {max(texts)}: where "
                        "texts go in as long as each prompt is, the image's tokens have no fixed place. Tap a block "
                        f"before the two come together, e.g. {block.path}"
                    )
        return ""

    def _candidates(self, kind: SiteKind, text: bool) -> tuple[str, ...]:
        """Paths inside a block of the module that gives this kind of site."""
        naming = self.naming
        if kind == "mlp_out":
            return naming.text_mlp if text else naming.mlp
        return naming.attention if kind == "attn_out" else naming.cross

    def _called(self, path: str) -> Call:
        if path not in self.calls:
            raise ValueError(f"module {path!r} does not run when the model sees an image; tap the module that calls it")
        call = self.calls[path]
        if call.runs > 1:
            raise ValueError(f"module {path!r} runs {call.runs} times in one forward; tap a module that runs once")
        return call

    def _check_order(self, path: str, call: Call, reading: Reading) -> None:
        """Refuses tokens that are not in the order of the picture."""
        if reading.map is None or reading.layout not in ("NLC", "LNC") or not self.blocks:
            return
        inside = any(path == b.path or path.startswith(b.path + ".") for b in self.blocks)
        known = {b.output.stream for b in self.blocks if b.output}
        wrong = reading.stream in self.bad_streams and (inside or not reading.hit)
        stray = reading.stream not in known and call.begin > self.blocks[0].begin and reading.hit is False
        if wrong or (stray and not inside):
            raise ValueError(
                f"the {len(reading.kinds)} tokens of module {path!r} are not in the order of the picture (a square "
                "painted on the image shows up elsewhere), so they have no place on it; tap another module"
            )

    def _part(self, block: str, candidates: tuple[str, ...]) -> str:
        for part in candidates:
            if f"{block}.{part}" in self.calls and not isinstance(
                self.module.get_submodule(f"{block}.{part}"), nn.Identity
            ):
                return f"{block}.{part}"
        raise ValueError(f"module {block!r} has none of the parts {', '.join(candidates)}")

    def _heads(self, name: str, path: str) -> Site:
        """All heads' outputs before the output projection mixes them."""
        parts = [f"{path}.{part}" for part in self.naming.attention]
        attention = next((part for part in parts if part in self.calls and self._projection(part)), path)
        place, heads = self._projection(attention), n_heads(self.module.get_submodule(attention), self.naming)
        if place is None:
            raise ValueError(f"module {path!r} has no attention with a linear output projection")
        fused = isinstance(self.module.get_submodule(place), nn.MultiheadAttention)
        reading = self._called(place).output if fused else self._called(place).taken
        if reading is None or reading.layout is None or not heads or reading.d % heads:
            raise ValueError(f"attention module {attention!r} gives no tokens that divide into {heads} heads")
        self._check_order(place, self.calls[place], reading)
        return replace(make_site(name, place, "heads", reading), n_heads=heads)

    def _projection(self, attention: str) -> str | None:
        """The layer that mixes the heads of an attention module (itself, where all is one call)."""
        if isinstance(self.module.get_submodule(attention), nn.MultiheadAttention):
            return attention
        paths = (f"{attention}.{part}" for part in self.naming.projection)
        return next((p for p in paths if p in self.calls and isinstance(self.module.get_submodule(p), nn.Linear)), None)
