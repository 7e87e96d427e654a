"""Loading by name, wrapping held modules, listing, weights from files, other packages' families, errors."""

import sys
import types
from importlib.metadata import EntryPoint

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as tvm
from torchvision import transforms as tv

import visae.model
from visae.check import check_geometry
from visae.model import AdaptedModel, Request, load_model, models, register_family, wrap
from visae.registry import UnknownName
from visae.sites import rows
from visae.taps import tap


@pytest.fixture(scope="module")
def tiny() -> AdaptedModel:
    torch.manual_seed(0)
    return load_model("timm:vit_tiny_patch16_224", pretrained=False, depth=2)


@pytest.mark.parametrize(("name", "suggestion"), [
    ("timm:vit_base_patch16_242", "vit_base_patch16_224"), ("open_clip:ViT-B-33", "ViT-B-32"),
    ("open_clip:ViT-B-32/laion2b_s34b_b79", "laion2b_s34b_b79k"), ("transformers:dinov", "dinov2"),
    ("visae:tiny-clp", "tiny-clip"), ("tim:resnet50", "timm"),
])  # fmt: skip
def test_a_misspelt_name_is_answered_with_the_right_one(name, suggestion):
    with pytest.raises(UnknownName, match=f"Did you mean .*{suggestion}"):
        load_model(name, pretrained=False)


def test_a_name_without_family_says_how_names_are_written():
    with pytest.raises(UnknownName, match="Write family:name"):
        load_model("vit_base_patch16_224")


def test_published_weights_that_cannot_be_had_name_the_cure(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"Network is unreachable.*pretrained=False.*checkpoint=FILE"):
        load_model("timm:resnet18")
    with pytest.raises(ValueError, match="publishes no weights for ViT-S-16"):
        load_model("open_clip:ViT-S-16")
    with pytest.raises(ValueError, match="is a model type: pass pretrained=False"):
        load_model("transformers:clip")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_local_file_and_tell_one_model_from_another(tiny, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {k: v + 0.01 for k, v in tiny.module.state_dict().items()}
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    loaded = load_model("timm:vit_tiny_patch16_224", checkpoint=str(path), depth=2)
    assert all(torch.equal(v, state[k]) for k, v in loaded.module.state_dict().items())
    assert loaded.revision != tiny.revision
    assert load_model("timm:vit_tiny_patch16_224", checkpoint=str(path), depth=2).revision == loaded.revision
    with pytest.raises(ValueError, match=r"does not hold the weights of VisionTransformer: 12 missing"):
        load_model("timm:vit_tiny_patch16_224", checkpoint=str(path), depth=3)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_model("timm:resnet18", checkpoint=str(tmp_path / "none.pt"))


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_model("timm:resnet18", checkpoint=str(tmp_path / "evil.pt"))


def test_the_revision_is_of_the_weights_as_loaded_whatever_the_type(tiny):
    half = load_model("timm:vit_tiny_patch16_224", pretrained=False, depth=2, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    before = tiny.revision
    assert wrap(tiny.module).to(dtype=torch.float64).revision == before
    tiny.to(dtype=torch.float32)


@pytest.mark.parametrize(("module", "options", "family", "site"), [
    (lambda: timm.create_model("vit_tiny_patch16_224", depth=2), {}, "timm", "blocks.1"),
    (lambda: timm.create_model("resnet18", num_classes=0), {}, "timm", "blocks.-1"),
    (lambda: tvm.vit_b_16(weights=None), {"image_size": 224}, "module", "blocks.1"),
    (lambda: tvm.resnet18(weights=None), {"image_size": (96, 160)}, "module", "layer3"),
    (lambda: tvm.densenet121(weights=None), {"image_size": 128}, "module", "features.denseblock3"),
    (lambda: tvm.swin_t(weights=None), {"image_size": 128}, "module", "features.3"),
], ids=["timm vit", "timm resnet", "torchvision vit", "torchvision resnet", "densenet", "swin"])  # fmt: skip
def test_a_module_that_the_user_holds_is_recognised_and_read(module, options, family, site):
    torch.manual_seed(0)
    held = module()
    model = wrap(held, **options)
    assert model.module is held
    assert model.id.startswith(f"{family}:")
    assert not held.training
    assert check_geometry(model, site, positions=3).share == 1


def test_a_site_that_answers_to_nothing_is_not_called_misplaced():
    block = timm.create_model("resnet18", num_classes=0)
    model = wrap(block)
    torch.nn.init.zeros_(block.layer1[0].bn2.weight)
    check = check_geometry(model, "blocks.0.delta", positions=2)
    assert check.silent
    assert not check.ok
    assert check_geometry(model, "blocks.0", positions=2).ok


def test_modules_of_transformers_and_open_clip_are_recognised_and_only_their_eyes_used():
    import open_clip
    import transformers as hf

    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vision = {**small, "image_size": 64, "patch_size": 16}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=small, vision_config=vision))
    classifier = hf.ViTForImageClassification(hf.ViTConfig(**vision))
    mae = hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**vision, mask_ratio=0.0, decoder_num_hidden_layers=1))
    towers = {"transformers": [clip, classifier, mae]}
    config = {"width": 48, "layers": 2, "image_size": 64, "patch_size": 16, "head_width": 12}
    text = {"context_length": 8, "vocab_size": 20, "width": 48, "heads": 4, "layers": 1}
    towers["open_clip"] = [open_clip.model.CLIP(32, config, text), open_clip.model.CLIP(32, config, text).visual]
    for family, held in towers.items():
        for module in held:
            model = wrap(module)
            assert model.id == f"{family}:{type(module).__name__}"
            assert (model.site("blocks.1").d, model.site("blocks.1").grid) == (48, (4, 4))
            assert check_geometry(model, "blocks.1", positions=3).share == 1


