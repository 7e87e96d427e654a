"""Adapted models: a native model, how images become its input, and its sites; and the registry of model families."""

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visae.adapted import Adapted
from visae.compiling import refuse_compiled
from visae.discover import Catalogue
from visae.geometry import Framing
from visae.naming import Naming
from visae.registry import Registry, UnknownName
from visae.sites import Site
from visae.trace import leading_kinds, trace

if TYPE_CHECKING:
    from PIL.Image import Image

    from visae.pipelines import AdaptedPipeline

ENTRY_POINTS = "visae.adapters"


@dataclass(eq=False)
class AdaptedModel(Adapted):
    """A native model with everything that visae must know about it; adapters build these.

    Attributes:
        id: name that `load_model` understands, e.g. `timm:vit_base_patch16_224`.
        module: the native model, in eval mode.
        framing: how an image becomes the input.
        preprocessing: what is done to an image, as JSON, for the card.
        transform: brings an RGB image to `[3, H, W]`.
        call: the native forward for a batch of images.
        tower: the part of `module` that sees images (it may be all of it).
        naming: how the family calls its parts.
        prefix: kinds of the tokens that the tower puts in front of the patches; None reads them from its parameters.
    """

    id: str
    module: nn.Module
    framing: Framing
    preprocessing: dict[str, Any]
    transform: Callable[["Image"], Tensor]
    call: Callable[[Tensor], Any]
    tower: nn.Module
    naming: Naming = field(default_factory=Naming)
    prefix: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        refuse_compiled(self.module)
        self.module.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self._values()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next((p.dtype for p in self._values() if p.is_floating_point()), torch.float32)

    def _values(self) -> Iterator[Tensor]:
        yield from self.tower.parameters()
        yield from self.tower.buffers()

    def preprocess(self, images: Sequence["Image"]) -> Tensor:
        """Images of any size and mode as a batch `[n, 3, H, W]` in float32 on the CPU, by the upstream transform."""
        if not len(images):
            raise ValueError("preprocess needs at least one image, got none")
        return torch.stack([self.transform(i if i.mode == "RGB" else i.convert("RGB")) for i in images])

    def forward(self, batch: Tensor) -> Any:
        """The native forward of a batch `[n, 3, H, W]`, which is moved to the model's device and type."""
        if batch.dim() != 4 or tuple(batch.shape[2:]) != tuple(self.framing.input_hw):
            height, width = self.framing.input_hw
            raise ValueError(
                f"{self.id} takes batches [n, 3, {height}, {width}], got {list(batch.shape)}; "
                "model.preprocess(images) makes them, load_model(image_size=...) sets another size"
            )
        return self.call(batch.to(self.device, self.dtype, non_blocking=True))

    @cached_property
    def catalogue(self) -> Catalogue:
        """Sites, found by one traced forward the first time that one is asked for."""
        prefix = leading_kinds(self.tower) if self.prefix is None else self.prefix
        return Catalogue(self.module, trace(self.module, self.forward, self.framing.input_hw, prefix), self.naming)

    def sites(self) -> dict[str, Site]:
        """Sites by alias, in the order in which the model runs them."""
        return dict(self.catalogue.sites)

    def site(self, name: str | Site) -> Site:
        """The site of an alias, of a module path (with or without a suffix), or of a `Site` from a card.

        Raises:
            UnknownName: if the model has no such place.
            ValueError: if the place holds no tokens, or other tokens than the `Site` says.
        """
        return self.catalogue.recall(name) if isinstance(name, Site) else self.catalogue.find(name)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AdaptedModel":
        """Moves the model; its revision stays that of the weights as loaded."""
        if dtype is not None and dtype != self.dtype:
            _ = self.revision
        self.module.to(device=device, dtype=dtype)
        return self


@dataclass(frozen=True)
class Request:
    """What an adapter is asked for: a model by name, or a module to wrap.

    Attributes:
        name: name within the family, e.g. `vit_base_patch16_224`; with `module`, only what to call it.
        module: the module or pipeline that the user already holds; None asks to build the model.
        pretrained: whether to load the family's published weights.
        checkpoint: file with weights to load instead.
        image_size: height and width of the input; None takes the model's own.
        transform: image transform to use instead of the family's.
        options: what else the family understands.
        dtype: type that the weights will have; a family may load them in it.
    """

    name: str
    module: Any = None
    pretrained: bool = True
    checkpoint: str | None = None
    image_size: tuple[int, int] | None = None
    transform: Callable[..., Tensor] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Family:
    """A model family: how its models are built, which there are, and which modules are its own."""

    name: str
    build: "Build"
    names: Callable[[], list[str]]
    package: str | None


