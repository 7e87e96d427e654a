"""Images with labels, masks, boxes and words, and prompts, from files or from the built-in world."""

from visae.data.configs import config_names, read_config
from visae.data.images import UnreadableImage, image_extensions, read_image
from visae.data.load import load_data
from visae.data.prompts import Prompts, load_prompts
from visae.data.sample import Data, FactorTable, ImageData, Labels, Prompt, PromptData, Sample
from visae.data.splits import split, subset

__all__ = [
    "Data",
    "FactorTable",
    "ImageData",
    "Labels",
    "Prompt",
    "PromptData",
    "Prompts",
    "Sample",
    "UnreadableImage",
    "config_names",
    "image_extensions",
    "load_data",
    "load_prompts",
    "read_config",
    "read_image",
    "split",
    "subset",
]
