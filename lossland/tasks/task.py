"""The task: images normalised, shuffled and augmented batch by batch where they live; words of a text."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lossland.devices import pick_device
from lossland.errors import choose
from lossland.image_files import read_ahead, resized_crops
from lossland.sampling import draw_crops, draw_seeds, flip_crop
from lossland.splits import Split, described, fingerprint

SPLITS = ("train", "test", "validation")
AUGMENTATIONS = ("none", "flip-crop", "resized-crop")


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: images and how they are normalised and augmented; or words of a text.

    Images are resident on the device, or, where they do not fit in memory, stay in their files until a batch asks for
    them (`Split.is_lazy`); both give the same batches.

    A text is a classification task with as many classes as words: a network sees windows (b, L) of words and gives
    logits (b, C, L) for the words that follow.

    Attributes:
        name: Name of the data set, or of the file.
        train, test, validation: The splits; nothing is ever tuned on ``test``.
        classes: Labels are 0..classes - 1.
        scale: Pixels are divided by this first.
        mean, std: Per channel, after scaling: a network sees (pixel / scale - mean) / std.
        augment: "none", "flip-crop" (`flip_crop`) or "resized-crop" (`image_files.resized_crops`: of the whole file
            where images are read from files), for training batches that ask for it.
        note: One sentence about the data, for tables.
        words: Of a text: the vocabulary; word i of images and labels is words[i]. Scale, mean and std are 1, () and ().
        class_names: Of a folder of images: the classes' names, in the order of the labels; else none.
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
    words: tuple[str, ...] = field(default=(), repr=False)
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        choose("augment", self.augment, AUGMENTATIONS)
        channels = 0 if self.is_text else self.input_shape[0]
        if not len(self.mean) == len(self.std) == channels or min(self.std, default=1) <= 0 or self.scale <= 0:
            raise ValueError(f"mean and std must have one value per channel ({channels}), std and scale "
                             f"must be > 0, got mean {self.mean}, std {self.std}, scale {self.scale}")
        if self.augment == "resized-crop" and (channels != 3 or self.input_shape[1] != self.input_shape[2]):
            raise ValueError(f"augment='resized-crop' needs square images of 3 channels, got {self.input_shape}")
        if self.is_text and (self.augment != "none" or len(self.words) != self.classes):
            raise ValueError(f"a text must have augment 'none' and {self.classes} words, one per class, "
                             f"got {self.augment!r} and {len(self.words)} words")
        for name, part in self._parts():
            part.check(name, self.input_shape, self.classes)
        if not self.fingerprint:
            facts = (self.classes, self.scale, self.mean, self.std, self.augment)
            object.__setattr__(self, "fingerprint", fingerprint(facts, self._parts()))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image; (L,) of a window of words."""
        return tuple(self.train.images.shape[1:])

    @property
    def is_text(self) -> bool:
        """Return whether the inputs are words."""
        return self.train.is_text

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ValueError: Another name than "train", "test" and "validation", or no validation split was asked for.
        """
        part = getattr(self, choose("split", name, SPLITS))
        if part is None:
            raise ValueError(f"task {self.name!r} has the splits 'train', 'test' and no 'validation': ask for one with "
                             "load_task(..., validation=0.1) or task.hold_out(0.1), and train on that")
        return part

    def prepare(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return normalised images, one multiply-add each.

        Args:
            images: (n, C, H, W) pixels, uint8, or floating point on the same scale (corrupted or mixed images); of a
                text (n, L) int64 words.
            dtype: Type of the result; words stay what they are.

        Returns:
            (n, C, H, W) (pixel / scale - mean) / std, on the device of ``images``; words as they came.

        Raises:
            TypeError: Neither uint8 nor floating point; words that are not int64; all the images of a split that stay
                in their files: pass some of them, ``images[:1000]``.
            ValueError: Another shape, or NaN or infinite pixels.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {images!r}: take some of them, such as images[:1000], or "
                            "task.batches(split, batch_size=...), which are prepared")
        if images.ndim != len(self.input_shape) + 1 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(f"images must be (n, {', '.join(map(str, self.input_shape))}), got {described(images)}")
        if self.is_text:
            if images.dtype != torch.int64:
                raise TypeError(f"words must be int64, got {images.dtype}")
            return images
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
        device, order, draws = part.labels.device, None, None
        if generator is not None:
            order = torch.randperm(len(part), generator=generator).to(device)
        if augment and self.augment == "flip-crop":
            draws = draw_crops(len(part), generator).to(device)
        elif augment and self.augment == "resized-crop":
            draws = draw_seeds(len(part), generator)
        return self._iterate(part, [slice(i, min(i + batch_size, stop)) for i in range(0, stop, batch_size)],
                             order, draws, dtype)

    def to(self, device: str | torch.device) -> "Task":
        """Return the task with its images on another device; the fingerprint stays.

        Raises:
            ValueError: A device that is not there.
        """
        place = pick_device(device)
        moved = {name: part.to(place) for name, part in self._parts()}
        return replace(self, **moved)

    def subset(self, train: int | None = None, test: int | None = None) -> "Task":
        """Return a smaller task: the first images of every class, the classes as even as they can be, in their order.

        Of a text the first windows; the vocabulary stays.

        Args:
            train: Number of training images; None: all.
            test: Number of test images; None: all.

        Raises:
            ValueError: A number below 1 or above what there is.
        """
        wanted = {"train": train, "test": test}
        chosen = {name: self.split(name).first(n, name) for name, n in wanted.items() if n is not None}
        sizes = ", ".join(f"{len(part)} {name} {part.kind}" for name, part in chosen.items())
        even = "" if self.is_text else ", even over the classes"
        note = f"{self.note}; the first {sizes}{even}" if sizes else self.note
        return replace(self, **chosen, note=note, fingerprint="")

    def hold_out(self, validation: int | float = 0.1, seed: int = 0) -> "Task":
        """Return the task with a validation split taken off the training split, as `load_task(..., validation)` does.

        Networks have to be trained on the task that comes back: others have seen the images held out.

        Args:
            validation: Number of images, or a fraction between 0 and 1.
            seed: Which ones. Labels that were redrawn stay so, in the validation split too.

        Raises:
            ValueError: There is a validation split, or a size that leaves one side empty.
        """
        if self.validation is not None:
            raise ValueError(f"task {self.name!r} has a validation split, {self.validation}")
        train, held = self.train.parted(validation, seed)
        return replace(self, train=train, validation=held, fingerprint="")

    @cached_property
    def _affine(self) -> Tensor:
        """(2, C, 1, 1) factor and shift, in float64 where the training images are."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return torch.stack([1 / (self.scale * std), -mean / std])[:, :, None, None].to(self.train.images.device)

    def _parts(self) -> list[tuple[str, Split]]:
        return [(name, getattr(self, name)) for name in SPLITS if getattr(self, name) is not None]

    def _iterate(self, part: Split, windows: list[slice], order: Tensor | None, draws: Tensor | None,
                 dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        def read(window: slice) -> Tensor:
            pick = window if order is None else order[window]
            if draws is None:
                return part.images[pick]
            if self.augment == "resized-crop":
                return resized_crops(part.images, pick, draws[window])
            return flip_crop(part.images[pick], draws[:, window])

        batches = read_ahead(read, windows) if part.is_lazy else map(read, windows)
        for window, images in zip(windows, batches, strict=True):
            yield self.prepare(images, dtype), part.labels[window if order is None else order[window]]