FAMILIES: Registry[Family] = Registry("model family")
Build = Callable[[Request], "AdaptedModel | AdaptedPipeline"]


def register_family(
    name: str, *, names: Callable[[], list[str]] = list, package: str | None = None
) -> Callable[[Build], Build]:
    """Decorator that files a function, which builds an `AdaptedModel` from a `Request`, as a model family.

    Args:
        name: what stands before the colon in `load_model("timm:...")`.
        names: lists the models of the family.
        package: top package of the classes that `wrap` hands to this family.
    """

    def add(build: Build) -> Build:
        FAMILIES.register(name)(Family(name, build, names, package))
        return build

    return add


def families(foreign: bool = True) -> Registry[Family]:
    """All families: visae's own and, with `foreign`, those that other packages bring by entry point."""
    home = importlib.import_module(ENTRY_POINTS)
    for info in pkgutil.iter_modules(home.__path__):
        importlib.import_module(f"{ENTRY_POINTS}.{info.name}")
    for point in entry_points(group=ENTRY_POINTS) if foreign else ():
        if point.name not in FAMILIES:
            point.load()
    return FAMILIES


def _family(name: str) -> Family:
    return families(foreign=False)[name] if name in families(foreign=False) else families()[name]


def load_model(
    name: str,
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str | None = None,
    **options: Any,
) -> "AdaptedModel | AdaptedPipeline":
    """Builds a model by name, e.g. `timm:vit_base_patch16_224` or `diffusers:stabilityai/sdxl-turbo`.

    Args:
        name: family, colon, name within the family; `models()` lists both.
        pretrained: load the published weights (may need the network); False gives random weights.
        image_size: side, or height and width, of the input where it shall differ from the model's own.
        device: where to put the model.
        dtype: type of the weights.
        checkpoint: local file with weights (safetensors, or a torch file of plain tensors) to load instead.
        options: what else the family understands.

    Raises:
        UnknownName: if there is no such family or model; the message suggests names.
        ValueError: if the weights cannot be had.
    """
    family, colon, rest = name.partition(":")
    if not colon:
        raise UnknownName("model", name, [f"{f}:..." for f in families()], "Write family:name; see `visae models`.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    request = Request(rest, None, pretrained and checkpoint is None, checkpoint, size, options=options, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same in every process, so a stopped run finds its model again
        built = _family(family).build(request)
    return built.to(device, dtype)


def wrap(
    module: Any,
    *,
    family: str | None = None,
    name: str | None = None,
    transform: Callable[..., Tensor] | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> "AdaptedModel | AdaptedPipeline":
    """Adapts a module or pipeline that the caller already holds; it is put into eval mode and otherwise left as it is.

    Args:
        module: a model of open_clip, timm or transformers, a pipeline of diffusers, or any module that takes images
            `[n, 3, H, W]`.
        family: of the model; None tells it from the module's class.
        name: what to call the model; None takes its class's name.
        transform: image transform to use instead of the family's.
        image_size: side, or height and width, of the input where the model does not say it.
        options: what else the family understands (for other modules: `prefix`, kinds of leading tokens, and `framing`).
    """
    if isinstance(module, nn.Module):
        refuse_compiled(module)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if family is None:
        packages = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
        family = next((f.name for f in families().values() if f.package in packages), "module")
    request = Request(name or type(module).__name__, module, False, None, size, transform, options)
    return _family(family).build(request)


def vision(model: "AdaptedModel | AdaptedPipeline") -> AdaptedModel:
    """The same model, for a job that needs one that sees images.

    Raises:
        ValueError: if it is a pipeline that makes them.
    """
    if not isinstance(model, AdaptedModel):
        raise ValueError(f"{model.id} makes images; this job needs a model that sees them, see `visae models`")
    return model


def drawing(model: Any) -> "AdaptedPipeline":
    """The same model, for a job that needs a pipeline that makes images; one of diffusers is adapted.

    Raises:
        ValueError: if it is a model that sees them.
    """
    from visae.pipelines import AdaptedPipeline

    adapted = model if isinstance(model, AdaptedModel | AdaptedPipeline) else wrap(model)
    if isinstance(adapted, AdaptedModel):
        raise ValueError(f"{adapted.id} sees images and makes none; this job needs a pipeline such as visae:tiny-sd")
    return adapted


def models(pattern: str = "*", family: str | None = None) -> list[str]:
    """Names that `load_model` understands, as `family:name`, that match a shell pattern."""
    chosen = [_family(family)] if family else list(families().values())
    listed = [f"{one.name}:{name}" for one in chosen for name in one.names()]
    return [name for name in listed if any(fnmatch.fnmatch(n, pattern) for n in (name, name.partition(":")[2]))]
