"""One split of a data set: images with a class each, or windows of words with the word that follows each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.image_files import LazyImages, rows
from lossland.sampling import first_of_every_class, held_out


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, on one device; for a text, windows of words and the words that follow them.

    Attributes:
        images: (n, C, H, W) uint8 pixels as they came, or (n, L) int64 words, as numbers of the vocabulary. Images that
            do not fit in memory are `LazyImages`: files, which are read when they are indexed or split.
        labels: (n,) int64 classes of the images, or (n, L) int64 words: labels[i, j] follows images[i, j].
    """

    images: Tensor | LazyImages
    labels: Tensor

    def __post_init__(self) -> None:
        text = self.images.dtype == torch.int64 and self.images.ndim == 2
        if not text and (self.images.dtype != torch.uint8 or self.images.ndim != 4):
            raise ValueError("images must be uint8 (n, C, H, W), or the words of a text as int64 (n, L), "
                             f"got {described(self.images)}")
        shape = self.images.shape if text else self.images.shape[:1]
        if self.labels.dtype != torch.int64 or self.labels.shape != shape or not self.labels.numel():
            each = "word" if text else "image"
            raise ValueError(f"labels must be int64, one for each of the {shape.numel()} {each}s and at least one, "
                             f"got {described(self.labels)}")
        if self.images.device != self.labels.device:
            raise ValueError(f"labels must be on {self.images.device} with the images, got {self.labels.device}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size, where = " x ".join(map(str, self.images.shape[1:])), "read from files, " if self.is_lazy else ""
        return f"Split({len(self)} {self.kind}, {size}, {where}on {self.images.device})"

    def first(self, n: int, name: str) -> Split:
        """Return the first n images, the classes as even as they can be, in their order; of a text the first n windows.

        Args:
            n: how many.
            name: of the split, for the message.

        Raises:
            ValueError: a number below 1 or above what there is.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"{name} must be a number of {self.kind} in 1..{len(self)}, got {n}")
        chosen = torch.arange(n, device=self.labels.device) if self.is_text else first_of_every_class(self.labels, n)
        return self.rows(chosen)

    def parted(self, share: int | float, seed: int) -> tuple[Split, Split]:
        """Return the split without a part of it, and that part: a number of images or a fraction, drawn by a seed.

        Raises:
            ValueError: for a size that leaves one side empty.
        """
        order, rest = (torch.from_numpy(part).to(self.labels.device) for part in held_out(len(self), share, seed))
        if not len(rest):
            raise ValueError(f"validation must be a number of {self.kind} >= 1 or a fraction > 0, got {share!r}")
        return self.rows(order), self.rows(rest)

    def rows(self, index: Tensor) -> Split:
        """Return some of the inputs with their labels."""
        return Split(rows(self.images, index), self.labels[index])

    def to(self, device: torch.device) -> Split:
        """Return the split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def check(self, name: str, shape: tuple[int, ...], classes: int) -> None:
        """Raise unless the inputs have a shape and the labels, of a text the words too, are below `classes`.

        Raises:
            ValueError: naming the split, what was expected and what came.
        """
        if self.images.shape[1:] != shape:
            raise ValueError(f"{name} images must have the shape {shape} of the training images, "
                             f"got {tuple(self.images.shape[1:])}")
        for kind in ("images", "labels") if self.is_text else ("labels",):
            low, high = (int(value) for value in getattr(self, kind).aminmax())
            if low < 0 or high >= classes:
                raise ValueError(f"{name} {kind} must be in 0..{classes - 1}, got {low if low < 0 else high}")

    @property
    def is_text(self) -> bool:
        """Return whether it holds windows of words."""
        return self.images.ndim == 2

    @property
    def is_lazy(self) -> bool:
        """Return whether the images are read from their files batch by batch."""
        return isinstance(self.images, LazyImages)

    @property
    def kind(self) -> str:
        """Return what it holds, for messages: "images" or "windows"."""
        return "windows" if self.is_text else "images"


def fingerprint(facts: tuple[object, ...], parts: Iterable[tuple[str, Split]]) -> str:
    """Return 16 hexadecimal digits of the sha256 of facts and named splits, the same on every device.

    Images that are read from files are told by the names and sizes of the files.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for name, part in parts:
        digest.update(repr((name, tuple(part.images.shape))).encode())
        images = part.images
        digest.update(images.fingerprint() if isinstance(images, LazyImages) else images.cpu().contiguous().numpy())
        digest.update(part.labels.cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def described(tensor: Tensor) -> str:
    """Return type and shape of a tensor, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
