"""Every law of taps and geometry on every model of one list, at real size; a new line is tested by every test here."""

import gc
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch

from visae.check import check_geometry
from visae.model import AdaptedModel, load_model
from visae.registry import UnknownName
from visae.taps import tap
from visae.tokens import TokenPolicy
from visae.world.models import config as stored_config

CLIP_MEAN, IMAGENET_MEAN, HALF = (0.48145466, 0.4578275, 0.40821073), (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Expected:
    """A model at its real size and what its authors publish about it (none of which is told to visae)."""

    name: str
    d: int
    grid: tuple[int, int]
    blocks: int
    mean: tuple[float, float, float]
    prefix: tuple[str, ...] = ()
    stride: float = 16
    pooled: int | None = None
    heads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


REG4 = ("cls", "reg", "reg", "reg", "reg")
TINY_CLIP, VIT = stored_config("tiny-clip")["model_cfg"], stored_config("tiny-vit")["model_args"]
CLIP = TINY_CLIP["vision_cfg"]
MODELS = [
    Expected("open_clip:ViT-B-32", 768, (7, 7), 12, CLIP_MEAN, ("cls",), 32, 512, 12),
    Expected("open_clip:ViT-B-16", 768, (14, 14), 12, CLIP_MEAN, ("cls",), 16, 512, 12),
    Expected("open_clip:ViT-L-14", 1024, (16, 16), 24, CLIP_MEAN, ("cls",), 14, 768, 16),
    Expected("open_clip:ViT-B-16-SigLIP", 768, (14, 14), 12, HALF, (), 16, 768, 12),
    Expected("open_clip:RN50", 2048, (7, 7), 16, CLIP_MEAN, (), 32, 1024),
    Expected("open_clip:convnext_base", 1024, (7, 7), 36, CLIP_MEAN, (), 32, 512),
    Expected("timm:vit_base_patch16_224", 768, (14, 14), 12, HALF, ("cls",), 16, 768, 12),
    Expected("timm:vit_base_patch14_dinov2", 768, (16, 16), 12, IMAGENET_MEAN, ("cls",), 14, 768, 12,
             {"image_size": 224}),
    Expected("timm:vit_small_patch14_reg4_dinov2", 384, (37, 37), 12, IMAGENET_MEAN, REG4, 14, 384, 6),
    Expected("timm:vit_small_patch16_dinov3", 384, (16, 16), 12, IMAGENET_MEAN, REG4, 16, 384, 6),
    Expected("timm:vit_base_patch16_siglip_224", 768, (14, 14), 12, HALF, (), 16, 768, 12),
    Expected("timm:eva02_base_patch14_224", 768, (16, 16), 12, CLIP_MEAN, ("cls",), 14, 768, 12),
    Expected("timm:beit_base_patch16_224", 768, (14, 14), 12, HALF, ("cls",), 16, 768, 12),
    Expected("timm:vit_base_patch16_224.mae", 768, (14, 14), 12, IMAGENET_MEAN, ("cls",), 16, 768, 12),
    Expected("timm:deit3_small_patch16_224", 384, (14, 14), 12, IMAGENET_MEAN, ("cls",), 16, 384, 6),
    Expected("timm:convnext_tiny", 768, (7, 7), 18, IMAGENET_MEAN, (), 32, 768),
    Expected("timm:swin_tiny_patch4_window7_224", 768, (7, 7), 12, IMAGENET_MEAN, (), 32, 768, 24),
    Expected("timm:efficientnet_b0", 320, (7, 7), 16, IMAGENET_MEAN, (), 32, 1280),
    Expected("timm:resnet50", 2048, (7, 7), 16, IMAGENET_MEAN, (), 32, 2048),
    Expected("transformers:clip", 768, (7, 7), 12, CLIP_MEAN, ("cls",), 32, 768, 12),
    Expected("transformers:siglip2", 768, (16, 16), 12, HALF, (), 16, 768, 12),
    Expected("transformers:dinov2", 768, (16, 16), 12, IMAGENET_MEAN, ("cls",), 14, 768, 12),
    Expected("transformers:dinov2_with_registers", 768, (16, 16), 12, IMAGENET_MEAN, REG4, 14, 768, 12,
             {"patch_size": 14}),
    Expected("transformers:dinov3_vit", 384, (14, 14), 12, IMAGENET_MEAN, REG4, 16, 384, 6,
             {"num_register_tokens": 4}),
    Expected("transformers:vit", 768, (14, 14), 12, HALF, ("cls",), 16, 768, 12),
    Expected("transformers:vit_mae", 768, (14, 14), 12, HALF, ("cls",), 16, None, 12),
    Expected("visae:tiny-clip", CLIP["width"], (8, 8), CLIP["layers"], HALF, ("cls",), 8, TINY_CLIP["embed_dim"],
             CLIP["width"] // CLIP["head_width"]),
    Expected("visae:tiny-vit", VIT["embed_dim"], (8, 8), VIT["depth"], HALF, REG4, 8, VIT["embed_dim"],
             VIT["num_heads"]),
]  # fmt: skip


@dataclass
class Case:
    """A model, and what one plain and one tapped forward of it brought."""

    expected: Expected
    model: AdaptedModel

    @cached_property
    def batch(self) -> torch.Tensor:
        return torch.randn(1, 3, *self.model.framing.input_hw, generator=torch.Generator().manual_seed(1))

    @cached_property
    def plain(self) -> Any:
        with torch.no_grad():
            return self.model.forward(self.batch)

    @cached_property
    def read(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Output and activations of a forward in which every site is tapped."""
        with torch.no_grad(), tap(self.model, *self.model.sites()) as taken:
            return self.model.forward(self.batch), taken

    @property
    def last(self) -> str:
        """Name of the last block that has patch tokens."""
        sites = self.model.sites().items()
        return [name for name, s in sites if s.kind == "output" and name.count(".") == 1 and s.grid][-1]


def pytest_generate_tests(metafunc):
    """Each class takes the models of its family, so that families can be tested side by side."""
    if "case" in metafunc.fixturenames:
        mine = [m for m in MODELS if m.name.startswith(metafunc.cls.family)]
        metafunc.parametrize("case", mine, indirect=True, scope="class", ids=[m.name for m in mine])


@pytest.fixture(scope="class")
def case(request):
    """One model in memory at a time."""
    expected: Expected = request.param
    torch.manual_seed(0)
    case = Case(expected, load_model(expected.name, pretrained=expected.name.startswith("visae:"), **expected.options))
    yield case
    vars(case).clear()
    gc.collect()


def flat(out: Any) -> list[torch.Tensor]:
    """Every tensor of a model's output."""
    if isinstance(out, torch.Tensor):
        return [out]
    values = out.values() if hasattr(out, "values") else out
    return [v for v in values if isinstance(v, torch.Tensor)]


def same_bits(a: Any, b: Any) -> bool:
    pairs = list(zip(flat(a), flat(b), strict=True))
    return bool(pairs) and all(torch.equal(_bits(p), _bits(q)) for p, q in pairs)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def n_hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def anew(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in other memory, laid out afresh."""
    return x.clone(memory_format=torch.contiguous_format)


class Laws:
    """What must hold for every model."""

    def test_dimensions_tokens_grid_and_statistics_are_read_from_the_model(self, case):
        expected, model = case.expected, case.model
        site = model.site(case.last)
        geometry = model.geometry(site)
        assert (site.d, site.grid, site.prefix) == (expected.d, expected.grid, expected.prefix)
        assert site.stride == (expected.stride, expected.stride)
        assert case.last == f"blocks.{expected.blocks - 1}"
        assert geometry.n_tokens == site.n_tokens == len(expected.prefix) + expected.grid[0] * expected.grid[1]
        assert model.preprocessing["mean"] == pytest.approx(expected.mean)
        assert ("pooled" in model.sites()) == (expected.pooled is not None)
        if expected.pooled:
            assert model.site("pooled").d == expected.pooled
            assert model.site("pooled").token_kinds == ("pooled",)
        heads = model.sites().get(f"{case.last}.heads")
        assert (heads.n_heads if heads else None) == expected.heads
        assert model.site("final").grid == expected.grid

    def test_reading_every_site_at_once_leaves_every_bit_of_the_output(self, case):
        tapped, taken = case.read
        assert same_bits(case.plain, tapped)
        assert all(taken[n].shape == (1, s.n_tokens, s.d) for n, s in case.model.sites().items())
        assert n_hooks(case.model.module) == 0

    def test_rewriting_every_site_by_itself_leaves_every_bit_of_the_output(self, case):
        with torch.no_grad(), tap(case.model, *case.model.sites(), rewrite=anew):
            rewritten = case.model.forward(case.batch)
        assert same_bits(case.plain, rewritten)

    @pytest.mark.parametrize("kind", ["output", "input", "delta", "head"])
    def test_a_rewrite_of_each_kind_of_site_reaches_what_comes_after(self, case, kind):
        names = [n for n, s in case.model.sites().items() if s.kind == kind and n.startswith("blocks.")]
        for name in names[-1:]:  # convolutional blocks have no heads
            change = tap(case.model, name, rewrite=lambda x: x * 1.5 + 1.0)
            with torch.no_grad(), tap(case.model, "final") as after, change:
                case.model.forward(case.batch)
            assert not torch.equal(case.read[1]["final"], after["final"]), name

    def test_parts_of_a_block_add_up_as_the_model_adds_them(self, case):
        name, taken = case.last, case.read[1]
        if f"{name}.delta" in taken:
            torch.testing.assert_close(taken[f"{name}.delta"], taken[name] - taken[f"{name}.input"])
        if case.expected.heads:
            heads = [taken[f"{name}.head.{j}"] for j in range(case.expected.heads)]
            assert torch.equal(torch.cat(heads, -1), taken[f"{name}.heads"])
            module = case.model.module.get_submodule(case.model.site(f"{name}.heads").path)
            with torch.no_grad():
                product = getattr(module, "out_proj", module)(taken[f"{name}.heads"])
            torch.testing.assert_close(product, taken[f"{name}.attn_out"], rtol=1e-4, atol=1e-5)

    def test_no_hook_is_left_after_a_wrong_site_or_an_exception_inside(self, case):
        model, every = case.model, list(case.model.sites())
        with pytest.raises(UnknownName, match="blocks"), tap(model, *every, "blocks.nowhere"):
            pass
        with pytest.raises(ZeroDivisionError), tap(model, *every):
            raise ZeroDivisionError
        bad = tap(model, *every, rewrite=lambda x: x[:, 1:])
        with pytest.raises(ValueError, match="must return"), torch.no_grad(), bad:
            model.forward(case.batch)
        assert n_hooks(model.module) == 0

    @pytest.mark.parametrize("image_hw", [None, (301, 190), (77, 160)], ids=["wide", "tall", "small"])
    def test_a_planted_square_lights_its_own_token_through_resize_and_crop(self, case, image_hw):
        trained = case.expected.name.startswith("visae:")  # learnt attention carries what a noise image shows elsewhere
        check = check_geometry(case.model, "blocks.0" if trained else case.last, image_hw, 2 if image_hw is None else 1)
        assert check.share == 1, check

    def test_class_and_register_tokens_are_never_counted_as_patches(self, case):
        """Before the first block, tokens in front of the patches have seen no image; every patch has."""
        site = case.model.site("blocks.0.input")
        policy = TokenPolicy(kinds=("patch",))
        assert policy.candidates(site.token_kinds).tolist() == list(range(len(site.prefix), site.n_tokens))
        with torch.no_grad(), tap(case.model, site) as other:
            case.model.forward(case.batch.flip(-1) + 1)
        same = (case.read[1][site.name][0] == other[site.name][0]).all(dim=-1)
        assert same.nonzero()[:, 0].tolist() == list(range(len(case.expected.prefix)))


class TestOpenClip(Laws):
    family = "open_clip:"


class TestTimm(Laws):
    family = "timm:"


class TestTransformers(Laws):
    family = "transformers:"


class TestShipped(Laws):
    family = "visae:"
