"""`tap`: read what flows through sites of a model, or rewrite it; every hook is gone again afterwards.

Hooks stand on the native modules and stay differentiable. Attention heads are read before the output projection: at
the projection's input where it is a module that runs, and for `torch.nn.MultiheadAttention`, whose projection is part
of one fused call, by asking the same call once more with the identity in the projection's place.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visae.adapted import Adapted
from visae.compiling import refuse_compiled, shielded
from visae.readings import floating
from visae.registry import UnknownName
from visae.sites import Site, from_tokens, laid_out, to_tokens, tokens_text

Rewrite = Callable[[Tensor], Tensor]
Handles = list[torch.utils.hooks.RemovableHandle]


class Taken(dict[str, Tensor]):
    """Activations by site name; the names that the caller used for the sites work too."""

    def __init__(self, names: Mapping[str, str]):
        super().__init__()
        self.names = names

    def __missing__(self, key: str) -> Tensor:
        if key in self.names and self.names[key] in self:
            return self[self.names[key]]
        raise UnknownName("tapped site", key, self, "It holds what the last forward pass inside `with tap` brought.")


@contextmanager
def tap(
    model: Adapted,
    *sites: Site | str,
    rewrite: Rewrite | Mapping[str, Rewrite] | None = None,
    lasting: bool = False,
    any_size: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Reads, and rewrites where asked, the activations of sites in every forward pass inside the `with`.

    Args:
        model: an adapted model, not compiled.
        sites: aliases (`blocks.9`, `blocks.-2.delta`, `blocks.9.head.3`), module paths or `Site`s.
        rewrite: maps activations `[n, t, d]` to as many of the same type, for all sites or by site name. A `delta` f is
            rewritten as `out + (f' - f)`; a head only in its own slice. What comes back unchanged leaves every bit as
            it was.
        lasting: for hooks that stay while a model serves: no complaint if nothing ran, and in networks that are
            compiled afterwards they are called outside of the graphs.
        any_size: let pass what has other tokens than the sites were found with, for what does not ask where they lie.

    Yields:
        Activations `[n, t, d]` of the latest forward by site name, as they were before a rewrite; not detached, and
        views of the model's own tensors unless the model goes on to overwrite those.

    Raises:
        UnknownName: if the model has no such site.
        ValueError: if a module on the way is compiled, or a rewrite returns another shape, type or device.
        RuntimeError: on leaving without an exception, if a site's module never ran.

    Example:
        >>> with tap(model, "blocks.9", "blocks.9.attn_out") as taken:
        ...     model.forward(batch)
        >>> taken["blocks.9"].shape
        torch.Size([8, 50, 768])
    """
    if not sites:
        raise ValueError("tap needs at least one site, got none; model.sites() lists them")
    found, native = [model.site(site) for site in sites], model.module
    names = {asked: site.name for asked, site in zip(sites, found, strict=True) if isinstance(asked, str)}
    changes = _changes(rewrite, names, found)
    taken, handles, fused = Taken(names), Handles(), dict[str, _Fused]()
    try:
        for site in dict.fromkeys(found):
            refuse_compiled(native, site.path)
            module = native.get_submodule(site.path)
            if site.kind in ("heads", "head") and isinstance(module, nn.MultiheadAttention) and site.path not in fused:
                fused[site.path] = _Fused(module)
                handles.append(module.register_forward_pre_hook(shielded(fused[site.path].forget, lasting)))
            sized = site.grid is not None and not any_size
            handles += _Probe(site, changes.get(site.name), taken, fused.get(site.path), lasting, sized).attach(module)
        yield taken
    finally:
        for handle in handles:
            handle.remove()
    missing = [site for site in found if site.name not in taken]
    if missing and not lasting:
        what = ", ".join(f"{site.name} (module {site.path!r})" for site in missing)
        raise RuntimeError(f"nothing was tapped at {what}: it did not run inside `with tap`; call model.forward(batch)")


def _changes(
    rewrite: Rewrite | Mapping[str, Rewrite] | None, names: Mapping[str, str], sites: list[Site]
) -> dict[str, Rewrite]:
    if rewrite is None:
        return {}
    if callable(rewrite):
        return {site.name: rewrite for site in sites}
    known = {**names, **{site.name: site.name for site in sites}}
    if unknown := [key for key in rewrite if key not in known]:
        raise UnknownName("site to rewrite", unknown[0], known, "A rewrite needs its site among the tapped ones.")
    return {known[key]: change for key, change in rewrite.items()}


