"""The papers' networks, each with the `layers()` that say which rows and columns belong to one unit.

Every network takes `inputs`, the (C, H, W) of one image, and `classes`; sizes default to the papers' and scale down.
All activations are ReLU. Weights are not part of a network's identity: draw them with `initial_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lossland.errors import choose
from lossland.layers import Layer
from lossland.recurrent import LSTM
from lossland.weights import Weights

Shape = tuple[int, int, int]


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
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.convs, self.pool, self.head = convs, pool, head
        self.dropout = nn.Dropout(dropout)
        self.pool_after = pool_after

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, C, H, W)."""
        maps = images
        for i, conv in enumerate(self.convs):
            maps = relu(conv(maps))
            if i in self.pool_after:
                maps = self.pool(maps)
        hidden = maps.flatten(1)
        for layer in self.head[:-1]:
            hidden = relu(layer(self.dropout(hidden)))
        return self.head[-1](hidden if len(self.head) == 1 else self.dropout(hidden))

    def layers(self) -> list[Layer]:
        """Return the weight layers in forward order."""
        modules = [f"convs.{i}" for i in range(len(self.convs))] + [f"head.{i}" for i in range(len(self.head))]
        names = [None, *(f"hidden{i}" for i in range(len(modules) - 1)), None]
        return [Layer(module, names[i], names[i + 1]) for i, module in enumerate(modules)]


