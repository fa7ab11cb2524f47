"""Corrupted images: six kinds of damage with five severities, or a folder like CIFAR-10-C or ImageNet-C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2.functional import gaussian_blur

from lossland.errors import choose, did_you_mean
from lossland.image_files import LazyImages, Listing, listed
from lossland.splits import Split, described
from lossland.tasks import Task

STRENGTHS: dict[str, tuple[float, float, float, float, float]] = {
    "noise": (0.05, 0.1, 0.15, 0.2, 0.3),  # deviation of Gaussian noise, in units of the range of pixels
    "blur": (0.02, 0.03, 0.045, 0.06, 0.08),  # deviation of a Gaussian, in units of the shorter side
    "contrast": (0.6, 0.45, 0.3, 0.2, 0.1),  # factor of the difference from the image's mean
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, in units of the range of pixels
    "pixelate": (0.05, 0.1, 0.15, 0.2, 0.28),  # edge of a square of one colour, in units of the shorter side
    "jpeg": (50, 30, 20, 12, 6),  # quality in per cent
}
"""What severities 1 to 5 mean, kind by kind; lengths are relative, so that small images suffer as large ones do."""

SEVERITIES = (1, 2, 3, 4, 5)

# Each: pixels (n, C, H, W) in [0, 1], strength, stream of random numbers -> pixels of the same shape, not clamped


def _noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=generator).to(x)


def _blur(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    sigma, side = strength * min(x.shape[-2:]), min(x.shape[-2:])
    reach = min(max(1, math.ceil(3 * sigma)), side - 1)  # a reflection needs its pixels
    return gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)


def _contrast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, strength)


def _brightness(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return x + strength


def _pixelate(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    height, width = x.shape[-2:]
    edge = max(2, math.ceil(strength * min(height, width)))
    means = avg_pool2d(x, edge, ceil_mode=True, count_include_pad=False)
    return means.repeat_interleave(edge, -2).repeat_interleave(edge, -1)[..., :height, :width]


def _jpeg(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    pixels = (255 * x).round().to(torch.uint8).movedim(1, -1).cpu().numpy()  # (n, H, W, C)
    again = np.stack([_compressed(image, round(strength)) for image in pixels])
    return torch.from_numpy(again).movedim(-1, 1).to(x) / 255


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """Return (H, W, C) uint8 as it comes back from a JPEG file."""
    file = BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


_KINDS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise, "blur": _blur, "contrast": _contrast, "brightness": _brightness, "pixelate": _pixelate,
    "jpeg": _jpeg}


def corrupt(images: Tensor | LazyImages, kind: str, severity: int, *, scale: float = 255.0, seed: int = 0) -> Tensor:
    """Return corrupted copies of images, uint8 again.

    Args:
        images: (n, C, H, W) uint8 pixels; one or three channels for "jpeg". Images that are read from files are read
            block by block; the copies are held in memory.
        kind: "noise" (Gaussian), "blur" (Gaussian), "contrast", "brightness", "pixelate" or "jpeg"; see `STRENGTHS`.
        severity: 1 to 5.
        scale: the largest value of a pixel: 255, or 16 for scikit-learn's digits (`Task.scale`).
            On images of 8 x 8 pixels neighbouring severities of "blur" and "pixelate" coincide.
        seed: of the noise; the same seed gives the same images on every device.

    Raises:
        ValueError: another kind or severity, with the choices; images of another shape; a pixel above `scale`.

    Source: the idea of kinds and severities is that of W21 section 4.4 and its reference Hendrycks & Dietterich 2019;
        kinds and strengths are ours, and numbers from them are not comparable with CIFAR-10-C or ImageNet-C.

    Examples:
        >>> images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
        >>> corrupt(images, "brightness", 2).float().mean() - images.float().mean()
        tensor(51.)
    """
    choose("kind", kind, STRENGTHS)
    choose("severity", severity, SEVERITIES)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (n, C, H, W), got {described(images)}")
    if kind == "jpeg" and images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels for kind 'jpeg', got {images.shape[1]}")
    generator, done = torch.Generator().manual_seed(seed), []
    for part in images.split(1000):
        if part.numel() and int(part.max()) > scale:
            raise ValueError(f"scale must be the largest value of a pixel, got {scale:g} for a pixel of "
                             f"{int(part.max())}")
        damaged = _KINDS[kind](part.float() / scale, STRENGTHS[kind][severity - 1], generator)
        done.append((damaged.clamp(0, 1) * scale).round().to(torch.uint8))  # floating point for one block at a time
    return torch.cat(done)


def corrupted(task: Task, kind: str, severity: int, *, seed: int = 0) -> Task:
    """Return the task with its test images corrupted; what is trained on, and batch-norm statistics, stay clean.

    Args:
        task: images.
        kind, severity, seed: as in `corrupt`.

    Raises:
        ValueError: another kind or severity, or a text.

    Source: W21 section 4.4 and appendix G: networks trained on clean images are tested on corrupted ones.
    """
    if task.is_text:
        raise ValueError(f"task must hold images to be corrupted, got the text {task.name!r}")
    images = corrupt(task.test.images, kind, severity, scale=task.scale, seed=seed)
    note = f"{task.note}; test images with {kind} of severity {severity}"
    return replace(task, test=Split(images, task.test.labels), note=note, fingerprint="")


def load_corrupted(task: Task, folder: str | Path, kind: str, severity: int) -> Task:
    """Return the task with the test images of a folder in the layout of CIFAR-10-C, or of ImageNet-C.

    Args:
        task: the clean data; its test split says which images belong to a severity, and how large they are.
        folder: CIFAR-10-C's has a file ``<kind>.npy`` for each kind, uint8 (5 n, H, W, C), severity after severity, and
            ``labels.npy`` (5 n,). ImageNet-C's and Tiny-ImageNet-C's has image files
            ``<kind>/<severity>/<class>/<file>`` for a task of a folder of images. They are held in memory or read batch
            by batch as the clean ones are.
        kind: name of a file or folder, such as "gaussian_noise".
        severity: 1 to 5.

    Raises:
        FileNotFoundError: the folder is absent or empty; the kind, the labels, a class or an image is not there, naming
            it; with the kinds that are.
        ValueError: arrays of another type or shape, labels that are not those of the test split, another severity, a
            class that the task lacks, or with more or fewer images than the clean one.

    Source: W21 section 4.4 and Appendix G; the layouts are those of Hendrycks & Dietterich 2019.
    """
    choose("severity", severity, SEVERITIES)
    place = Path(folder).expanduser()
    if not place.is_dir() or not any(place.iterdir()):
        wrong = "no folder" if place.exists() else "absent"
        raise FileNotFoundError(f"folder must hold corrupted images, as CIFAR-10-C's or ImageNet-C's does once it is "
                                f"unpacked; {place} is {'empty' if place.is_dir() else wrong}")
    note = f"{task.note}; test images from {place.name}, {kind} of severity {severity}"
    found = _from_files(task, place, kind, severity) if (place / kind).is_dir() else _from_arrays(task, place, kind,
                                                                                                  severity)
    return replace(task, test=Split(found.to(task.test.images.device), task.test.labels), note=note, fingerprint="")


def _from_arrays(task: Task, place: Path, kind: str, severity: int) -> Tensor:
    """Return the images (n, C, H, W) of one severity in a file of CIFAR-10-C's."""
    n, files = len(task.test), {name: place / f"{name}.npy" for name in (kind, "labels")}
    kinds = sorted(file.stem for file in place.glob("*.npy") if file.stem != "labels")
    folders = sorted(each.name for each in place.iterdir() if each.is_dir())
    for name, file in files.items():
        if not file.is_file():
            there = kinds or folders
            listed = f"; there are {', '.join(there)}{did_you_mean(name, there)}" if there else ""
            raise FileNotFoundError(f"{file.name if kinds or not folders else name} is not in {place}{listed}")
    images, labels = (np.load(files[name], mmap_mode="r", allow_pickle=False) for name in (kind, "labels"))
    channels, *sides = task.input_shape
    if images.dtype != np.uint8 or images.shape != (5 * n, *sides, channels) or labels.shape != (5 * n,):
        raise ValueError(f"{files[kind].name} must be uint8 {(5 * n, *sides, channels)} with {5 * n} labels, for "
                         f"{n} test images at 5 severities; got {images.dtype} {images.shape} and {labels.shape}")
    rows = slice((severity - 1) * n, severity * n)
    if not torch.from_numpy(labels[rows].astype(np.int64)).equal(task.test.labels.cpu()):
        raise ValueError(f"labels.npy must hold the labels of {task.name}'s test images in their order, got others")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images[rows], -1, 1)))


