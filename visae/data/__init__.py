"""Images with labels, masks, boxes and words, from files or from the built-in world."""

from visae.data.images import UnreadableImage, image_extensions, read_image
from visae.data.sample import FactorTable, ImageData, Labels, Sample

__all__ = ["FactorTable", "ImageData", "Labels", "Sample", "UnreadableImage", "image_extensions", "read_image"]
