"""open_clip: every model that the library builds, by name with an optional tag, and modules of its classes.

The whole model is kept; images go through its `visual` tower. Without weights, images are prepared as for the first
published weights of that architecture.
"""

from typing import Any

from torch import nn

from visae.adapters.base import fetching, from_transform, quiet
from visae.model import AdaptedModel, Request, register_family
from visae.naming import Naming
from visae.registry import UnknownName

RASTER = ("VisionTransformer", "Eva", "VisionTransformerDistilled")


def names() -> list[str]:
    """Architectures of open_clip, and each with its weight tags."""
    import open_clip

    return open_clip.list_models() + [f"{name}/{tag}" for name, tag in open_clip.list_pretrained()]


@register_family("open_clip", names=names, package="open_clip")
def open_clip_model(request: Request) -> AdaptedModel:
    """An open_clip model, `ARCHITECTURE` or `ARCHITECTURE/TAG`; options go to `open_clip.create_model`."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    module = _create(request) if request.module is None else request.module
    tower = getattr(module, "visual", module)
    prepare = merge_preprocess_dict(PreprocessCfg(), getattr(tower, "preprocess_cfg", None) or _old_attributes(tower))
    if request.module is not None and request.image_size is not None:
        prepare["size"] = request.image_size
    transform = image_transform_v2(PreprocessCfg(**prepare), is_train=False)
    pooled = next(path for path, part in module.named_modules() if part is tower)
    index = 0 if getattr(tower, "output_tokens", False) else None
    naming = Naming(raster=RASTER, pooled=(pooled, index))
    return from_transform(request, "open_clip", module, transform, tower, tower, naming=naming)


def _old_attributes(tower: nn.Module) -> dict[str, Any]:
    """Preprocessing of a tower that open_clip's factory has not stamped."""
    keys = {"size": "image_size", "mean": "image_mean", "std": "image_std"}
    return {key: getattr(tower, name) for key, name in keys.items() if getattr(tower, name, None) is not None}


def _create(request: Request) -> nn.Module:
    import open_clip

    if request.name.startswith(("hf-hub:", "local-dir:")):
        with fetching(f"open_clip:{request.name}"):
            return open_clip.create_model(request.name, force_image_size=request.image_size, **request.options)
    architecture, _, tag = request.name.partition("/")
    if architecture not in open_clip.list_models():
        raise UnknownName("open_clip architecture", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise UnknownName(f"weights of {architecture}", tag, tags)
    tag = tag or (tags[0] if tags else "")
    if request.pretrained and not tag:
        raise ValueError(f"open_clip publishes no weights for {architecture}: pass pretrained=False or checkpoint=FILE")
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    prepare = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode") if published.get(key)}
    options: dict[str, Any] = {
        "force_image_size": request.image_size, "force_preprocess_cfg": prepare,
        "force_quick_gelu": bool(published.get("quick_gelu")), "pretrained_text": False, **request.options,
    }  # fmt: skip
    if not request.pretrained:
        try:
            with quiet():
                return open_clip.create_model(architecture, **options)
        except OSError as error:  # the text tower is one of transformers, and even its configuration is fetched
            raise ValueError(
                f"open_clip:{architecture} reads the configuration of its text tower from the hub, which "
                f"cannot be reached ({str(error).splitlines()[0]}); choose another architecture, or build "
                "the tower yourself and pass it to visae.wrap"
            ) from error
    with fetching(f"open_clip:{architecture}/{tag}"):
        return open_clip.create_model(architecture, pretrained=tag, **options)