class _Probe:
    """The hooks of one site."""

    def __init__(
        self,
        site: Site,
        change: Rewrite | None,
        taken: dict[str, Tensor],
        fused: "_Fused | None",
        lasting: bool,
        sized: bool,
    ):
        self.site, self.change, self.taken, self.fused = site, change, taken, fused
        self.lasting, self.sized = lasting, sized
        self.before: list[Tensor] = []

    def attach(self, module: nn.Module) -> Handles:
        """Registers the hooks; rewrites run before hooks that others have put there, so that those see the result."""
        first, lasting = self.change is not None, self.lasting
        kind = self.site.kind
        if self.fused is not None and kind in ("heads", "head"):
            hook = shielded(self._on_fused_heads, lasting)
            return [module.register_forward_hook(hook, with_kwargs=True, prepend=first)]
        if kind in ("heads", "head", "input"):
            before = shielded(self._on_input, lasting)
            return [module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)]
        if kind == "delta":
            return [
                module.register_forward_pre_hook(shielded(self._remember, lasting), with_kwargs=True),
                module.register_forward_hook(shielded(self._on_delta, lasting), prepend=first),
            ]
        return [module.register_forward_hook(shielded(self._on_output, lasting), prepend=first)]

    def _step(self, native: Tensor, keep: bool) -> Tensor | None:
        """Takes the activations out of a native tensor; returns it rewritten, or None where nothing is to change."""
        tokens = to_tokens(native, self.site.layout)
        if self.sized and tokens.shape[1] != self.site.n_tokens:
            raise ValueError(
                f"site {self.site.name} has {tokens_text(self.site)} tokens, but module {self.site.path!r} now brings "
                f"{tokens.shape[1]}: the model runs at another size than its sites were found for; load_model(..., "
                "image_size=(height, width)) finds them for yours"
            )
        j, d = self.site.head, self.site.d
        mine = tokens if j is None else tokens[..., j * d : (j + 1) * d]
        self.taken[self.site.name] = mine.clone() if keep else mine
        if self.change is None:
            return None
        new = self._checked(self.change(self.taken[self.site.name]), mine)
        if j is not None:
            new = torch.cat([tokens[..., : j * d], new, tokens[..., (j + 1) * d :]], dim=-1)
        return from_tokens(new, native, self.site.layout)

    def _checked(self, new: Any, old: Tensor) -> Tensor:
        if not isinstance(new, Tensor):
            raise ValueError(f"the rewrite of {self.site.name} must return a tensor, got {type(new).__name__}")
        want, came = ((tuple(t.shape), t.dtype, str(t.device)) for t in (old, new))
        if want != came:
            shown = [f"{list(shape)} {dtype} on {device}" for shape, dtype, device in (want, came)]
            raise ValueError(f"the rewrite of {self.site.name} must return {shown[0]}, got {shown[1]}")
        return new

    def _on_output(self, _module: nn.Module, _args: Any, out: Any) -> Any:
        new = self._step(_pick(out, self.site), self.site.overwritten)
        return None if new is None else _replaced(out, self.site.index, new)

    def _on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key, native = self._argument(args, kwargs)
        new = self._step(native, self.site.overwritten)
        if new is None:
            return None
        if isinstance(key, int):
            return (*args[:key], new, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: new}

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
        found = floating(args, kwargs)
        wanted = [(key, value) for key, value in found if self.site.argument in (None, key)]
        if not wanted:
            what = "a tensor" if self.site.argument is None else f"a tensor {self.site.argument!r}"
            raise ValueError(f"module {self.site.path!r} was called without {what}, so {self.site.name} has no input")
        return wanted[0]

    def _remember(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        native = self._argument(args, kwargs)[1]
        self.before = [native.clone() if self.site.overwritten else native]

    def _on_delta(self, _module: nn.Module, _args: Any, out: Any) -> Any:
        native = _pick(out, self.site)
        delta = native - self.before.pop()
        new = self._step(delta, keep=False)
        return None if new is None else _replaced(out, self.site.index, _less(native, delta, new))

    def _on_fused_heads(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        assert self.fused is not None
        heads = self.fused.heads(args, kwargs)
        new = self._step(heads, keep=False)
        if new is None:
            return None
        weight: Tensor = module.out_proj.weight  # type: ignore[union-attr, assignment]
        wide = torch.promote_types(heads.dtype, torch.float32)
        lost = (heads.to(wide) - new.to(wide)) @ weight.to(wide).T
        return _replaced(out, 0, _less(out[0], lost, torch.zeros_like(lost)))


def _less(native: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """`native + (new - old)`, in float32 at least.

    Written as `native - (old - new)`, because where they agree that difference is +0.0, and a number less +0.0 keeps
    every bit, -0.0 too. (Choosing by `torch.where` would keep the bits but cut the gradient of an edit that happens to
    change nothing.)
    """
    wide = torch.promote_types(native.dtype, torch.float32)
    return laid_out((native.to(wide) - (old.to(wide) - new.to(wide) + 0.0)).to(native.dtype), native)


def _pick(out: Any, site: Site) -> Tensor:
    if site.index is None and isinstance(out, Tensor):
        return out
    try:
        return out[site.index]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"module {site.path!r} gave {type(out).__name__} without element {site.index!r}, which site {site.name} "
            "reads; call model.forward(batch), with which the sites were found"
        ) from None


def _replaced(out: Any, index: int | str | None, new: Tensor) -> Any:
    """What a module gave, with one tensor exchanged."""
    if index is None:
        return new
    if isinstance(out, Mapping):
        changed = copy.copy(out)
        changed[index] = new  # type: ignore[index]
        return changed
    parts = [new if i == index else part for i, part in enumerate(out)]
    return type(out)._make(parts) if hasattr(out, "_make") else type(out)(parts)


class _Fused:
    """The heads of a `torch.nn.MultiheadAttention`, asked of a twin that has the identity as output projection.

    The twin shares all weights and takes the same path through torch, fused or not. The product with the identity is
    exact: every sum has one term that is not 0.
    """

    def __init__(self, module: nn.MultiheadAttention):
        old = module.out_proj
        same = nn.utils.skip_init(nn.Linear, old.in_features, old.out_features, bias=old.bias is not None,
                                  device=old.weight.device, dtype=old.weight.dtype)  # fmt: skip
        with torch.no_grad():
            nn.init.eye_(same.weight)
            if same.bias is not None:
                same.bias.zero_()
        self.twin = copy.copy(module)
        self.twin._modules = {**module._modules, "out_proj": same.requires_grad_(old.weight.requires_grad)}
        self.known: Tensor | None = None

    def forget(self, _module: nn.Module, _args: Any) -> None:
        """A new forward begins."""
        self.known = None

    def heads(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Outputs of all heads in this forward, side by side."""
        if self.known is None:
            self.known = self.twin.forward(*args, **kwargs)[0]
        return self.known