def _from_files(task: Task, place: Path, kind: str, severity: int) -> Tensor | LazyImages:
    """Return the images of one severity in a folder of ImageNet-C's, in the order of the clean ones."""
    if not task.class_names:
        raise ValueError(f"task must come from a folder of images, whose classes have names, to be tested on those in "
                         f"{place.name}; got {task.name!r}")
    folder = place / kind / str(severity)
    if not folder.is_dir():
        raise FileNotFoundError(f"{kind}/{severity} is not in {place}")
    part, clean = listed(folder, task.class_names), task.test
    index = _as_clean(part, clean, task.class_names)
    names = tuple(f"{kind}/{severity}/{name}" for name in part.names)
    files = LazyImages(place, names, part.sizes, task.input_shape[1], clean.images.device).rows(index)
    return files if clean.is_lazy else files[:]


def _as_clean(part: Listing, clean: Split, classes: tuple[str, ...]) -> Tensor:
    """Return which files stand for the clean images: those of their names, or, where none has, as many of each class.

    ImageNet-C's files have the names of ImageNet's, Tiny-ImageNet-C's have names of their own.
    """
    labels = clean.labels.cpu()
    if isinstance(clean.images, LazyImages):
        pairs = zip(part.labels.tolist(), part.names, strict=True)
        there = {(label, Path(name).stem): i for i, (label, name) in enumerate(pairs)}
        wanted = [(label, Path(name).stem) for label, name in zip(labels.tolist(), clean.images.names, strict=True)]
        missing = [(label, stem) for label, stem in wanted if (label, stem) not in there]
        if 0 < len(missing) < len(wanted):
            label, stem = missing[0]
            raise FileNotFoundError(f"{part.folder} must have every clean test image, got {len(missing)} of "
                                    f"{len(wanted)} missing, first {classes[label]}/{stem}")
        if not missing:
            return torch.tensor([there[key] for key in wanted])
    counts, wanted_counts = (torch.bincount(each, minlength=len(classes)) for each in
                             (torch.from_numpy(part.labels), labels))
    if len(wrong := (counts != wanted_counts).nonzero()):
        label = int(wrong[0])
        kind = ValueError if counts[label] > wanted_counts[label] else FileNotFoundError
        raise kind(f"{part.folder / classes[label]} must have {int(wanted_counts[label])} images, as many as the clean "
                   f"test split has of this class, got {int(counts[label])}")
    return labels.argsort(stable=True).argsort()  # the files lie class after class
