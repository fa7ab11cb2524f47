"""One split of a data set: images with a class each, or windows of words with the word that follows each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.sampling import first_of_every_class


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, on one device; for a text, windows of words and the words that follow them.

    Attributes:
        images: (n, C, H, W) uint8 pixels as they came, or (n, L) int64 words, as numbers of the vocabulary.
        labels: (n,) int64 classes of the images, or (n, L) int64 words: labels[i, j] follows images[i, j].
    """

    images: Tensor
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
        return f"Split({len(self)} {self.kind}, {' x '.join(map(str, self.images.shape[1:]))}, on {self.images.device})"

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
        return Split(self.images[chosen], self.labels[chosen])

    @property
    def is_text(self) -> bool:
        """Return whether it holds windows of words."""
        return self.images.ndim == 2

    @property
    def kind(self) -> str:
        """Return what it holds, for messages: "images" or "windows"."""
        return "windows" if self.is_text else "images"


def described(tensor: Tensor) -> str:
    """Return type and shape of a tensor, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
