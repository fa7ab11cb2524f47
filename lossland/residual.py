"""Residual networks: ours for small images, with the `layers()` that say which rows and columns belong to one unit, and
torchvision's for ImageNet, whose layers are traced."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from lossland.errors import choose
from lossland.layers import Layer
from lossland.normalisation import NORMS, channel_norm, check_permutable

Shape = tuple[int, int, int]


def _conv(m: int, n: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(m, n, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Two 3x3 convolutions with norms and a shortcut; `pre` puts normalisation and ReLU in front of them."""

    def __init__(self, m: int, n: int, stride: int, pre: bool, norm: str) -> None:
        super().__init__()
        self.pre = pre
        self.conv1, self.conv2 = _conv(m, n, 3, stride), _conv(n, n, 3)
        self.norm1, self.norm2 = channel_norm(norm, m if pre else n), channel_norm(norm, n)
        self.shortcut = _conv(m, n, 1, stride) if stride > 1 or m != n else None
        self.shortcut_norm = channel_norm(norm, n) if self.shortcut is not None and not pre else None

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


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the inner ones with a quarter of the channels, and a shortcut."""

    def __init__(self, m: int, n: int, stride: int, pre: bool, norm: str) -> None:
        super().__init__()
        self.pre, k = pre, n // 4
        self.conv1, self.conv2, self.conv3 = _conv(m, k, 1), _conv(k, k, 3, stride), _conv(k, n, 1)
        self.norm1, self.norm2 = channel_norm(norm, m if pre else k), channel_norm(norm, k)
        self.norm3 = channel_norm(norm, k if pre else n)
        self.shortcut = _conv(m, n, 1, stride) if stride > 1 or m != n else None
        self.shortcut_norm = channel_norm(norm, n) if self.shortcut is not None and not pre else None

    def forward(self, stream: Tensor) -> Tensor:
        """Return the next stream (n, C', H', W')."""
        if self.pre:
            inner = self.conv2(relu(self.norm2(self.conv1(relu(self.norm1(stream))))))
            inner = self.conv3(relu(self.norm3(inner)))
            return inner + (stream if self.shortcut is None else self.shortcut(stream))
        inner = relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(stream))))))
        inner = self.norm3(self.conv3(inner))
        return relu(inner + (stream if self.shortcut is None else self.shortcut_norm(self.shortcut(stream))))

    def layers(self, name: str, before: str, after: str) -> list[Layer]:
        """Return the block's weight layers between the streams `before` and `after`."""
        axes = [before, f"{name}.inner1", f"{name}.inner2", after]
        found = []
        for i, (reads, writes) in enumerate(pairwise(axes), 1):
            norm = f"{name}.norm{i + 1 if self.pre else i}"
            pre_norm = f"{name}.norm1" if self.pre and i == 1 else None
            found.append(Layer(f"{name}.conv{i}", reads, writes, None if self.pre and i == 3 else norm, pre_norm))
        if self.shortcut is not None:
            norm = None if self.pre else f"{name}.shortcut_norm"
            found.append(Layer(f"{name}.shortcut", before, after, norm=norm))
        return found


