"""Image files: one function reads them all, whatever their size and mode, and names those that it cannot read."""

import warnings
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Check = Literal["none", "header", "full"]

_NOT_IMAGES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF", "EPS", "WMF", "FITS"}
_NEVER_READ = {".heic", ".heif", ".dcm", ".jxl", ".raw", ".cr2", ".nef", ".dng"}
_CURES = {
    ".heic": "Pillow does not read HEIC: convert the file to JPEG or PNG",
    ".heif": "Pillow does not read HEIF: convert the file to JPEG or PNG",
    ".dcm": "DICOM files need windowing: export them as PNG first",
}


class UnreadableImage(OSError):
    """A file that should be an image but cannot be read.

    Attributes:
        key: the file, as its data set names it.
        reason: what is wrong.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key} cannot be read as an image: {reason}")
        self.key, self.reason = key, reason


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case extensions of files that are taken for images, with those of formats that can only be named."""
    known = {
        ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT_IMAGES
    }
    return frozenset(known | _NEVER_READ)


def read_image(path: str | Path, key: str | None = None) -> Image.Image:
    """An image file as RGB, upright.

    The first frame of an animation; transparency over white; 16 bits (and floats) scaled to 8, not clipped; palettes,
    grey, CMYK and all else that Pillow converts; turned as its EXIF tag says.

    Args:
        path: the file.
        key: how errors name it; the path by default.

    Raises:
        UnreadableImage: if it cannot be read, with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes about odd metadata; what counts comes as an error
            with Image.open(path) as image:
                image.seek(0)
                image.load()
                return ImageOps.exif_transpose(to_rgb(image))
    except Exception as error:  # Pillow's decoders raise whatever their parsing trips over
        raise UnreadableImage(str(path) if key is None else key, _reason(Path(path), error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB; see `read_image`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return _keep_exif(Image.alpha_composite(white, clear).convert("RGB"), image)
    return _keep_exif(image.convert("RGB"), image)


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled so that its full range becomes 0 to 255."""
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        full = 65535.0
    else:
        top = values.max(initial=0)
        values, full = values.clip(0), next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
        if image.mode == "I" and full == 1.0:
            full = 255.0
    grey = Image.fromarray((values * (255 / full) + 0.5).astype(np.uint8))
    return _keep_exif(grey.convert("RGB"), image)


def _keep_exif(converted: Image.Image, image: Image.Image) -> Image.Image:
    """Hands the turn that the EXIF tag asks for on to a converted image."""
    turn = image.getexif().get(ExifTags.Base.Orientation)
    if turn is not None:
        converted.getexif()[ExifTags.Base.Orientation] = turn
    return converted


def problem(path: Path, check: Check) -> str | None:
    """Why a file cannot be read, None if nothing speaks against it.

    Args:
        path: the file.
        check: `none` looks at nothing, `header` at the first bytes, `full` decodes the image.
    """
    if check == "none":
        return None
    if check == "full":
        try:
            read_image(path)
        except UnreadableImage as error:
            return error.reason
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path).close()
    except Exception as error:  # as in read_image
        return _reason(path, error)
    return None


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file, without its name and without what changes from run to run."""
    if cure := _CURES.get(path.suffix.lower()):
        return cure
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        size = path.stat().st_size
        return "the file is empty" if size == 0 else "its content is that of no image format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" if str(error) else type(error).__name__
