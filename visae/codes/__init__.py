"""Token x latent tables and heat maps: what a dictionary says about a data set, and about an image."""

from visae.codes.answers import ClassStatistics, Top
from visae.codes.heat import ImageCodes, encode_images, heat_maps
from visae.codes.table import CodeTable

__all__ = ["ClassStatistics", "CodeTable", "ImageCodes", "Top", "encode_images", "heat_maps"]
