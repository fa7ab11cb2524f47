"""Data sets that live on the device as uint8: normalised, shuffled and augmented there, batch by batch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lossland.devices import pick_device
from lossland.errors import choose
from lossland.sampling import channel_statistics, draw_crops, first_of_every_class, flip_crop, held_out, redrawn
from lossland.sources import TASKS, Source, Statistics, read

__all__ = ["TASKS", "Split", "Task", "load_task", "pick_device"]

SPLITS = ("train", "test", "validation")
AUGMENTATIONS = ("none", "flip-crop")
NORMALISATIONS = ("auto", "unit", "channels")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, on one device.

    Attributes:
        images: (n, C, H, W) uint8 pixels as they came.
        labels: (n,) int64 classes.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (n, C, H, W), got {_described(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1] or not len(self.labels):
            raise ValueError(f"labels must be int64, one for each of the {len(self.images)} images and at least one, "
                             f"got {_described(self.labels)}")
        if self.images.device != self.labels.device:
            raise ValueError(f"labels must be on {self.images.device} with the images, got {self.labels.device}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images, {' x '.join(map(str, self.images.shape[1:]))}, on {self.images.device})"


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: resident images and how they are normalised and augmented.

    Attributes:
        name: Name of the data set, or of the file.
        train, test, validation: The splits; nothing is ever tuned on ``test``.
        classes: Labels are 0..classes - 1.
        scale: Pixels are divided by this first.
        mean, std: Per channel, after scaling: a network sees (pixel / scale - mean) / std.
        augment: "none" or "flip-crop" (`flip_crop`), for training batches that ask for it.
        note: One sentence about the data, for tables.
        fingerprint: 16 hexadecimal digits of the sha256 of the splits, the normalisation and the augmentation: the same
            data have the same fingerprint on every device and under every name. Left empty, it is computed.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    classes: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    note: str = ""
    fingerprint: str = field(default="")

    def __post_init__(self) -> None:
        choose("augment", self.augment, AUGMENTATIONS)
        if not len(self.mean) == len(self.std) == self.input_shape[0] or min(self.std) <= 0 or self.scale <= 0:
            raise ValueError(f"mean and std must have one value per channel ({self.input_shape[0]}), std and scale "
                             f"must be > 0, got mean {self.mean}, std {self.std}, scale {self.scale}")
        for name, part in self._parts():
            if part.images.shape[1:] != self.input_shape:
                raise ValueError(f"{name} images must have the shape {self.input_shape} of the training images, "
                                 f"got {tuple(part.images.shape[1:])}")
            low, high = (int(value) for value in part.labels.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"{name} labels must be in 0..{self.classes - 1}, got {low if low < 0 else high}")
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", self._hash())

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.train.images.shape[1:])

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ValueError: Another name than "train", "test" and "validation", or no validation split was asked for.
        """
        part = getattr(self, choose("split", name, SPLITS))
        if part is None:
            raise ValueError(f"task {self.name!r} has the splits 'train', 'test' and no 'validation': ask for one with "
                             "load_task(..., validation=0.1)")
        return part

    def prepare(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return normalised images, one multiply-add each.

        Args:
            images: (n, C, H, W) pixels, uint8, or floating point on the same scale (corrupted or mixed images).
            dtype: Type of the result.

        Returns:
            (n, C, H, W) (pixel / scale - mean) / std, on the device of ``images``.

        Raises:
            TypeError: Neither uint8 nor floating point.
            ValueError: Another shape, or NaN or infinite pixels.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(f"images must be (n, {', '.join(map(str, self.input_shape))}), got {_described(images)}")
        if images.dtype != torch.uint8:
            if not images.is_floating_point():
                raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
            if not torch.isfinite(images).all():
                raise ValueError("images must be finite, got NaN or infinite pixels")
        factor, shift = self._affine.to(device=images.device, dtype=dtype)
        return torch.addcmul(shift, images.to(dtype), factor)

    def batches(self, split: str = "train", *, batch_size: int, generator: torch.Generator | None = None,
                augment: bool = False, drop_last: bool = False,
                dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over (images (b, C, H, W) normalised, labels (b,)) once through a split.

        Args:
            split: Name of the split.
            batch_size: Images per batch; the last one may be smaller.
            generator: On the CPU, so that order and augmentation are the same on every device; both are drawn from it
                when this function is called. None: in order.
            augment: Apply the task's augmentation (`Task.augment`; with "none" nothing happens). Wants a generator.
            drop_last: Leave out a last smaller batch.
            dtype: Type of the images.

        Raises:
            ValueError: An unknown split, batch_size < 1, no batch at all, augment without a generator, a generator on
                another device.
        """
        part = self.split(split)
        stop = len(part) // batch_size * batch_size if drop_last and batch_size > 0 else len(part)
        if batch_size < 1 or stop == 0:
            raise ValueError(f"batch_size must be >= 1, and with drop_last <= {len(part)}, got {batch_size}")
        if generator is None and augment:
            raise ValueError("generator must be given for augment=True, got None")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        device, order, crops = part.labels.device, None, None
        if generator is not None:
            order = torch.randperm(len(part), generator=generator).to(device)
        if augment and self.augment == "flip-crop":
            crops = draw_crops(len(part), generator).to(device)
        return self._iterate(part, [slice(i, min(i + batch_size, stop)) for i in range(0, stop, batch_size)],
                             order, crops, dtype)

    def to(self, device: str | torch.device) -> "Task":
        """Return the task with its images on another device; the fingerprint stays.

        Raises:
            ValueError: A device that is not there.
        """
        place = pick_device(device)
        moved = {name: Split(part.images.to(place), part.labels.to(place)) for name, part in self._parts()}
        return replace(self, **moved)

    def subset(self, train: int | None = None, test: int | None = None) -> "Task":
        """Return a smaller task: the first images of every class, the classes as even as they can be, in their order.

        Args:
            train: Number of training images; None: all.
            test: Number of test images; None: all.

        Raises:
            ValueError: A number below 1 or above what there is.
        """
        wanted = {"train": train, "test": test}
        chosen = {name: _first(name, self.split(name), n) for name, n in wanted.items() if n is not None}
        sizes = ", ".join(f"{len(part)} {name} images" for name, part in chosen.items())
        note = f"{self.note}; the first {sizes}, even over the classes" if sizes else self.note
        return replace(self, **chosen, note=note, fingerprint="")

    @cached_property
    def _affine(self) -> Tensor:
        """(2, C, 1, 1) factor and shift, in float64 where the training images are."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return torch.stack([1 / (self.scale * std), -mean / std])[:, :, None, None].to(self.train.images.device)

    def _parts(self) -> list[tuple[str, Split]]:
        return [(name, getattr(self, name)) for name in SPLITS if getattr(self, name) is not None]

    def _hash(self) -> str:
        digest = hashlib.sha256(repr((self.classes, self.scale, self.mean, self.std, self.augment)).encode())
        for name, part in self._parts():
            digest.update(repr((name, tuple(part.images.shape))).encode())
            digest.update(part.images.cpu().contiguous().numpy())
            digest.update(part.labels.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def _iterate(self, part: Split, windows: list[slice], order: Tensor | None, crops: Tensor | None,
                 dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for window in windows:
            pick = window if order is None else order[window]
            images = part.images[pick]
            if crops is not None:
                images = flip_crop(images, crops[:, window])
            yield self.prepare(images, dtype), part.labels[pick]


def load_task(name: str | Path = "digits", *, data_dir: str | Path | None = None, device: str | torch.device = "auto",
              validation: int | float = 0, label_noise: float = 0.0, seed: int = 0, allow_download: bool = False,
              augment: str = "auto", normalise: str = "auto") -> Task:
    """Return a data set on the device, checked.

    Args:
        name: One of `TASKS`, or the path of an ``.npz`` file with ``x_train``, ``y_train``, ``x_test``, ``y_test``:
            uint8 images (n, H, W), (n, H, W, C) or (n, C, H, W) with 1 or 3 channels, and integer labels.
        data_dir: Folder of the torchvision data sets, and of an ``.npz`` that is not found as given. None: the
            environment variable ``LOSSLAND_DATA``, else ``data`` in the cache folder.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        validation: Size of a validation split, taken off the training split: a number of images, or a fraction
            between 0 and 1. It is the end of a permutation that ``seed`` draws; its labels get no noise.
        label_noise: Fraction of the training labels that is redrawn uniformly over the classes (possibly the true one).
            The same seed redraws the same labels; a smaller fraction redraws some of them.
        seed: For the validation split and the label noise.
        allow_download: Let torchvision download what is missing.
        augment: "none", "flip-crop", or "auto": flip-crop for cifar10 and cifar100.
        normalise: "unit" (pixels in [0, 1]), "channels" (mean 0 and deviation 1 per channel of the training split), or
            "auto": the usual constants for cifar10 and cifar100, "channels" for an ``.npz`` in colour, "unit" else.

    Raises:
        ValueError: An unknown name or option, a device that is not there, a file that is damaged or lacks an array,
            arrays of wrong type or shape, labels outside the classes, sizes that do not fit.
        FileNotFoundError: The data are not where they were looked for.

    Source: label noise as in W21 Fig. 8 (a fixed fraction, the same draw for all methods).

    Example:
        >>> task = load_task("digits", device="cpu", validation=0.1)
        >>> len(task.train), len(task.validation), len(task.test), task.input_shape
        (1167, 130, 500, (1, 8, 8))
    """
    place = pick_device(device)
    choose("augment", augment, ("auto", *AUGMENTATIONS))
    choose("normalise", normalise, NORMALISATIONS)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must be a fraction in [0, 1], got {label_noise!r}")
    source = read(name, data_dir, allow_download)
    images, labels = source.train
    order, rest = held_out(len(labels), validation, seed)
    noisy = redrawn(labels[order], label_noise, source.classes, seed)
    mean, std = _normalisation(source, images[order], normalise)
    note = f"{source.note}; {label_noise:.0%} of the training labels redrawn" if label_noise else source.note
    return Task(source.name, _resident(images[order], noisy, place), _resident(*source.test, place),
                _resident(images[rest], labels[rest], place) if len(rest) else None, source.classes, source.scale,
                mean, std, source.augment if augment == "auto" else augment, note)


def _resident(images: np.ndarray, labels: np.ndarray, device: torch.device) -> Split:
    return Split(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (images, labels)))


def _normalisation(source: Source, images: np.ndarray, normalise: str) -> Statistics:
    channels = images.shape[1]
    if normalise == "auto" and source.constants is not None:
        return source.constants
    if normalise == "unit" or (normalise == "auto" and channels == 1):
        return (0.0,) * channels, (1.0,) * channels
    mean, std = channel_statistics(images, source.scale)
    if min(std) == 0:
        raise ValueError(f"{source.name}: channel {std.index(0)} of the training images must vary to be normalised by "
                         "its deviation, got the same pixel everywhere; use normalise='unit'")
    return mean, std


def _first(name: str, part: Split, n: int) -> Split:
    if not 1 <= n <= len(part):
        raise ValueError(f"{name} must be a number of images in 1..{len(part)}, got {n}")
    chosen = first_of_every_class(part.labels, n)
    return Split(part.images[chosen], part.labels[chosen])


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
