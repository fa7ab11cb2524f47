"""Image files to pixels: resized and cropped as ImageNet's images usually are; by PIL, in threads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

AREAS = (0.08, 1.0)  # of a random crop, as a fraction of the image
ASPECTS = (3 / 4, 4 / 3)  # of a random crop, width / height
_TRIES = 10


class Box(NamedTuple):
    """Part of an image, in pixels, and whether it is mirrored left and right."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def opened(path: str | os.PathLike[str]) -> Image.Image:
    """Return an image in red, green and blue.

    Raises:
        ValueError: for a file that is no image, or damaged, naming it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be an image that PIL can read: {error}") from error


def centred(image: Image.Image, side: int) -> np.ndarray:
    """Return (3, side, side) uint8: the middle of the image, once its shorter side has 8/7 of the pixels wanted.

    An image that has `side` x `side` pixels stays as it is. For 224 pixels this is the usual 256 and 224 of ImageNet.
    """
    if image.size != (side, side):
        short, (width, height) = round(side * 8 / 7), image.size
        size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((pixels - side) / 2) for pixels in size)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image).transpose(2, 0, 1)


def random_box(width: int, height: int, seed: int) -> Box:
    """Return a part of an image, of random area, aspect and place, mirrored with odds of one half.

    The area is uniform in 8 to 100 % of the image, the logarithm of the aspect uniform between those of 3/4 and 4/3. If
    ten draws do not fit, it is the largest part in the middle with an aspect within these limits.

    Args:
        width, height: of the image.
        seed: of the draws.

    Source: Szegedy et al. 2015, as torchvision's RandomResizedCrop does it; "standard" augmentation of W21 D.1.
    """
    draws = np.random.default_rng(seed)
    flip = bool(draws.integers(2))
    for _ in range(_TRIES):
        area = width * height * draws.uniform(*AREAS)
        aspect = math.exp(draws.uniform(*map(math.log, ASPECTS)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h, flip)
    w, h = min(width, round(height * ASPECTS[1])), min(height, round(width / ASPECTS[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h, flip)


def cropped(image: Image.Image, box: Box, side: int) -> np.ndarray:
    """Return (3, side, side) uint8: part of an image, resized."""
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = np.asarray(part.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if box.flip else pixels


def filled(read: Callable[[int], np.ndarray], numbers: Sequence[int], side: int) -> np.ndarray:
    """Return (n, 3, side, side) uint8: what `read` gives for each number, read by threads, in order."""
    pixels = np.empty((len(numbers), 3, side, side), np.uint8)

    def fill(place: int) -> None:
        pixels[place] = read(numbers[place])

    _all(_pool().map(fill, range(len(numbers))))
    return pixels


def _all(done: Iterable[None]) -> None:
    for _ in done:  # the first error of a thread is raised here
        pass


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="images")  # PIL works without the GIL
