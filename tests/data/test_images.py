"""Images of every mode and every kind of damage."""

import io

import numpy as np
import pytest
from PIL import Image

from visae.data import UnreadableImage, load_data, read_image
from visae.data.images import problem

RAMP = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (16, 1))


def centre(image: Image.Image) -> tuple[int, int, int]:
    return image.getpixel((image.width // 2, image.height // 2))


def test_grey_and_sixteen_bit_images_keep_their_full_range(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.float32) * 257).save(tmp_path / "large_float.tif")
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path)
        assert image.mode == "RGB", path
        assert np.abs(np.asarray(image)[..., 1].astype(int) - RAMP).max() <= 1, path


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    assert centre(read_image(tmp_path / "dark.png")) == (1, 1, 1)


def test_transparency_is_laid_over_white(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    rgb = Image.new("RGB", (8, 8), (1, 2, 3))
    rgb.save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("clear", "la", "palette", "key"):
        assert centre(read_image(tmp_path / f"{name}.png")) == (255, 255, 255), name
    assert centre(read_image(tmp_path / "half.png")) == (127, 127, 127)


def test_palette_cmyk_one_bit_and_animation(tmp_path):
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 0] * 3 + [10, 200, 30] + [0, 0, 0] * 252)
    palette.save(tmp_path / "palette.png")
    assert centre(read_image(tmp_path / "palette.png")) == (10, 200, 30)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red, green, blue = centre(read_image(tmp_path / "cmyk.jpg"))
    assert red > 200
    assert max(green, blue) < 60
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert centre(read_image(tmp_path / "bit.png")) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert centre(read_image(tmp_path / "moving.gif")) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_image_lying_on_its_side_is_turned_upright(tmp_path, mode):
    image = Image.new(mode, (40, 20))
    image.paste(image.getpixel((0, 0)), (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.jpg", exif=exif)
    turned = read_image(tmp_path / "side.jpg")
    assert turned.size == (20, 40)
    assert turned.getexif().get(0x0112) is None


def damaged(folder):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    data = buffer.getvalue()
    (folder / "whole.jpg").write_bytes(data)
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    return folder


def test_every_kind_of_damage_is_named_with_its_reason(tmp_path):
    damaged(tmp_path)
    expected = {
        "truncated.jpg": "truncated",
        "empty.png": "the file is empty",
        "text.png": "no image format that Pillow reads",
        "phone.heic": "does not read HEIC: convert",
        "gone.png": "there is no such file",
    }
    for name, reason in expected.items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            read_image(tmp_path / name, key=name)
        assert caught.value.key == name
    assert problem(tmp_path / "truncated.jpg", "none") is None
    assert problem(tmp_path / "text.png", "header") is not None
    assert problem(tmp_path / "truncated.jpg", "full") is not None
    assert problem(tmp_path / "whole.jpg", "full") is None


def test_a_folder_can_leave_out_what_it_cannot_read(tmp_path):
    damaged(tmp_path)
    assert len(load_data(tmp_path)) == 5
    header = load_data(f"{tmp_path}?check=header")
    assert [record.key for record in header.records] == ["truncated.jpg", "whole.jpg"]
    full = load_data(tmp_path, check="full")
    assert [record.key for record in full.records] == ["whole.jpg"]
    assert {key for key, _ in full.skipped} == {"truncated.jpg", "empty.png", "text.png", "phone.heic"}
    assert full[0].image.size == (64, 64)