def test_masked_patches_of_a_held_mae_are_refused():
    import transformers as hf

    with pytest.raises(ValueError, match="mask_ratio = 0"):
        wrap(hf.ViTMAEModel(hf.ViTMAEConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4)))


def test_a_plain_module_must_say_how_large_its_images_are():
    with pytest.raises(ValueError, match="pass image_size=, or transform="):
        wrap(nn.Conv2d(3, 4, 8))
    model = wrap(nn.Conv2d(3, 4, 8, 8), transform=tv.Compose([tv.Resize((32, 48)), tv.ToTensor()]))
    assert model.site("").grid == (4, 6)
    with pytest.raises(ValueError, match="does not understand colour; it takes prefix"):
        wrap(nn.Conv2d(3, 4, 8), image_size=32, colour=1)


@pytest.mark.parametrize(("name", "size", "grid", "stride"), [
    ("timm:vit_tiny_patch16_224", (96, 160), (6, 10), 16), ("timm:resnet18", (96, 160), (3, 5), 32),
    ("open_clip:ViT-B-32", (160, 96), (5, 3), 32), ("transformers:dinov2", (70, 112), (5, 8), 14),
])  # fmt: skip
def test_inputs_that_are_not_square_have_a_grid_that_is_not_square(name, size, grid, stride):
    torch.manual_seed(0)
    model = load_model(name, pretrained=False, image_size=size)
    site = model.site("final")
    assert (model.framing.input_hw, site.grid, site.stride) == (size, grid, (stride, stride))
    assert check_geometry(model, "blocks.-1", (150, 131), positions=3).share == 1
    with pytest.raises(ValueError, match=rf"takes batches \[n, 3, {size[0]}, {size[1]}\], got"):
        model.forward(torch.zeros(1, 3, 16, 16))


def test_tokens_that_left_the_order_of_the_picture_are_refused():
    """Hiera sorts its tokens by mask unit until the last stage."""
    torch.manual_seed(0)
    model = load_model("timm:hiera_tiny_224", pretrained=False)
    with pytest.raises(ValueError, match="not in the order of the picture"):
        model.site("blocks.0")
    assert model.site("final").grid == (7, 7)


