"""What `make record` is asked for, checked before a run starts; messages have the names of make's variables."""

from __future__ import annotations

import re
from pathlib import Path

from chapters import find_chapter, nearest
from recording import Recording, data_parameters, listed, named

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py",
               "cifar100": "cifar-100-python"}
"""Name of a data set -> the folder in which torchvision keeps it."""


def whole_number(variable: str, text: str | None, of: str) -> int | None:
    """Return the number of things in a text; None for no text.

    Raises:
        ValueError: it is no number, or below 1.
    """
    if text is None:
        return None
    if not re.fullmatch(r"\s*[1-9]\d*\s*", text):
        raise ValueError(f"{variable} must be a number of {of} >= 1, got {text.strip()}")
    return int(text)


def check_scale(scale: str | None) -> None:
    """Refuse a scale that no chapter has.

    Raises:
        ValueError: with the scales and the nearest one.
    """
    from lossland.presets import SCALES

    if scale is not None and scale not in SCALES:
        raise ValueError(f"SCALE must be one of {', '.join(SCALES)}, got {scale!r}{nearest(str(scale), list(SCALES))}")


def check_device(device: str | None) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ValueError: with those that are there.
    """
    from lossland.devices import pick_device

    try:
        pick_device(device or "cpu")
    except ValueError as error:
        raise ValueError(f"DEVICE: {error}") from error


def check_data(dataset: str, data_dir: Path | None, root: Path) -> None:
    """Refuse a data set that is not known, or whose files are not where a chapter looks for them; none is opened.

    Raises:
        ValueError: with the known names, or with the place.
    """
    from lossland.sources import TASKS, data_folder

    folder = data_folder(data_dir)
    if data_parameters(dataset, data_dir)["dataset"] != dataset or dataset in set(TASKS) - set(TORCHVISION):
        return
    if dataset not in TASKS:
        if not any((place / dataset).is_dir() for place in (root, folder)):
            raise ValueError(f"DATASET must be one of {', '.join(TASKS)}, or the name of a folder or an .npz file in "
                             f"DATA_DIR, got {dataset!r}{nearest(dataset, list(TASKS))}")
    elif not (folder / TORCHVISION[dataset]).is_dir():
        ours = f"torchvision's folder {TORCHVISION[dataset]}"
        raise ValueError(f"DATA_DIR must hold {dataset}.npz or {ours}, got neither in {folder}" if data_dir else
                         f"DATASET={dataset} needs {ours} in {folder}, which is not there: say DATA_DIR=... with the "
                         f"folder that has it, or that has {dataset}.npz")


def chosen(names: dict[str, str | None], root: Path) -> tuple[list[Recording], bool]:
    """Return the runs that the command line is about, and whether it names a single one.

    Args:
        names: what CHAPTER, SCALE and DATASET say; None: nothing.
        root: folder that holds book/.

    Raises:
        ValueError: an unknown chapter or scale, a data set that is no name, or nothing in the list that is like this.
    """
    chapter, scale, dataset = (names[name] for name in ("CHAPTER", "SCALE", "DATASET"))
    check_scale(scale)
    if all(names.values()):
        return [named(chapter, scale, dataset, root)], True
    stem = find_chapter(chapter, root).stem if chapter else None
    every = listed(root)
    runs = [run for run in every if stem in (None, run.chapter) and scale in (None, run.scale)
            and dataset in (None, run.dataset)]
    if not runs and any(names.values()):
        asked = " ".join(f"{name}={value}" for name, value in names.items() if value)
        near = nearest(dataset, sorted({run.dataset for run in every} - {dataset})) if dataset else ""
        raise ValueError(f"nothing in the list matches {asked}{near}; `make record` shows the list, and a run that is "
                         "not in it is made where CHAPTER, SCALE and DATASET are all given")
    return [run for run in runs if not run.result(root).is_file()], False
