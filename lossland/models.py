"""The papers' networks, each with the `layers()` that say which rows and columns belong to one unit.

Every network takes `inputs`, the (C, H, W) of one image, and `classes`; sizes default to the papers' and scale down.
All activations are ReLU. Weights are not part of a network's identity: draw them with `initial_weights`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lossland.errors import choose
from lossland.initial import initial_weights
from lossland.layers import Layer
from lossland.normalisation import NORMS, channel_norm, check_permutable
from lossland.recurrent import LSTM
from lossland.residual import ResNet, Shape, bottleneck50

__all__ = ["MODELS", "Conv2FC1", "Conv3FC3", "MLP", "Shape", "VGG16", "build", "initial_weights"]


class MLP(nn.Module):
    """Dense ReLU network on flattened images.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        widths: units of each hidden layer.
        bias: whether layers have biases.

    Source: AY20 section 5.1 (one hidden layer of 2000 with biases), section 5.2 and Table 4 (FC3/5/7 without biases).
    """

    def __init__(self, inputs: Shape, classes: int, *, widths: tuple[int, ...] = (2000,), bias: bool = True) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must hold at least one positive number of units, got {widths}")
        sizes = [math.prod(inputs), *widths, classes]
        self.linear = nn.ModuleList(nn.Linear(m, n, bias=bias) for m, n in pairwise(sizes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, C, H, W)."""
        hidden = images.flatten(1)
        for layer in self.linear[:-1]:
            hidden = relu(layer(hidden))
        return self.linear[-1](hidden)

    def layers(self) -> list[Layer]:
        """Return the weight layers in forward order."""
        names = [None, *(f"hidden{i}" for i in range(len(self.linear) - 1)), None]
        return [Layer(f"linear.{i}", names[i], names[i + 1]) for i in range(len(self.linear))]