class ResNet(nn.Module):
    """Residual network for small images: one convolution, three stages of `blocks` blocks, average pooling, linear.

    Args:
        inputs: (C, H, W) of one image.
        classes: number of classes.
        blocks: blocks per stage; depth is 6 * blocks + 2, with bottlenecks 9 * blocks + 2.
        channels: of the first convolution; the papers' 16. Stages have 1, 2 and 4 times as many, times `widen`, and
            times 4 where they are made of bottlenecks.
        pre_activation: batch norm and ReLU in front of the convolutions (PreResNet) instead of behind them.
        bias: whether the output layer has a bias.
        bottleneck: whether blocks are bottlenecks of three convolutions instead of two 3x3 ones.
        widen: widening factor of the stages.
        norm: "batch", "group" or "layer", see `normalisation.channel_norm`.
        dropout: fraction of the pooled features that is dropped in front of the output layer.

    Source: W21 Appendix D (cResNet20: blocks=3, no output bias, 272,464 parameters); AY20 Table 5 and G18 section 6
        (PreResNet110: blocks=18); G18 A.3 (ResNet-bottleneck-164: blocks=18; ResNet-158: blocks=26) and A.5 (WRN-28-10:
        blocks=4, widen=10); He et al. 2016 (a, b), Zagoruyko & Komodakis 2016. Where implementations differ: shortcuts
        between stages read the stream itself, the 3x3 convolution of a bottleneck and the first one of other blocks
        have the stride, no convolution has a bias, there is no
        dropout in the blocks. W21 D.3 names group and layer norm and runs neither; it does not say where its dropout
        is (Fig. 8).
    """

    def __init__(self, inputs: Shape, classes: int, *, blocks: int = 3, channels: int = 16,
                 pre_activation: bool = False, bias: bool = False, bottleneck: bool = False, widen: int = 1,
                 norm: str = "batch", dropout: float = 0.0) -> None:
        super().__init__()
        self.pre = pre_activation
        self.conv = _conv(inputs[0], channels, 3)
        stages = [channels * 2**stage * widen * (4 if bottleneck else 1) for stage in range(3)]
        self.norm = channel_norm(norm, stages[-1] if pre_activation else channels)
        sizes = [channels] + [size for size in stages for _ in range(blocks)]
        strides = [2 if i in (blocks, 2 * blocks) else 1 for i in range(3 * blocks)]
        block = _Bottleneck if bottleneck else _Block
        self.blocks = nn.ModuleList(block(m, n, stride, pre_activation, norm)
                                    for (m, n), stride in zip(pairwise(sizes), strides, strict=True))
        self.dropout = nn.Dropout(dropout) if dropout else None  # None: networks without it are described as before
        self.linear = nn.Linear(stages[-1], classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, C, H, W)."""
        stream = self.conv(images) if self.pre else relu(self.norm(self.conv(images)))
        for block in self.blocks:
            stream = block(stream)
        stream = relu(self.norm(stream)) if self.pre else stream
        pooled = stream.mean((2, 3))
        return self.linear(pooled if self.dropout is None else self.dropout(pooled))

    def layers(self) -> list[Layer]:
        """Return the weight layers in forward order.

        Raises:
            ValueError: if there are group norms of several groups, whose units cannot be permuted.
        """
        check_permutable(self)
        stage = 0
        found = [Layer("conv", None, "stream0", norm=None if self.pre else "norm")]
        for i, block in enumerate(self.blocks):
            before = f"stream{stage}"
            stage += block.shortcut is not None
            found += block.layers(f"blocks.{i}", before, f"stream{stage}")
        return [*found, Layer("linear", f"stream{stage}", None, pre_norm="norm" if self.pre else None)]


def bottleneck50(inputs: Shape, classes: int, *, norm: str = "batch", width: int = 64) -> nn.Module:
    """Return torchvision's ResNet50, without trained weights; with a width of 128 its WideResNet50-2.

    It is made for 224 x 224 pixels, which end as maps of 7 x 7; images of 64 x 64 end as maps of 2 x 2. W21's networks
    for TinyImageNet are others (those of Tanaka et al. 2020).

    Args:
        inputs: (3, H, W) of one image.
        classes: number of classes.
        norm: "batch", "group" or "layer", see `normalisation.channel_norm`.
        width: channels of the first stage's 3x3 convolutions.

    Raises:
        ValueError: for images of another number of channels than 3, or another norm.

    Source: W21 section 4.4 and D.1 ("the ImageNet models are from PyTorch"); He et al. 2016 (a), Zagoruyko & Komodakis
        2016.
    """
    from torchvision.models.resnet import Bottleneck  # takes seconds to import
    from torchvision.models.resnet import ResNet as TorchvisionResNet

    if inputs[0] != 3:
        raise ValueError(f"inputs of torchvision's ResNet50 must have 3 channels, got {inputs[0]}")
    choose("norm", norm, NORMS)
    kind = nn.BatchNorm2d if norm == "batch" else partial(channel_norm, norm)
    return TorchvisionResNet(Bottleneck, [3, 4, 6, 3], classes, width_per_group=width, norm_layer=kind)
