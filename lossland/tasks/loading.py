"""Data sets by name: images from arrays or from folders of files, texts; checked, on a device."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lossland.devices import pick_device
from lossland.errors import choose
from lossland.image_files import ImageFolder, LazyImages, Listing, find, rows
from lossland.image_files import read as read_images
from lossland.sampling import channel_statistics, held_out, redrawn
from lossland.sources import TASKS, Statistics, data_folder, normalisation, read
from lossland.splits import Split
from lossland.tasks.task import AUGMENTATIONS, Task
from lossland.texts import Text, read_text

NORMALISATIONS = ("auto", "unit", "channels")
SMALL = 64  # pixels of a side up to which images are those of TinyImageNet's kind
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's training pixels, in [0, 1]: the usual constants."""

RESIDENT_BYTES = 4 * 2**30
"""Pixels of a folder of images that are held in memory at most, unless `load_task` is told otherwise."""


def load_task(name: str | Path = "digits", *, data_dir: str | Path | None = None, device: str | torch.device = "auto",
              validation: int | float = 0, label_noise: float = 0.0, seed: int = 0, allow_download: bool = False,
              augment: str = "auto", normalise: str = "auto", vocabulary: int | None = None,
              window: int | None = None, image_size: int | None = None, resident: bool | None = None) -> Task:
    """Return a data set on the device, checked.

    Args:
        name: One of `TASKS`, or the path of an ``.npz`` file with ``x_train``, ``y_train``, ``x_test``, ``y_test``:
            uint8 images (n, H, W), (n, H, W, C) or (n, C, H, W) with 1 or 3 channels, and integer labels. "pydoc" is
            the text of Python's own documentation; a text of your own is the path of a folder with ``train.txt``,
            ``valid.txt`` and ``test.txt``. Texts bring a validation split, and none of the options of images. Or the
            path of a folder of image files, as torchvision's ImageFolder keeps them (ImageNet: ``train/<class>/...``
            and ``val/<class>/...``, or ``test``; with both, ``val`` is the validation split), or TinyImageNet's as it
            comes (``val/images`` and ``val/val_annotations.txt``); see `image_files.read`.
        data_dir: Folder of the torchvision data sets, and of an ``.npz`` that is not found as given. None: the
            environment variable ``LOSSLAND_DATA``, else ``data`` in the cache folder.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        validation: Size of a validation split, taken off the training split: a number of images, or a fraction
            between 0 and 1. It is the end of a permutation that ``seed`` draws; its labels get no noise.
        label_noise: Fraction of the training labels that is redrawn uniformly over the classes (possibly the true one).
            The same seed redraws the same labels; a smaller fraction redraws some of them.
        seed: For the validation split and the label noise.
        allow_download: Let torchvision download what is missing.
        augment: "none", "flip-crop", "resized-crop" (a random part of each image, mirrored or not), or "auto":
            flip-crop for cifar10, cifar100 and folders of images up to 64 pixels, resized-crop for larger ones.
        normalise: "unit" (pixels in [0, 1]), "channels" (mean 0 and deviation 1 per channel of the training split), or
            "auto": the usual constants for cifar10 and cifar100, ImageNet's for folders of images, "channels" for an
            ``.npz`` in colour, "unit" else.
        vocabulary: Of a text: the largest number of words, <unk> and <eos> included; None: 10,000.
        window: Of a text: words per window; None: 35.
        image_size: Of a folder of images: pixels of a side. Other images are resized, their shorter side to 8/7 of it,
            and their middle is taken. None: 224, ImageNet's, and 64 for a folder as TinyImageNet comes.
        resident: Of a folder of images: whether all are decoded now and held on the device (True), or read by threads
            whenever a batch asks for them (False). Both give the same batches, but for "resized-crop", which takes its
            parts from the whole files when they are read, and from the images as they are held; their fingerprints
            differ. None: held where all pixels take at most 4 GiB (`RESIDENT_BYTES`).

    Raises:
        ValueError: An unknown name or option, a device that is not there, a file that is damaged or lacks an array,
            arrays of wrong type or shape, labels outside the classes, sizes that do not fit, a text without words or
            with fewer than a window, options of images for a text and the other way round. A class without images, a
            single class, a class of val that train lacks, a file that is no image (one read later is named then).
        FileNotFoundError: The data are not where they were looked for, or a folder lacks one of its files.

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
    if folder := _images_at(name, data_folder(data_dir)):
        _only("a folder of images", name, vocabulary=vocabulary, window=window)
        found = _Folder(read_images(folder), place, image_size, resident)
        return found.task(validation=validation, label_noise=label_noise, seed=seed, augment=augment,
                          normalise=normalise)
    images_only = {"validation": validation, "label_noise": label_noise, "augment": augment != "none" and augment,
                   "normalise": normalise}
    if (name not in TASKS or name == "pydoc") and (text := read_text(name, data_folder(data_dir), vocabulary, window)):
        _only("a text", name, image_size=image_size, resident=resident)
        return _text_task(text, place, images_only)
    source = read(name, data_dir, allow_download)  # refuses a name that is unknown before it speaks of options
    if vocabulary is not None or window is not None:
        raise ValueError(f"vocabulary and window are for texts, got {vocabulary} and {window} for {str(name)!r}")
    _only("no folder of images", name, image_size=image_size, resident=resident)
    images, labels = source.train
    order, rest = held_out(len(labels), validation, seed)
    noisy = redrawn(labels[order], label_noise, source.classes, seed)
    mean, std = normalisation(source, images[order], normalise)
    note = f"{source.note}; {label_noise:.0%} of the training labels redrawn" if label_noise else source.note
    return Task(source.name, _resident(images[order], noisy, place), _resident(*source.test, place),
                _resident(images[rest], labels[rest], place) if len(rest) else None, source.classes, source.scale,
                mean, std, source.augment if augment == "auto" else augment, note)


def _only(kind: str, name: str | Path, **options: object) -> None:
    """Refuse options that such data do not have."""
    given = [f"{option}={value!r}" for option, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{str(name)!r} is {kind}: {' and '.join(options)} must be left out, got {', '.join(given)}")


def _images_at(name: str | Path, data: Path) -> Path | None:
    return None if name in TASKS or str(name).endswith(".npz") else find(name, data)


@dataclass(frozen=True)
class _Folder:
    """A folder of images on its way to a task."""

    found: ImageFolder
    device: torch.device
    image_size: int | None
    resident: bool | None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be >= 1 pixels, got {self.image_size}")

    @property
    def side(self) -> int:
        return self.image_size or (SMALL if self.found.small else 224)

    def images(self, part: Listing) -> Tensor | LazyImages:
        """Return the images of a split, on the CPU where they are held."""
        total = sum(len(each.names) for each in self.found.splits.values()) * 3 * self.side**2
        lazy = LazyImages(part.folder, part.names, part.sizes, self.side, torch.device("cpu"))
        held = total <= RESIDENT_BYTES if self.resident is None else self.resident
        return lazy[:] if held else lazy

    def task(self, *, validation: int | float, label_noise: float, seed: int, augment: str, normalise: str) -> Task:
        """Return the task; the arguments are those of `load_task`."""
        found, splits = self.found, dict(self.found.splits)
        if validation and "validation" in splits:
            raise ValueError(f"validation must be left out for {found.name!r}, which brings a validation split, the "
                             f"folder val beside test; got {validation}")
        labels = splits["train"].labels
        order, rest = held_out(len(labels), validation, seed)
        noisy = redrawn(labels[order], label_noise, len(found.classes), seed)
        images = self.images(splits["train"])
        parts = {name: Split(self.images(part), torch.from_numpy(part.labels)) for name, part in splits.items()
                 if name != "train"}
        if len(rest):
            parts["validation"] = Split(rows(images, torch.from_numpy(rest)), torch.from_numpy(labels[rest]))
            images = rows(images, torch.from_numpy(order))
        parts["train"] = Split(images, torch.from_numpy(noisy))
        mean, std = _colours(images, normalise)
        usual = "flip-crop" if self.side <= SMALL else "resized-crop"
        note = f"{found.note}; {self.side} x {self.side} pixels" + ("" if self.image_size else ", the default")
        note += f"; {label_noise:.0%} of the training labels redrawn" if label_noise else ""
        return Task(found.name, **{"validation": None, **{name: part.to(self.device) for name, part in parts.items()}},
                    classes=len(found.classes), scale=255.0, mean=mean, std=std,
                    augment=usual if augment == "auto" else augment, note=note, class_names=found.classes)


def _colours(images: Tensor | LazyImages, normalise: str) -> Statistics:
    """Return mean and deviation per channel of a folder's training images, as `load_task` says."""
    if normalise != "channels":
        return IMAGENET if normalise == "auto" else ((0.0,) * 3, (1.0,) * 3)
    if isinstance(images, LazyImages):
        raise ValueError("normalise='channels' would read every image first: use 'auto' (ImageNet's constants) or "
                         "'unit', or hold the images in memory (resident=True)")
    mean, std = channel_statistics(images.numpy(), 255.0)
    if min(std) == 0:
        raise ValueError(f"channel {std.index(0)} of the training images must vary to be normalised by its deviation, "
                         "got the same pixel everywhere; use normalise='unit'")
    return mean, std


def _text_task(text: Text, device: torch.device, images_only: dict[str, object]) -> Task:
    given = [f"{option}={value!r}" for option, value in images_only.items() if value not in (0, "auto")]
    if given:
        raise ValueError(f"{text.name!r} is a text: its labels are its next words, it has its own validation split; "
                         f"options of images must be left out, got {', '.join(given)}")
    parts = {split: _resident(*pair, device) for split, pair in text.splits.items()}
    return Task(text.name, **parts, classes=len(text.words), scale=1.0, mean=(), std=(), note=text.note,
                words=text.words)


def _resident(images: np.ndarray, labels: np.ndarray, device: torch.device) -> Split:
    return Split(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (images, labels)))
