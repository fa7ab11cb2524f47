"""Image files: which there are in a folder, how they become pixels, and images that stay in their files."""

from lossland.image_files.folders import ImageFolder, Listing, find, listed, read
from lossland.image_files.lazy import LazyImages, read_ahead, resized_crops, rows

__all__ = ["ImageFolder", "LazyImages", "Listing", "find", "listed", "read", "read_ahead", "resized_crops", "rows"]
