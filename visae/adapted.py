"""What adapted models have in common: the hash of their weights, where their tokens lie, whether they can be tapped."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from visae.geometry import Framing, Geometry
from visae.sites import Site


class Adapted(ABC):
    """A native model under the names that visae uses; vision models and pipelines build on it.

    Attributes:
        id: name that `load_model` understands.
        framing: how an image becomes the input.
    """

    id: str
    framing: Framing

    if TYPE_CHECKING:

        @property
        def module(self) -> nn.Module:
            """The module that site paths start from."""

    @abstractmethod
    def sites(self) -> dict[str, Site]:
        """Sites by alias, in the order in which the model runs them."""

    @abstractmethod
    def site(self, name: str | Site) -> Site:
        """The site of a name, or this model's own at the place of a `Site` from a card."""

    @cached_property
    def revision(self) -> str:
        """That of all weights as they were loaded, see `revision_of`."""
        return revision_of(self.module)

    def geometry(self, site: str | Site) -> Geometry:
        """Which pixels the tokens of a site saw.

        Raises:
            ValueError: if the site's tokens have no place on the image.
        """
        found = self.site(site)
        if found.grid is None or found.stride is None:
            raise ValueError(
                f"site {found.name!r} has {', '.join(sorted(set(found.token_kinds)))} tokens only, which "
                "have no place on the image; choose a site with patch tokens"
            )
        return Geometry(self.framing, found.grid, found.stride, found.offset, found.prefix, found.reach)


def revision_of(module: nn.Module) -> str:
    """First 16 hex digits of a hash over names, types, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(_weights(module)):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all weights; those that accelerate keeps elsewhere (offload) are asked of its hooks."""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_meta:
            owner, _, leaf = name.rpartition(".")
            hook = getattr(module.get_submodule(owner), "_hf_hook", None)
            value = hook.weights_map[leaf]  # type: ignore[union-attr]
        if isinstance(value, Tensor):
            yield name, value