def test_windows_of_attention_are_refused_where_a_window_is_not_the_picture():
    model = load_model("timm:swin_tiny_patch4_window7_224", pretrained=False)
    with pytest.raises(ValueError, match=r"\(128, 49, 96\) for a batch of 2"):
        model.site("blocks.0.attn_out")
    assert "blocks.-1.attn_out" not in model.sites()
    assert model.site("blocks.-1.attn_out").grid == (7, 7)


@pytest.mark.parametrize(("name", "path", "grid", "d"), [
    ("timm:densenet121", "features.denseblock3", (14, 14), 1024), ("timm:resnet18", "layer3", (14, 14), 256),
    ("timm:efficientnet_b0", "conv_head", (7, 7), 1280), ("timm:efficientnet_b0", "blocks.4.1", (14, 14), 112),
    ("timm:swin_tiny_patch4_window7_224", "layers.1", (28, 28), 192),
])  # fmt: skip
def test_any_module_path_that_gives_a_feature_map_is_a_site(name, path, grid, d):
    site = load_model(name, pretrained=False).site(path)
    assert (site.grid, site.d) == (grid, d)


def test_strides_and_first_centres_follow_kernels_and_padding():
    """Closed form for ResNet: five steps of stride 2 whose padding centres the first cell on pixel 0."""
    site = load_model("timm:resnet18", pretrained=False).site("final")
    assert (site.stride, site.offset, site.reach) == ((32, 32), (-15.5, -15.5), (0, 0, 224, 224))
    same = load_model("timm:tf_efficientnet_b0", pretrained=False).site("final")  # pads after, not before
    assert (same.stride, same.offset) == ((32, 32), (15.5, 15.5))
    assert load_model("timm:convnext_atto", pretrained=False).site("final").reach is None


def test_the_table_of_sites_names_path_kind_shape_and_tokens(tiny):
    table = {row["name"]: row for row in rows(tiny.sites())}
    assert table["blocks.1.head.0-2"]["kind"] == "head"
    assert table["final"] == {
        "name": "final", "path": "norm", "kind": "final", "native": "NLC", "shape": "[n, 197, 192]",
        "tokens": "1 cls + 14 x 14 patch",
    }  # fmt: skip
    assert table["pooled"]["tokens"] == "1 pooled"


def test_models_are_listed_by_pattern_and_family():
    assert "timm:vit_base_patch14_dinov2" in models("vit_*dinov2*", "timm")
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k" in models("ViT-B-32/*")
    assert models(family="visae") == ["visae:tiny-clip", "visae:tiny-vit", "visae:tiny-sd", "visae:tiny-dit"]
    assert {"transformers:clip", "transformers:dinov3_vit", "transformers:siglip2"} <= set(models("transformers:*"))
    assert len(models()) > 1500


def test_other_packages_add_families_by_entry_point(monkeypatch):
    other = types.ModuleType("other_package")

    def load() -> None:
        @register_family("other", names=lambda: ["one"])
        def build(request: Request) -> AdaptedModel:
            module = nn.Conv2d(3, 4, 8, 8)
            return wrap(module, family="module", name=request.name, image_size=16)

    other.__getattr__ = lambda name: load() if name == "plugin" else None  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "other_package", other)
    point = EntryPoint("other", "other_package:plugin", "visae.adapters")
    monkeypatch.setattr(visae.model, "entry_points", lambda group: [point] if group == "visae.adapters" else [])
    monkeypatch.setattr(visae.model.FAMILIES, "_things", dict(visae.model.FAMILIES._things))
    assert load_model("other:one").site("").grid == (2, 2)
    assert models(family="other") == ["other:one"]


def test_taps_and_the_first_look_for_sites_leave_the_random_state_alone():
    model = load_model("open_clip:ViT-B-32", pretrained=False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad(), tap(model, "blocks.0.heads"):
        model.forward(torch.zeros(1, 3, 224, 224))
    assert torch.equal(torch.rand(3), expected)
