"""Images with labels, masks, boxes and words, from files or from the built-in world."""

from visae.data.configs import config_names, read_config
from visae.data.images import UnreadableImage, image_extensions, read_image
from visae.data.load import load_data
from visae.data.sample import FactorTable, ImageData, Labels, Sample
from visae.data.splits import split, subset

__all__ = [
    "FactorTable",
    "ImageData",
    "Labels",
    "Sample",
    "UnreadableImage",
    "config_names",
    "image_extensions",
    "load_data",
    "read_config",
    "read_image",
    "split",
    "subset",
]
