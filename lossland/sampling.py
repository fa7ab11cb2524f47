"""Which images, with which labels, mirrored and shifted how: every draw a data set needs, each from its own seed."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4  # pixels on every side of a crop


def stream_seed(seed: int, *numbers: int) -> int:
    """Return a seed for one of many independent random streams: that of `numbers`, such as an epoch and a purpose.

    Examples:
        >>> stream_seed(1, 0, 0) == stream_seed(1, 0, 0), stream_seed(1, 0, 0) == stream_seed(1, 0, 1)
        (True, False)
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> 1)


def held_out(n: int, validation: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images to train on and of those held out: a permutation and its end.

    Args:
        n: Number of images.
        validation: A number of images, or a fraction between 0 and 1; with 0 the order stays and none is held out.
        seed: Of the permutation.

    Raises:
        ValueError: A size that leaves no image on one side.
    """
    size = -1
    if isinstance(validation, float) and 0 <= validation < 1:
        size = round(validation * n)
    elif isinstance(validation, int) and not isinstance(validation, bool):
        size = validation
    if not 0 <= size < n or (size == 0 and validation != 0):
        raise ValueError(f"validation must be a number of images in 0..{n - 1}, or a fraction in [0, 1) that leaves "
                         f"images on both sides, got {validation!r}")
    order = np.random.default_rng([seed, 1]).permutation(n) if size else np.arange(n)
    return order[:n - size], order[n - size:]


def redrawn(labels: np.ndarray, fraction: float, classes: int, seed: int) -> np.ndarray:
    """Return a copy of the labels (n,) with a fixed fraction drawn anew, uniformly, possibly the same again.

    The same seed redraws the same labels; a smaller fraction redraws some of them in the same way.

    Source: W21 Fig. 8 (label noise).
    """
    generator = np.random.default_rng([seed, 2])
    chosen = generator.permutation(len(labels))[:round(fraction * len(labels))]
    drawn = generator.integers(classes, size=len(labels))  # for all images: smaller fractions are nested
    noisy = labels.copy()
    noisy[chosen] = drawn[chosen]
    return noisy


def first_of_every_class(labels: Tensor, n: int) -> Tensor:
    """Return the indices (n,), in order, of the first images of every class, taken class by class in turn."""
    labels_here = labels.cpu()
    counts = torch.bincount(labels_here)
    by_class = labels_here.argsort(stable=True)
    rank = torch.empty_like(labels_here)  # how many of its class come before an image
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels_here[by_class]]
    return rank.argsort(stable=True)[:n].sort().values.to(labels.device)


def channel_statistics(images: np.ndarray, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel of uint8 images (n, C, H, W) divided by ``scale``.

    They come from counts of the 256 pixel values: whole numbers, so the result is the same on every machine.
    """
    means, deviations, values = [], [], np.arange(256) / scale
    for channel in range(images.shape[1]):
        blocks = np.array_split(images[:, channel], -(-len(images) // 1000))  # bincount makes int64 copies
        share = sum(np.bincount(block.ravel(), minlength=256) for block in blocks) / images[:, channel].size
        means.append(float((share * values).sum()))
        deviations.append(float((share * (values - means[-1]) ** 2).sum() ** 0.5))
    return tuple(means), tuple(deviations)


def draw_crops(n: int, generator: torch.Generator) -> Tensor:
    """Return (3, n) integers for `flip_crop`: mirrored or not with equal odds, and every shift with equal odds."""
    flip = torch.randint(2, (1, n), generator=generator)
    return torch.cat([flip, torch.randint(2 * PADDING + 1, (2, n), generator=generator)])


def draw_seeds(n: int, generator: torch.Generator) -> Tensor:
    """Return (n,) int64 seeds, one for the random part of each image (`image_files.resized_crops`)."""
    return torch.randint(2**62, (n,), generator=generator)


def flip_crop(images: Tensor, crops: Tensor) -> Tensor:
    """Return mirrored and shifted images: the papers' CIFAR augmentation, each image with its own draw.

    Args:
        images: (n, C, H, W) pixels of any type.
        crops: (3, n) integers from `draw_crops`: mirror left and right before the crop (0 or 1), then top and left
            corner of the crop in the image padded with 4 zero pixels on every side; 4 and 4 shift nothing.

    Returns:
        (n, C, H, W) of the same type; one gather, no loop over images.

    Source: AY20 Appendix A; zero pixels are padded before normalisation, as torchvision's transforms do.
    """
    flip, top, left = crops[:, :, None]
    n, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (PADDING,) * 4)
    rows = top + torch.arange(height, device=device)  # (n, H)
    columns = left + torch.arange(width, device=device)  # (n, W), in the mirrored image where flip is set
    columns = torch.where(flip.bool(), width + 2 * PADDING - 1 - columns, columns)
    image, channel = torch.arange(n, device=device), torch.arange(channels, device=device)
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
