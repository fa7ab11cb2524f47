"""Where images come from: scikit-learn's digits, torchvision's data sets, any ``.npz``; read and checked."""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lossland.errors import did_you_mean
from lossland.files import cache_folder
from lossland.sampling import channel_statistics

TASKS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "pydoc")
KEYS = ("x_train", "y_train", "x_test", "y_test")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_CONSTANTS: dict[str, Statistics] = {  # mean and deviation of all training pixels, in [0, 1]
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, SyntaxError, struct.error, zlib.error,
           zipfile.BadZipFile)  # what zipfile and numpy raise for damaged archives and headers


class Source(NamedTuple):
    """A data set as it was found.

    Attributes:
        name: Name of the data set, or of the file.
        train, test: Images (n, C, H, W) uint8 and labels (n,) int64.
        classes: Number of classes.
        scale: Largest value of a pixel.
        constants: Usual mean and deviation per channel, after division by ``scale``; None where there are none.
        augment: Usual augmentation, as in `lossland.tasks.AUGMENTATIONS`.
        note: One sentence about the data.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int
    scale: float
    constants: Statistics | None
    augment: str
    note: str


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return where data sets are looked for: `data_dir`, else ``LOSSLAND_DATA``, else ``data`` in the cache folder."""
    return Path(data_dir or os.environ.get("LOSSLAND_DATA") or cache_folder() / "data").expanduser()


def read(name: str | Path, data_dir: str | Path | None = None, allow_download: bool = False) -> Source:
    """Return a data set of images; the arguments are those of `lossland.tasks.load_task`.

    Raises:
        ValueError: An unknown name, or data that are not as they should be.
        FileNotFoundError: The data are not where they were looked for.
    """
    folder = data_folder(data_dir)
    if str(name).endswith(".npz"):
        return _npz(Path(name).expanduser(), folder)
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(map(repr, TASKS))}, the path of an .npz file, a folder with "
                         "train.txt, valid.txt and test.txt, or a folder of images with train and val; "
                         f"got {str(name)!r}{did_you_mean(name, TASKS)}")
    return _digits() if name == "digits" else _torchvision(str(name), folder, allow_download)


def normalisation(source: Source, images: np.ndarray, normalise: str) -> Statistics:
    """Return mean and deviation per channel by which training images (n, C, H, W) are normalised, as `load_task` says.

    Raises:
        ValueError: A channel that has the same pixel everywhere.
    """
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


def _digits() -> Source:
    from sklearn.datasets import load_digits  # takes a second to import

    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 1, 8, 8).astype(np.uint8), labels.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, each in random order
    counts = np.bincount(labels)
    within = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    order = order[np.argsort(within, kind="stable")]  # every stretch of this order has all classes in proportion
    train, test = order[:1297], order[1297:]
    return Source("digits", (images[train], labels[train]), (images[test], labels[test]), 10, 16.0, None, "none",
                  "scikit-learn's embedded digits, 8 x 8 pixels with 17 grey levels; fixed split by class, "
                  "1297 for training and 500 for testing")


def _torchvision(name: str, folder: Path, allow_download: bool) -> Source:
    from torchvision import datasets  # takes seconds to import

    try:
        parts = [getattr(datasets, _TORCHVISION[name])(folder, train=train, download=allow_download)
                 for train in (True, False)]
    except RuntimeError as error:
        if allow_download:
            raise
        raise FileNotFoundError(
            f"{name} must lie in {folder} as torchvision keeps it ({error}). Pass the path of an .npz file as the name "
            f"or fetch it once, torchvision.datasets.{_TORCHVISION[name]}('FOLDER', download=True), "
            "and pass that folder as data_dir or set LOSSLAND_DATA to it; load_task fetches it with "
            "allow_download=True") from error
    arrays = {}
    for split, part in zip(("train", "test"), parts, strict=True):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = np.asarray(part.data), np.asarray(part.targets)
    train, test = _checked(f"{name} in {folder}", arrays, len(parts[0].classes))
    return Source(name, train, test, len(parts[0].classes), 255.0, _CONSTANTS.get(name),
                  "flip-crop" if name in _CONSTANTS else "none", f"{name} as torchvision distributes it")


def _npz(path: Path, folder: Path) -> Source:
    places = [path] if path.is_absolute() else [path, folder / path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path} must be an .npz file, got none at {' nor at '.join(map(str, places))}: "
                                "pass an absolute path, or the folder as data_dir")
    arrays = {}
    try:
        if not zipfile.is_zipfile(found):
            raise ValueError("it is no archive, or its end is missing")
        with np.load(found, allow_pickle=False) as file:
            for key in KEYS:
                if key not in file:
                    raise ValueError(f"it lacks the key {key!r}, it has {', '.join(sorted(file)) or 'none'}")
                arrays[key] = file[key]
    except _DAMAGE as error:
        raise ValueError(f"{found} must be a whole .npz file with {', '.join(KEYS)}: {error}") from error
    classes = int(arrays["y_train"].max()) + 1 if _integers(arrays["y_train"]) else 0
    if classes == 1:
        raise ValueError(f"{found}: y_train must have at least two classes, got no label above 0")
    train, test = _checked(str(found), arrays, classes)
    missing = np.flatnonzero(np.bincount(train[1], minlength=classes) == 0)
    if len(missing):
        raise ValueError(f"{found}: y_train must have every label from 0 to its largest ({classes - 1}), "
                         f"got no {missing[0]}")
    return Source(found.stem, train, test, classes, 255.0, None, "none",
                  f"the file {found.name} as given; how its images were made and compressed is not known")


def _integers(labels: np.ndarray) -> bool:
    return np.issubdtype(labels.dtype, np.integer) and labels.size > 0


def _checked(where: str, arrays: dict[str, np.ndarray], classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and test arrays in their canonical form."""
    parts = []
    for split in ("train", "test"):
        x, y = f"{where}: x_{split}", f"{where}: y_{split}"
        images = _images(x, arrays[f"x_{split}"])
        labels = arrays[f"y_{split}"]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]  # as Keras keeps CIFAR
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise ValueError(f"{y} must be integers (n,), got {labels.dtype} {labels.shape}")
        if len(labels) != len(images):
            raise ValueError(f"{y} must have one label for each of the {len(images)} images, got {len(labels)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{y} must have labels in 0..{classes - 1}, got {low if low < 0 else high}")
        parts.append((images, labels.astype(np.int64)))
    (train, _), (test, _) = parts
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{where}: x_test must have images like x_train, {train.shape[1:]} (C, H, W), "
                         f"got {test.shape[1:]}")
    return parts


def _images(name: str, images: np.ndarray) -> np.ndarray:
    """Return (n, C, H, W)."""
    if images.dtype != np.uint8:
        raise ValueError(f"{name} must be uint8 pixels 0..255, got {images.dtype}")
    if images.size == 0:
        raise ValueError(f"{name} must have at least one image, got shape {images.shape}")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first != last:
            return images if first else images.transpose(0, 3, 1, 2)
    raise ValueError(f"{name} must be (n, H, W), (n, H, W, C) or (n, C, H, W) with 1 or 3 channels and larger images, "
                     f"got {images.shape}")