class _PlainConv(nn.Module):
    """Convolutions with ReLU and pooling, then dense layers: shared by the networks without skip connections."""

    def __init__(self, convs: nn.ModuleList, pool_after: set[int], pool: nn.Module, head: nn.ModuleList,
                 dropout: float = 0.0, *, norm: str = "none") -> None:
        super().__init__()
        self.convs, self.pool, self.head = convs, pool, head
        self.dropout = nn.Dropout(dropout)
        self.pool_after = pool_after
        if choose("norm", norm, ("none", *NORMS)) != "none":
            self.norms = nn.ModuleList(channel_norm(norm, conv.out_channels) for conv in convs)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, C, H, W)."""
        maps = images
        for i, conv in enumerate(self.convs):
            maps = conv(maps)
            maps = relu(self.norms[i](maps) if hasattr(self, "norms") else maps)
            if i in self.pool_after:
                maps = self.pool(maps)
        hidden = maps.flatten(1)
        for layer in self.head[:-1]:
            hidden = relu(layer(self.dropout(hidden)))
        return self.head[-1](self.dropout(hidden))

    def layers(self) -> list[Layer]:
        """Return the weight layers in forward order.

        Raises:
            ValueError: if there are group norms of several groups, whose units cannot be permuted.
        """
        check_permutable(self)
        modules = [f"convs.{i}" for i in range(len(self.convs))] + [f"head.{i}" for i in range(len(self.head))]
        names = [None, *(f"hidden{i}" for i in range(len(modules) - 1)), None]
        norms = [f"norms.{i}" for i in range(len(self.convs))] if hasattr(self, "norms") else []
        norms += [None] * (len(modules) - len(norms))
        return [Layer(module, names[i], names[i + 1], norms[i]) for i, module in enumerate(modules)]


class Conv2FC1(_PlainConv):
    """Two 5x5 convolutions with ReLU and 3/2 max-pooling, then one linear layer (3136 inputs for 32x32 images).

    Args:
        inputs: (C, H, W) of one image, at least 7 pixels high and wide.
        classes: number of classes.
        channels: filters of the two convolutions.
        norm: "none"; "batch", "group" or "layer" between a convolution, which then has no bias, and its ReLU, see
            `normalisation.channel_norm`.
        dropout: fraction of the linear layer's inputs that is dropped.

    Source: AY20 section 5.3 (32 and 64 channels; neither norms nor dropout).
    """

    def __init__(self, inputs: Shape, classes: int, *, channels: tuple[int, int] = (32, 64), norm: str = "none",
                 dropout: float = 0.0) -> None:
        if min(inputs[1:]) < 7:
            raise ValueError(f"inputs of Conv2FC1 must be at least 7 x 7 pixels, got {inputs[1:]}")
        sizes = [inputs[0], *channels]
        convs = nn.ModuleList(nn.Conv2d(m, n, 5, padding=2, bias=norm == "none") for m, n in pairwise(sizes))
        height, width = ((((side - 3) // 2 + 1) - 3) // 2 + 1 for side in inputs[1:])
        head = nn.ModuleList([nn.Linear(channels[1] * height * width, classes)])
        super().__init__(convs, {0, 1}, nn.MaxPool2d(3, 2), head, dropout, norm=norm)


class Conv3FC3(_PlainConv):
    """Three 5x5 convolutions with ReLU and 3/2 max-pooling, then three dense layers of 1000 K units, the classes last.

    Maps smaller than 3 pixels are not pooled, so that small images work.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        channels: filters of the three convolutions.
        width: units of the dense hidden layers.
        factor: K, which scales `width` (and, as in the paper, the dense layers alone).

    Raises:
        ValueError: if `factor` times `width` is less than one unit.

    Source: G18 section 4.2, Fig. 3 (K of 0.3, 0.5, 0.8, 1) and Table 2; filters as in the released code.
    """

    def __init__(self, inputs: Shape, classes: int, *, channels: tuple[int, int, int] = (32, 64, 128),
                 width: int = 1000, factor: float = 1.0) -> None:
        units = round(factor * width)
        if units < 1:
            raise ValueError(f"factor times width must be at least one unit, got {factor} * {width}")
        convs = nn.ModuleList(nn.Conv2d(m, n, 5, padding=2) for m, n in pairwise([inputs[0], *channels]))
        (height, wide), pool_after = inputs[1:], set()
        for i in range(3):
            if min(height, wide) >= 3:
                pool_after.add(i)
                height, wide = (height - 1) // 2, (wide - 1) // 2
        sizes = [channels[-1] * height * wide, units, units, classes]
        head = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(sizes))
        super().__init__(convs, pool_after, nn.MaxPool2d(3, 2), head)


class VGG16(_PlainConv):
    """VGG16 without batch normalisation: 13 convolutions, then 512-512-classes with dropout in front of each hidden and
    output layer.

    Pooling rounds sizes up, so that smaller images than 32x32 work; at 32x32 it makes no difference.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        channels: filters of the first block; the paper's 64. Blocks have 1, 2, 4, 8, 8 times as many.
        dropout: fraction dropped; a network of few channels wants less.

    Source: AY20 section 5.3 and G18 section 4; layout of Simonyan & Zisserman 2014, configuration D.
    """

    def __init__(self, inputs: Shape, classes: int, *, channels: int = 64, dropout: float = 0.5) -> None:
        blocks = [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)]
        sizes, pool_after = [inputs[0]], set()
        for factor, repeats in blocks:
            sizes += [channels * factor] * repeats
            pool_after.add(len(sizes) - 2)
        convs = nn.ModuleList(nn.Conv2d(m, n, 3, padding=1) for m, n in pairwise(sizes))
        height, width = (math.ceil(side / 32) for side in inputs[1:])
        dense = [sizes[-1] * height * width, 8 * channels, 8 * channels, classes]
        head = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(dense))
        super().__init__(convs, pool_after, nn.MaxPool2d(2, 2, ceil_mode=True), head, dropout)


def _mlp(inputs: Shape, classes: int, *, width: int = 2000) -> MLP:
    return MLP(inputs, classes, widths=(width,))


def _fc(inputs: Shape, classes: int, *, depth: int, first: int = 6144, second: int = 2000, rest: int = 1000) -> MLP:
    return MLP(inputs, classes, widths=(first, second, *[rest] * (depth - 3)), bias=False)


_preresnet = partial(ResNet, pre_activation=True, bias=True)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp, "fc3": partial(_fc, depth=3), "fc5": partial(_fc, depth=5), "fc7": partial(_fc, depth=7),
    "conv2fc1": Conv2FC1, "vgg16": VGG16, "cresnet20": ResNet, "preresnet20": partial(_preresnet, blocks=3),
    "preresnet110": partial(_preresnet, blocks=18), "lstm": LSTM, "3conv3fc": Conv3FC3,
    "resnet158": partial(_preresnet, blocks=26), "resnet164": partial(_preresnet, blocks=18, bottleneck=True),
    "wrn28x10": partial(_preresnet, blocks=4, widen=10),
    "resnet50": bottleneck50, "wide_resnet50_2": partial(bottleneck50, width=128),
}


def _check_sizes(model: str, sizes: Mapping[str, Any]) -> None:
    """Refuse names that the model does not have and values of another type than the model's own."""
    parameters = inspect.signature(MODELS[model]).parameters.values()
    known = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    for name, value in sizes.items():
        default = known[choose(f"size of {model!r}", name, known)]
        if not _alike(value, default):
            raise TypeError(f"{name} must be of the kind of {default!r}, got {value!r} ({type(value).__name__})")


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        listed = isinstance(value, (tuple, list)) and len(value) == len(default)
        return listed and all(map(_alike, value, default))
    if isinstance(default, str):
        return isinstance(value, str)
    kind = Real if isinstance(default, float) else Integral
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)


def build(model: str, inputs: Shape, classes: int, **sizes: float | str | tuple[int, ...]) -> nn.Module:
    """Return an untrained network by name, on the `meta` device: a skeleton without weights.

    Args:
        model: one of `MODELS`: "mlp" (width), "fc3", "fc5", "fc7" (first, second, rest), "conv2fc1" (channels, norm,
            dropout), "3conv3fc" (channels, width, factor), "vgg16" (channels, dropout), "cresnet20", "preresnet20",
            "preresnet110", "resnet158", "resnet164" (blocks, channels, norm, dropout), "wrn28x10" (and widen),
            "resnet50" and "wide_resnet50_2" (norm, width: torchvision's, whose layers are traced); for texts "lstm"
            (hidden, layers, dropout).
        inputs: (C, H, W) of one image, (L,) of one window of words.
        classes: number of classes.
        **sizes: the network's own sizes; the papers' by default.

    Raises:
        ValueError: for an unknown model or size, with the nearest valid name; a text for a network of images.
        TypeError: for a size of another type than the model's own.

    Examples:
        >>> net = build("mlp", (1, 8, 8), 10, width=100)
        >>> [layer.module for layer in net.layers()]
        ['linear.0', 'linear.1']
    """
    if choose("model", model, MODELS) != "lstm" and len(inputs) != 3:
        raise ValueError(f"model must be 'lstm' for windows of words {tuple(inputs)}, got {model!r}, made for images")
    _check_sizes(model, sizes)
    with torch.device("meta"):
        return MODELS[model](inputs, classes, **sizes)
