"""The framing that an adapter reads off must be what the upstream transform does, measured with ramps."""

import pytest
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import v2

from visae.framing import misplacement, read_transform
from visae.geometry import Framing
from visae.model import load_model

SIZES = [(64, 64), (97, 61), (61, 97), (120, 40), (33, 127)]
NAMES = [
    ("open_clip:ViT-B-32", {}), ("open_clip:ViT-B-16-SigLIP", {}), ("open_clip:ViT-B-32", {"image_size": (160, 224)}),
    ("timm:vit_tiny_patch16_224", {}), ("timm:resnet18", {}), ("timm:convnext_atto", {"image_size": (192, 128)}),
    ("timm:vit_base_patch16_siglip_224", {}), ("timm:mobilenetv3_small_100", {}),
    ("timm:vit_tiny_patch16_224", {"image_size": (96, 160)}),
    ("transformers:clip", {"num_hidden_layers": 1}), ("transformers:dinov2", {"num_hidden_layers": 1}),
    ("transformers:convnext", {}), ("transformers:vit", {"num_hidden_layers": 1, "image_size": 96}),
    ("transformers:siglip", {"num_hidden_layers": 1}),
    ("transformers:dinov3_vit", {"num_hidden_layers": 1, "image_size": (96, 160)}),
    ("visae:tiny-clip", {}), ("visae:tiny-vit", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NAMES, ids=[f"{n} {o.get('image_size', '')}" for n, o in NAMES])
def test_the_upstream_transform_puts_pixels_where_the_framing_says(name, options):
    model = load_model(name, pretrained=name.startswith("visae:"), **options)
    worst = [misplacement(model.transform, model.framing, hw) for hw in SIZES]
    assert max(worst) < 0.5, worst
    batch = model.preprocess([Image.new("RGB", (50, 30)), Image.new("L", (31, 80)), Image.new("RGBA", (64, 64))])
    assert batch.shape == (3, 3, *model.framing.input_hw)
    assert (batch.dtype, batch.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(("steps", "expected"), [
    ([tv.Resize(100), tv.CenterCrop(80)], Framing((80, 80), "shortest", (100, 100))),
    ([tv.Resize((70, 90))], Framing((70, 90), "squash", (70, 90))),
    ([tv.Resize((70, 90)), tv.CenterCrop((60, 80))], Framing((60, 80), "squash", (70, 90))),
    ([v2.Resize(64), v2.CenterCrop((64, 48))], Framing((64, 48), "shortest", (64, 64))),
    ([tv.CenterCrop(50)], Framing((50, 50), "none")),
])  # fmt: skip
def test_transforms_of_torchvision_are_read_as_they_behave(steps, expected):
    whole = tv.Compose([*steps, tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.25,) * 3)])
    reading = read_transform(whole)
    assert reading.framing == expected
    assert (reading.details["mean"], reading.details["std"]) == ([0.5] * 3, [0.25] * 3)
    assert max(misplacement(whole, reading.framing, hw) for hw in SIZES) < 0.5


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(96, 96), (80, 112)])
def test_every_crop_mode_of_timm_is_read_as_it_behaves(mode, size):
    import timm

    transform = timm.data.create_transform((3, *size), is_training=False, crop_mode=mode, crop_pct=0.9)
    framing = read_transform(transform).framing
    assert framing.mode == {"center": "shortest" if size == (96, 96) else "cover"}.get(
        mode, "squash" if mode == "squash" else "fit"
    )
    assert max(misplacement(transform, framing, hw) for hw in SIZES) < 0.5


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(96, 96), (80, 112)])
def test_every_resize_mode_of_open_clip_is_read_as_it_behaves(mode, size):
    from open_clip.transform import image_transform

    transform = image_transform(size, is_train=False, resize_mode=mode)
    assert max(misplacement(transform, read_transform(transform).framing, hw) for hw in SIZES) < 0.5


def test_the_ruler_itself_sees_a_shift_and_a_wrong_size():
    transform = tv.Compose([tv.Resize(100), tv.CenterCrop(80), tv.ToTensor()])
    assert misplacement(transform, Framing((80, 80), "shortest", (110, 110)), (90, 120)) > 1
    assert misplacement(transform, Framing((81, 80), "shortest", (100, 100)), (90, 120)) == float("inf")


@pytest.mark.parametrize(("steps", "message"), [
    ([tv.RandomCrop(10)], "the step RandomCrop"), ([tv.Resize(10)], "no fixed size"),
    ([tv.Resize(10, max_size=20), tv.CenterCrop(10)], "max_size"),
    ([tv.CenterCrop(9), tv.Resize((9, 9))], "step Resize"),
])  # fmt: skip
def test_transforms_that_cannot_be_followed_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        read_transform(tv.Compose(steps))
