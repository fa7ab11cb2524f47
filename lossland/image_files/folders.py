"""Folders of image files: torchvision's layout, TinyImageNet's own; which files there are, of which class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lossland.errors import did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"


class Listing(NamedTuple):
    """The image files of one split, class after class, by name within a class.

    Attributes:
        folder: that `names` are relative to.
        names: of the files.
        sizes: of the files, in bytes.
        labels: (n,) int64.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: np.ndarray


class ImageFolder(NamedTuple):
    """What was found in a folder.

    Attributes:
        name: of the folder.
        classes: names of the classes, sorted.
        splits: "train", "test" and possibly "validation".
        small: whether it has TinyImageNet's own layout.
        note: which part was taken for what.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Listing]
    small: bool
    note: str


def find(name: str | Path, data: Path) -> Path | None:
    """Return the folder of that path, as given or in the folder of the data sets, that has a folder ``train``
    and is no text."""
    places = (Path(name).expanduser(), data / name)
    return next((place for place in places if (place / "train").is_dir() and not (place / "train.txt").exists()), None)


def read(folder: Path) -> ImageFolder:
    """Return which image files a folder has; none is opened.

    ``train/<class>/...`` to train on. ``test/<class>/...``, where there is one with classes of its own, to test on, and
    then ``val/<class>/...`` to validate on; else ``val`` to test on. TinyImageNet's ``val/images`` with
    ``val/val_annotations.txt`` is read as it is. Files are found at any depth below a class. Classes that val or test
    has no images of are named in the note.

    Raises:
        FileNotFoundError: if there is neither a val nor a test folder with classes.
        ValueError: for fewer than two classes, a class without images, a class of val or test that train lacks, an
            empty file.
    """
    classes = tuple(_classes(folder / "train"))
    if not classes:
        raise ValueError(f"{folder / 'train'} must have a folder for each class, got none")
    if len(classes) < 2:
        raise ValueError(f"{folder / 'train'} must have a folder for each of at least two classes, got {classes[0]!r} "
                         "alone; are the classes' folders inside it?")
    splits = {"train": listed(folder / "train", classes)}
    small = (folder / "val" / ANNOTATIONS).is_file()
    val = _annotated(folder / "val", classes) if small else _optional(folder / "val", classes)
    test = _optional(folder / "test", classes)
    if test is None and val is None:
        raise FileNotFoundError(f"{folder} must have a folder val or test with a folder for each of train's "
                                f"{len(classes)} classes, or val/images and val/{ANNOTATIONS}; got "
                                f"{', '.join(sorted(each.name for each in folder.iterdir()))}")
    splits["test"] = val if test is None else test
    if test is not None and val is not None:
        splits["validation"] = val
    source = "test" if test is not None else "val"
    note = f"image files of the folder {folder.name}, {len(classes)} classes; its {source} to test on"
    for name, part in (("test", test), ("val", val)):
        note += _lacking(name, part, classes) if part else ""
    return ImageFolder(folder.name, classes, splits, small, note)


def _lacking(name: str, part: Listing, classes: Sequence[str]) -> str:
    """Return which classes a split has no images of, for a note; nothing where it has all."""
    absent = [classes[i] for i in sorted(set(range(len(classes))) - set(part.labels.tolist()))]
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return f"; {name} has no images of {', '.join(map(repr, absent[:3]))}{more}" if absent else ""


def listed(folder: Path, classes: Sequence[str]) -> Listing:
    """Return the image files of ``folder/<class>/...``.

    Args:
        folder: of one split.
        classes: names; a label is the place in it.

    Raises:
        ValueError: for a folder that is no class, or a class folder without images.
    """
    names, labels = [], []
    for name in _classes(folder):
        if name not in classes:
            raise ValueError(f"{folder} must have no class that the training images lack, got "
                             f"{name!r}{did_you_mean(name, classes)}")
        found = sorted(_images(folder, name))
        if not found:
            raise ValueError(f"{folder / name} must have at least one image ({', '.join(EXTENSIONS)}), got none")
        names += found
        labels += [classes.index(name)] * len(found)
    return _listing(folder, names, labels)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))


def _images(folder: Path, name: str) -> list[str]:
    found = []
    for place, _, files in os.walk(folder / name, followlinks=True):
        part = Path(place).relative_to(folder).as_posix()
        found += [f"{part}/{file}" for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")]
    return found


def _optional(folder: Path, classes: tuple[str, ...]) -> Listing | None:
    """Return the files of a split; None where the folder has none of the classes, as TinyImageNet's test images."""
    return listed(folder, classes) if set(_classes(folder)) & set(classes) else None


def _annotated(folder: Path, classes: tuple[str, ...]) -> Listing:
    """Return the files of TinyImageNet's ``val``: images, and a text with file and class, tab by tab, in each line."""
    text, numbers = folder / ANNOTATIONS, {name: i for i, name in enumerate(classes)}
    pairs = [line.split("\t")[:2] for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    broken = next((pair for pair in pairs if len(pair) < 2 or pair[1] not in numbers), None)
    if broken or not pairs:
        raise ValueError(f"{text} must have a file and one of the training images' {len(classes)} classes in each "
                         f"line, got {broken or 'no line'}")
    pairs.sort(key=lambda pair: (numbers[pair[1]], pair[0]))
    return _listing(folder, [f"images/{file}" for file, _ in pairs], [numbers[name] for _, name in pairs])


def _listing(folder: Path, names: list[str], labels: list[int]) -> Listing:
    sizes = []
    for name in names:
        try:
            sizes.append((folder / name).stat().st_size)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name} is not in {folder}") from error
        if not sizes[-1]:
            raise ValueError(f"{folder / name} must be an image, got an empty file")
    return Listing(folder, tuple(names), tuple(sizes), np.asarray(labels, dtype=np.int64))
