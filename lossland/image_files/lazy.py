"""Images that stay in their files until a batch asks for them: for data sets that do not fit in memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from lossland.image_files.decoding import centred, cropped, filled, opened, random_box

Pick = slice | Tensor
P = TypeVar("P")

AHEAD = 2  # batches that are read while another one is worked on


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Image files that stand where a tensor (n, 3, side, side) uint8 would: pixels come when it is indexed.

    Attributes:
        folder: that `names` are relative to.
        names: of the n files.
        sizes: of the n files, in bytes.
        side: of the images, in pixels; see `decoding.centred`.
        device: where pixels go.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    side: int
    device: torch.device

    dtype = torch.uint8
    ndim = 4

    @property
    def shape(self) -> torch.Size:
        """(n, 3, side, side)."""
        return torch.Size((len(self.names), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LazyImages({len(self)} files in {self.folder.name}, {self.side} x {self.side}, to {self.device})"

    def __getitem__(self, pick: Pick) -> Tensor:
        """Return the pixels (b, 3, side, side) uint8 of a slice or of indices (b,), on the device.

        Raises:
            ValueError: for a file that cannot be read, naming it.
        """
        pixels = filled(lambda i: centred(self._opened(i), self.side), self._numbers(pick), self.side)
        return torch.from_numpy(pixels).to(self.device)

    def resized_crops(self, pick: Pick, seeds: Tensor) -> Tensor:
        """Return random parts (b, 3, side, side) uint8 of the whole files, as `random_box` draws them.

        Args:
            pick: a slice or indices (b,).
            seeds: (b,) int64, one for each image.
        """
        numbers, draws = self._numbers(pick), seeds.tolist()

        def part(place: int) -> object:
            image = self._opened(numbers[place])
            return cropped(image, random_box(*image.size, draws[place]), self.side)

        return torch.from_numpy(filled(part, range(len(numbers)), self.side)).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels block after block, the next ones being read ahead, as `torch.Tensor.split` cuts them."""
        yield from read_ahead(self.__getitem__, (slice(i, i + size) for i in range(0, len(self), size)))

    def to(self, device: torch.device | str) -> LazyImages:
        """Return the same files with another device for their pixels."""
        return replace(self, device=torch.empty(0, device=device).device)  # "cuda" becomes "cuda:0", as for tensors

    def rows(self, index: Tensor) -> LazyImages:
        """Return some of the files, none of them read."""
        numbers = index.tolist()
        return replace(self, names=tuple(self.names[i] for i in numbers), sizes=tuple(self.sizes[i] for i in numbers))

    def fingerprint(self) -> bytes:
        """Return a digest of names and sizes of the files; no file is opened."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\0".encode())
        return digest.digest()

    def _opened(self, number: int) -> Image.Image:
        return opened(self.folder / self.names[number])

    def _numbers(self, pick: Pick) -> Sequence[int]:
        return range(len(self))[pick] if isinstance(pick, slice) else pick.tolist()


def rows(images: Tensor | LazyImages, index: Tensor) -> Tensor | LazyImages:
    """Return some of the images, a tensor or files."""
    return images.rows(index) if isinstance(images, LazyImages) else images[index]


def resized_crops(images: Tensor | LazyImages, pick: Pick, seeds: Tensor) -> Tensor:
    """Return random parts of images, resized to their size: of the whole files, or of the pixels that are there.

    Both are the same where the files have the size of the images.

    Args:
        images: (n, 3, S, S) uint8, or files.
        pick: a slice or indices (b,).
        seeds: (b,) int64.

    Returns:
        (b, 3, S, S) uint8 on the device of the images; worked out on the CPU.
    """
    if isinstance(images, LazyImages):
        return images.resized_crops(pick, seeds)
    here, draws, side = images[pick].movedim(1, -1).cpu().numpy(), seeds.tolist(), images.shape[-1]

    def part(place: int) -> object:
        return cropped(Image.fromarray(here[place]), random_box(side, side, draws[place]), side)

    return torch.from_numpy(filled(part, range(len(draws)), side)).to(images.device)


def read_ahead(read: Callable[[P], Tensor], picks: Iterable[P]) -> Iterator[Tensor]:
    """Yield what `read` gives for each pick, in order, the next `AHEAD` of them being read by a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Tensor]] = deque()
        try:
            for pick in picks:
                waiting.append(pool.submit(read, pick))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