class Conv2FC1(_PlainConv):
    """Two 5x5 convolutions with ReLU and 3/2 max-pooling, then one linear layer (3136 inputs for 32x32 images).

    Args:
        inputs: (C, H, W) of one image, at least 7 pixels high and wide.
        classes: number of classes.
        channels: filters of the two convolutions.

    Source: AY20 section 5.3 (32 and 64 channels).
    """

    def __init__(self, inputs: Shape, classes: int, *, channels: tuple[int, int] = (32, 64)) -> None:
        if min(inputs[1:]) < 7:
            raise ValueError(f"inputs of Conv2FC1 must be at least 7 x 7 pixels, got {inputs[1:]}")
        sizes = [inputs[0], *channels]
        convs = nn.ModuleList(nn.Conv2d(m, n, 5, padding=2) for m, n in pairwise(sizes))
        height, width = ((((side - 3) // 2 + 1) - 3) // 2 + 1 for side in inputs[1:])
        head = nn.ModuleList([nn.Linear(channels[1] * height * width, classes)])
        super().__init__(convs, {0, 1}, nn.MaxPool2d(3, 2), head)


class VGG16(_PlainConv):
    """VGG16 without batch normalisation: 13 convolutions, then 512-512-classes with dropout 0.5 in front of each hidden
    and output layer.

    Pooling rounds sizes up, so that smaller images than 32x32 work; at 32x32 it makes no difference.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        channels: filters of the first block; the paper's 64. Blocks have 1, 2, 4, 8, 8 times as many.

    Source: AY20 section 5.3 and G18 section 4; layout of Simonyan & Zisserman 2014, configuration D.
    """

    def __init__(self, inputs: Shape, classes: int, *, channels: int = 64) -> None:
        blocks = [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)]
        sizes, pool_after = [inputs[0]], set()
        for factor, repeats in blocks:
            sizes += [channels * factor] * repeats
            pool_after.add(len(sizes) - 2)
        convs = nn.ModuleList(nn.Conv2d(m, n, 3, padding=1) for m, n in pairwise(sizes))
        height, width = (math.ceil(side / 32) for side in inputs[1:])
        dense = [sizes[-1] * height * width, 8 * channels, 8 * channels, classes]
        head = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(dense))
        super().__init__(convs, pool_after, nn.MaxPool2d(2, 2, ceil_mode=True), head, dropout=0.5)


def _conv(m: int, n: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(m, n, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; `pre` puts normalisation and ReLU in front of them."""

    def __init__(self, m: int, n: int, stride: int, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.conv1, self.conv2 = _conv(m, n, 3, stride), _conv(n, n, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(m if pre else n), nn.BatchNorm2d(n)
        self.shortcut = _conv(m, n, 1, stride) if stride > 1 or m != n else None
        self.shortcut_norm = nn.BatchNorm2d(n) if self.shortcut is not None and not pre else None

    def forward(self, stream: Tensor) -> Tensor:
        """Return the next stream (n, C', H', W')."""
        if self.pre:
            inner = self.conv2(relu(self.norm2(self.conv1(relu(self.norm1(stream))))))
            return inner + (stream if self.shortcut is None else self.shortcut(stream))
        inner = self.norm2(self.conv2(relu(self.norm1(self.conv1(stream)))))
        return relu(inner + (stream if self.shortcut is None else self.shortcut_norm(self.shortcut(stream))))

    def layers(self, name: str, before: str, after: str) -> list[Layer]:
        """Return the block's weight layers between the streams `before` and `after`."""
        inner = f"{name}.inner"
        if self.pre:
            found = [Layer(f"{name}.conv1", before, inner, norm=f"{name}.norm2", pre_norm=f"{name}.norm1"),
                     Layer(f"{name}.conv2", inner, after)]
        else:
            found = [Layer(f"{name}.conv1", before, inner, norm=f"{name}.norm1"),
                     Layer(f"{name}.conv2", inner, after, norm=f"{name}.norm2")]
        if self.shortcut is not None:
            norm = None if self.pre else f"{name}.shortcut_norm"
            found.append(Layer(f"{name}.shortcut", before, after, norm=norm))
        return found


class ResNet(nn.Module):
    """Residual network for small images: one convolution, three stages of `blocks` blocks, average pooling, linear.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        blocks: blocks per stage; depth is 6 * blocks + 2.
        channels: of the first stage; the papers' 16. Stages have 1, 2 and 4 times as many.
        pre_activation: batch norm and ReLU in front of the convolutions (PreResNet) instead of behind them.
        bias: whether the output layer has a bias.

    Source: W21 Appendix D (cResNet20: blocks=3, no output bias, 272,464 parameters); AY20 Table 5 and G18 section 6
        (PreResNet110: blocks=18); He et al. 2016.
    """

    def __init__(self, inputs: Shape, classes: int, *, blocks: int = 3, channels: int = 16,
                 pre_activation: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.pre = pre_activation
        self.conv = _conv(inputs[0], channels, 3)
        self.norm = nn.BatchNorm2d(4 * channels if pre_activation else channels)
        sizes = [channels] + [channels * 2**stage for stage in range(3) for _ in range(blocks)]
        self.blocks = nn.ModuleList(_Block(m, n, 1 if m == n else 2, pre_activation) for m, n in pairwise(sizes))
        self.linear = nn.Linear(4 * channels, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, C, H, W)."""
        stream = self.conv(images) if self.pre else relu(self.norm(self.conv(images)))
        for block in self.blocks:
            stream = block(stream)
        stream = relu(self.norm(stream)) if self.pre else stream
        return self.linear(stream.mean((2, 3)))

    def layers(self) -> list[Layer]:
        """Return the weight layers in forward order."""
        stage = 0
        found = [Layer("conv", None, "stream0", norm=None if self.pre else "norm")]
        for i, block in enumerate(self.blocks):
            before = f"stream{stage}"
            stage += block.shortcut is not None
            found += block.layers(f"blocks.{i}", before, f"stream{stage}")
        return [*found, Layer("linear", f"stream{stage}", None, pre_norm="norm" if self.pre else None)]


def _mlp(inputs: Shape, classes: int, *, width: int = 2000) -> MLP:
    return MLP(inputs, classes, widths=(width,))


def _fc(inputs: Shape, classes: int, *, depth: int, first: int = 6144, second: int = 2000, rest: int = 1000) -> MLP:
    return MLP(inputs, classes, widths=(first, second, *[rest] * (depth - 3)), bias=False)


_preresnet = partial(ResNet, pre_activation=True, bias=True)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp, "fc3": partial(_fc, depth=3), "fc5": partial(_fc, depth=5), "fc7": partial(_fc, depth=7),
    "conv2fc1": Conv2FC1, "vgg16": VGG16, "cresnet20": ResNet, "preresnet20": partial(_preresnet, blocks=3),
    "preresnet110": partial(_preresnet, blocks=18), "lstm": LSTM,
}


def build(model: str, inputs: Shape, classes: int, **sizes: int | tuple[int, ...]) -> nn.Module:
    """Return an untrained network by name, on the `meta` device: a skeleton without weights.

    Args:
        model: one of `MODELS`: "mlp" (width), "fc3", "fc5", "fc7" (first, second, rest), "conv2fc1" (channels), "vgg16"
            (channels), "cresnet20", "preresnet20", "preresnet110" (blocks, channels); for texts "lstm" (hidden, layers,
            dropout).
        inputs: (C, H, W) of one image, (L,) of one window of words.
        classes: number of classes.
        **sizes: the network's own sizes; the papers' by default.

    Raises:
        ValueError: for an unknown model, with the nearest valid name; a text for a network of images.
        TypeError: for a size that the model does not have.

    Examples:
        >>> net = build("mlp", (1, 8, 8), 10, width=100)
        >>> [layer.module for layer in net.layers()]
        ['linear.0', 'linear.1']
    """
    if choose("model", model, MODELS) != "lstm" and len(inputs) != 3:
        raise ValueError(f"model must be 'lstm' for windows of words {tuple(inputs)}, got {model!r}, made for images")
    with torch.device("meta"):
        return MODELS[model](inputs, classes, **sizes)


def initial_weights(net: nn.Module, generator: torch.Generator, *, device: torch.device | str = "cpu",
                    dtype: torch.dtype = torch.float32) -> Weights:
    """Return freshly drawn weights for `net`; the global random state is not touched.

    Linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default. Convolutions: normal with variance
    2 / fan_out (He), bias 0. Normalisations: weight 1, bias 0. Embeddings: N(0, 1). Recurrent layers:
    U(-1/sqrt(h), 1/sqrt(h)) for h hidden units, PyTorch's default.

    Args:
        net: network made of such modules; it may live on the `meta` device.
        generator: CPU generator; the same draw on every device.
        device: where the weights go.
        dtype: of the weights; drawn in float32 first, so that precisions share one draw.

    Raises:
        TypeError: for a module with parameters of its own that is none of these; train such a network from weights that
            you pass yourself.

    Source: AY20's released settings; W21 Appendix D.
    """
    drawn: Weights = {}
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    for name, module in net.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape)
            if isinstance(module, (nn.Linear, nn.RNNBase)):
                bound = 1 / math.sqrt(module.in_features if isinstance(module, nn.Linear) else module.hidden_size)
                value.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.modules.conv._ConvNd):
                fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
                value.normal_(0, math.sqrt(2 / fan_out), generator=generator) if part == "weight" else value.zero_()
            elif isinstance(module, norms):
                value.fill_(1.0 if part == "weight" else 0.0)
            elif isinstance(module, nn.Embedding):
                value.normal_(generator=generator)
            else:
                raise TypeError(f"initial_weights knows linear, convolution, normalisation, embedding and recurrent "
                                f"modules, got {type(module).__name__} at {name!r}; pass initial weights yourself")
            drawn[f"{name}.{part}" if name else part] = value.to(device=device, dtype=dtype)
    return {key: drawn[key] for key, _ in net.named_parameters()}
