"""The products of images with the first layers of dense networks, made of what costs least."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lossland.errors import choose
from lossland.products import ByteProduct, packed, product
from lossland.tasks import Task

PRECISIONS = ("float32", "bfloat16")
_WORTH = 10_000  # images for which bytes save the time that it takes to pack them: 26 ns a weight, 2.4 ps an image


def check_precision(precision: str | None) -> None:
    """Raise unless this is None or the name of a precision.

    Raises:
        ValueError: listing the names.
    """
    if precision is not None:
        choose("precision", precision, PRECISIONS)


class FirstLayers:
    """Pre-activations of images under k first layers, dense ones that read pixels.

    Attributes:
        product: what the products are made of: "int8 x 3" for many uint8 images where `ByteProduct` serves ("float32 +
            int8 x 3" where it does for some of the layers only), "bfloat16" if asked for, else the type of the weights.
        width: units of all layers.
    """

    def __init__(self, task: Task, layers: Sequence[tuple[Tensor, Tensor | None]],
                 precision: str | None = None, *, images: int = _WORTH) -> None:
        """Prepare layers.

        Args:
            task: what the images come from; it says how they are normalised.
            layers: weight (n, D) and bias (n,), or None, of each.
            precision: None: as the weights, by bytes where that is as exact; "float32": as the weights, never by bytes;
                "bfloat16": images, weights and products are rounded to 8 bits.
            images: how many will come: bytes must be worth it.

        Raises:
            ValueError: for layers that read another number of pixels than images have.
        """
        pixels, reads = math.prod(task.input_shape), layers[0][0].shape[1]
        if reads != pixels:
            raise ValueError(f"the first layer must take the {pixels} numbers of an input {task.input_shape} of task "
                             f"{task.name!r}, its weight has {reads} columns")
        self.task, self.dtype = task, layers[0][0].dtype
        self._sizes = [len(weight) for weight, _ in layers]
        self.width = sum(self._sizes)
        low = self._low = torch.bfloat16 if precision == "bfloat16" else self.dtype
        self._fast = [None if precision or images < _WORTH else self._bytes(*layer) for layer in layers]
        if layers[0][0].device.type != "cpu":  # one large product keeps a GPU busier than several
            layers = [tuple(None if None in parts else torch.cat(parts) for parts in zip(*layers, strict=True))]
        every = self._fast if len(layers) == len(self._fast) else [None]
        self._full = [None if fast else (packed(weight.to(low)), None if bias is None else bias.to(low))
                      for fast, (weight, bias) in zip(every, layers, strict=True)]
        names = {fast.name if fast else str(low).removeprefix("torch.") for fast in self._fast}
        self.product = " + ".join(sorted(names))

    def _bytes(self, weight: Tensor, bias: Tensor | None) -> ByteProduct | None:
        task = self.task
        if task.is_text or weight.shape[1] != task.train.images[0].numel():
            return None
        each = weight.shape[1] // len(task.std)  # pixels of a channel
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (task.mean, task.std))
        factor, shift = ((1 / (task.scale * std)).repeat_interleave(each), (-mean / std).repeat_interleave(each))
        return ByteProduct.of(weight, bias, factor, shift)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return k pre-activations (N, n) of uint8 images (N, C, H, W) as they came, in the type of the weights."""
        flat = pixels.flatten(1)
        if all(self._fast):
            return [fast(flat) for fast in self._fast]
        images = packed(self.task.prepare(pixels, self._low).flatten(1))
        if len(self._full) < len(self._fast):
            return list(product(images, *self._full[0]).to(self.dtype).split(self._sizes, dim=1))
        return [fast(flat) if fast else product(images, *full).to(self.dtype)
                for fast, full in zip(self._fast, self._full, strict=True)]
