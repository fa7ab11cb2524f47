import functools
import math
from collections.abc import Callable

import pytest
import torch
from test_layers import NETWORKS, built
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossland.layers import Layer, axes, free_axes, gather, permute, scatter, verify
from lossland.tracing import trace
from lossland.units import Piece, pieces
from lossland.weights import buffers_of, tied, weights_of

torchvision = pytest.importorskip("torchvision")
vision = torchvision.models


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network made of some modules and a function of them and the images."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(images(*shape))


def dealt(net: nn.Module, layers: list[Layer]) -> set[frozenset[Piece]]:
    """Which entries belong together: what a layer list says, whatever its axes are called."""
    state, found = {**weights_of(net), **buffers_of(net)}, axes(layers)
    return {frozenset(pieces(state, *found[axis])) for axis in free_axes(layers)}


# Our own networks ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_list_of_our_networks_is_equivalent_to_their_own(name):
    net, _ = built(name)
    traced = trace(net, images(2, *NETWORKS[name][0]))
    assert dealt(net, traced) == dealt(net, net.layers())
    assert {layer.module for layer in traced} == {layer.module for layer in net.layers()}
    assert len(free_axes(traced)) == len(axes(traced)) == len(axes(net.layers()))


# torchvision's, on the meta device and reduced: trace draws weights of its own --------------------------------------------

def vgg16_bn() -> nn.Module:
    sizes = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 10, 10, 10, "M", 12, 12, 12, "M"]
    net = vision.VGG(vision.vgg.make_layers(sizes, batch_norm=True), num_classes=5, init_weights=False)
    net.classifier[0], net.classifier[3] = nn.Linear(12 * 49, 20), nn.Linear(20, 18)
    net.classifier[6] = nn.Linear(18, 5)
    return net


def mobilenet() -> nn.Module:
    settings, last = vision.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return vision.MobileNetV3(settings, last // 4, num_classes=5)


def convnext() -> nn.Module:
    block = vision.convnext.CNBlockConfig
    return vision.ConvNeXt([block(8, 12, 3), block(12, 16, 3), block(16, 20, 9), block(20, None, 3)], 0.1, num_classes=5)


TORCHVISION = {  # name: how it is made, axes, what it has
    "resnet18": (lambda: vision.resnet18(num_classes=5), 12, "residual"),
    "resnet50": (lambda: vision.ResNet(vision.resnet.Bottleneck, [2, 1, 1, 1], num_classes=5), 15, "bottlenecks"),
    "vgg16_bn": (vgg16_bn, 15, "adaptive pooling, a flatten of 7 x 7 maps, dropout"),
    "densenet121": (lambda: vision.DenseNet(4, (3, 2, 2, 2), 8, 2, num_classes=5), 22, "concatenations"),
    "mobilenet_v3_small": (mobilenet, 26, "depth-wise convolutions, squeeze and excitation"),
    "convnext_tiny": (convnext, 22, "layer norm over channels, layer scale, depth-wise convolutions"),
    "vit_b_16": (lambda: vision.VisionTransformer(32, 16, 2, 3, 24, 40, num_classes=5), 15, "attention, tokens"),
}


@functools.cache
def seen(name: str) -> tuple[nn.Module, list[Layer]]:
    with torch.device("meta"):
        net = TORCHVISION[name][0]()
    return net, trace(net, images(2, 3, 32, 32))


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_axis_of_torchvision_networks_is_free_and_proved(name):
    net, layers = seen(name)
    assert len(free_axes(layers)) == len(axes(layers)) == TORCHVISION[name][1]
    assert verify(net, layers, images(1, 3, 32, 32), seed=7) < 1e-9


@pytest.mark.parametrize("name", TORCHVISION)
def test_scatter_undoes_gather_in_torchvision_networks(name):
    net, layers = seen(name)
    g = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in net.named_parameters()}
    for axis, (writers, readers) in axes(layers).items():
        units = gather(weights, writers, readers)
        assert_close(scatter(weights, units, writers, readers), weights, rtol=0, atol=0)
        order = torch.randperm(len(units), generator=g)
        moved = permute(weights, layers, {axis: order})
        assert_close(gather(moved, writers, readers), units[order], rtol=0, atol=0)
        back = permute(moved, layers, {axis: order.argsort()})
        assert_close(back, weights, rtol=0, atol=0)


def test_a_dense_net_reads_concatenations_in_order():
    found = {layer.module: layer for layer in seen("densenet121")[1]}
    second = found["features.denseblock1.denselayer2.conv1"]
    assert second.reads == ("features.conv0", "features.denseblock1.denselayer1.conv2")
    assert second.widths == (8, 4) and second.pre_norm == "features.denseblock1.denselayer2.norm1"


def test_attention_has_one_axis_per_head():
    layers = seen("vit_b_16")[1]
    here = "encoder.layers.encoder_layer_0.self_attention"
    found = {layer.module: layer for layer in layers}
    scores, values = ([f"{here}.{kind}{i}" for i in range(3)] for kind in ("score", "value"))
    assert found[f"{here}.in_proj"].writes == (*scores, *scores, *values)
    assert found[f"{here}.out_proj"].reads == tuple(values)
    assert found["class_token"] == Layer("class_token", None, "conv_proj", dim=2)
    assert found["heads.head"].pre_norm == "encoder.ln"


# Constructs, one by one ----------------------------------------------------------------------------------------------------

def attend(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).flatten(2).transpose(1, 2)
    batch, places, width = h.shape
    q, k, v = (part(h).view(batch, places, 2, width // 2).transpose(1, 2) for part in (net.q, net.k, net.v))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(width // 2)).softmax(-1)
    return net.z((h + net.o((weights @ v).transpose(1, 2).reshape(batch, places, width))).mean(1))


def mix_tokens(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).flatten(2).transpose(1, 2)
    h = h + net.t2(net.t1(h.transpose(1, 2)).relu()).transpose(1, 2)
    return net.z((h + net.c2(net.c1(h).relu())).mean(1))


def gated(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.z((h + net.gain * net.b(h).relu()).mean((2, 3)))


def branches(net: Net, x: Tensor) -> Tensor:
    if x.shape[1] != 3 or not len(range(x.size(0))):  # sizes are plain numbers
        return x
    return net.z(net.a(x.view(x.shape[0], -1)).relu())


def tied_words() -> nn.Module:
    net = Net(lambda s, x: s.out(s.b(s.words(x)).relu()).transpose(1, 2),
              words=nn.Embedding(11, 6), b=nn.Linear(6, 6), out=nn.Linear(6, 11))
    net.out.weight = net.words.weight
    return net


def one_head(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).flatten(2).transpose(1, 2)
    weights = (net.q(h) @ net.k(h).transpose(1, 2)).softmax(-1)
    return net.z((h + net.o(weights @ net.v(h))).mean(1))


def largest(net: Net, x: Tensor) -> Tensor:
    h = net.a(x.flatten(1)).relu()
    return net.z(h) + h.max(1)[1][:, None]


def pairs(net: Net, x: Tensor) -> Tensor:
    h, k = net.a(x.flatten(1)), net.b(x.flatten(1))
    return net.z((h[:, :, None] * k[:, None, :] * net.w).sum(2)) + net.y(k)


def conv(m: int, n: int, size: int = 1, **more: int) -> nn.Conv2d:
    return nn.Conv2d(m, n, size, **more)


def pooled(s: Net, x: Tensor) -> Tensor:
    return s.z(s.b(s.n(s.a(x)).relu()).mean((2, 3)))


CONSTRUCTS = {  # name: network, free axes, fixed axes
    "depth-wise with two filters a unit": (Net(
        lambda s, x: s.z(s.d(s.a(x)).relu().flatten(1)),
        a=conv(3, 4), d=conv(4, 8, 3, groups=4), z=nn.Linear(8 * 36, 5)), 1, 0),
    "grouped convolution": (Net(
        lambda s, x: s.z(s.y(s.g(s.a(x).relu()).mean((2, 3))).relu()),
        a=conv(3, 4), g=conv(4, 6, 3, groups=2), y=nn.Linear(6, 7), z=nn.Linear(7, 5)), 1, 2),
    "group norm": (Net(pooled, a=conv(3, 4), n=nn.GroupNorm(2, 4), b=conv(4, 6), z=nn.Linear(6, 5)), 1, 1),
    "group norm of one group": (Net(pooled, a=conv(3, 4), n=nn.GroupNorm(1, 4), b=conv(4, 6), z=nn.Linear(6, 5)), 2, 0),
    "batch norm without weights": (Net(pooled, a=conv(3, 4), n=nn.BatchNorm2d(4, affine=False), b=conv(4, 6),
                                       z=nn.Linear(6, 5)), 2, 0),
    "norm of a concatenation in front of a flatten": (Net(
        lambda s, x: s.z(s.n(torch.cat([s.a(x), s.b(x)], 1)).relu().flatten(1)),
        a=conv(3, 4), b=conv(3, 6), n=nn.BatchNorm2d(10), z=nn.Linear(640, 5)), 2, 0),
    "concatenation with the data": (Net(
        lambda s, x: s.z(torch.cat([x, s.a(x)], 1).relu().flatten(1)), a=conv(3, 6), z=nn.Linear(9 * 64, 5)), 1, 0),
    "concatenation of maps and units": (Net(
        lambda s, x: s.z(torch.cat([s.a(x).relu().flatten(1), s.b(x.flatten(1)).relu()], 1)),
        a=conv(3, 4), b=nn.Linear(192, 7), z=nn.Linear(4 * 64 + 7, 5)), 2, 0),
    "concatenated and taken apart": (Net(
        lambda s, x: s.z(sum(part.mean((2, 3)) for part in torch.cat([s.a(x), s.b(x)], 1).chunk(2, 1))),
        a=conv(3, 4), b=conv(3, 4), z=nn.Linear(4, 5)), 1, 0),
    "units cut in two": (Net(
        lambda s, x: s.z(math.prod(s.a(x).chunk(2, 1)).mean((2, 3))),
        a=conv(3, 8), z=nn.Linear(4, 5)), 0, 1),
    "parametric ReLU": (Net(
        lambda s, x: s.z(s.q(s.b(s.p(s.a(x)))).mean((2, 3))),
        a=conv(3, 4), p=nn.PReLU(4), b=conv(4, 6), q=nn.PReLU(), z=nn.Linear(6, 5)), 2, 0),
    "one number for all units": (Net(gated, a=conv(3, 4), gain=parameter(1), b=conv(4, 4), z=nn.Linear(4, 5)), 1, 0),
    "a number without dimensions": (Net(gated, a=conv(3, 4), gain=parameter(), b=conv(4, 4), z=nn.Linear(4, 5)), 1, 0),
    "transposed convolution": (Net(
        lambda s, x: s.z(s.b(s.a(x).relu()).relu().mean((2, 3))),
        a=conv(3, 4), b=nn.ConvTranspose2d(4, 6, 2, 2), z=nn.Linear(6, 5)), 2, 0),
    "shortcut padded with zeros": (Net(
        lambda s, x: s.z((F.pad(s.a(x)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + s.b(s.a(x)).relu()).mean((2, 3))),
        a=conv(3, 4), b=conv(4, 6, 3, stride=2, padding=1), z=nn.Linear(6, 5)), 0, 1),
    "a module used twice": (Net(
        lambda s, x: s.z(s.b(s.b(s.a(x)).relu()).relu().mean((2, 3))), a=conv(3, 4), b=conv(4, 4), z=nn.Linear(4, 5)),
        1, 0),
    "bare parameters": (Net(
        lambda s, x: torch.tanh(x.flatten(1) @ s.w + s.b) @ s.v, w=parameter(192, 7), b=parameter(7), v=parameter(7, 5)),
        1, 0),
    "functions with parameters": (Net(
        lambda s, x: F.linear(F.linear(x.flatten(1), s.w, s.b).relu(), s.v),
        w=parameter(7, 192), b=parameter(7), v=parameter(5, 7)), 1, 0),
    "flattened and unflattened": (Net(
        lambda s, x: s.z(s.b(s.a(x).relu().flatten(1).view(-1, 4, 8, 8)).flatten(1)),
        a=conv(3, 4), b=conv(4, 3), z=nn.Linear(192, 5)), 2, 0),
    "sizes branched on": (Net(branches, a=nn.Linear(192, 16), z=nn.Linear(16, 5)), 1, 0),
    "a residual layer within one axis": (Net(
        lambda s, x: s.z((lambda h: h + s.b(h).relu())(s.a(x.flatten(1)))),
        a=nn.Linear(192, 6), b=nn.Linear(6, 6), z=nn.Linear(6, 5)), 1, 0),
    "units that are outputs": (Net(
        lambda s, x: (lambda h: h + s.b(h).relu())(s.a(x.flatten(1))), a=nn.Linear(192, 6), b=nn.Linear(6, 6)), 0, 1),
    "class token and positions": (Net(
        lambda s, x: s.z((torch.cat([s.token.expand(x.shape[0], -1, -1), s.a(x).flatten(2).transpose(1, 2)], 1)
                          + s.places).relu()[:, 0]),
        a=conv(3, 6, 4, stride=4), token=parameter(1, 1, 6), places=parameter(1, 5, 6), z=nn.Linear(6, 5)), 1, 0),
    "attention written by hand": (Net(
        attend, a=conv(3, 6, 4, stride=4), q=nn.Linear(6, 6), k=nn.Linear(6, 6), v=nn.Linear(6, 6), o=nn.Linear(6, 6),
        z=nn.Linear(6, 5)), 1, 1),
    "attention of one head by hand": (Net(
        one_head, a=conv(3, 6, 4, stride=4), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 5), o=nn.Linear(5, 6),
        z=nn.Linear(6, 5)), 3, 0),
    "which unit is largest": (Net(largest, a=nn.Linear(192, 6), z=nn.Linear(6, 5)), 0, 1),
    "units in reverse": (Net(
        lambda s, x: s.z(s.b(s.a(x).flip(1)).relu().mean((2, 3))), a=conv(3, 4), b=conv(4, 6), z=nn.Linear(6, 5)), 1, 1),
    "a number for each pair of units": (Net(
        pairs, a=nn.Linear(192, 6), b=nn.Linear(192, 4), w=parameter(6, 4), y=nn.Linear(4, 5), z=nn.Linear(6, 5)), 1, 1),
    "a number for each pixel": (Net(
        lambda s, x: s.z((s.a(x) + s.b).relu().flatten(1)), a=conv(3, 4), b=parameter(8, 8), z=nn.Linear(256, 5)), 1, 1),
    "data added to units": (Net(
        lambda s, x: s.z((s.a(x) + x).relu().mean((2, 3))), a=conv(3, 3), z=nn.Linear(3, 5)), 0, 1),
    "maps and units added": (Net(
        lambda s, x: s.z((s.a(x).flatten(1) + s.b(x.flatten(1))).relu()),
        a=conv(3, 2, 5, stride=3), b=nn.Linear(192, 8), z=nn.Linear(8, 5)), 0, 1),
    "depth-wise behind a concatenation": (Net(
        lambda s, x: s.z(s.d(torch.cat([s.a(x), s.b(x)], 1)).relu().mean((2, 3))),
        a=conv(3, 3), b=conv(3, 4), d=conv(7, 7, 3, groups=7), z=nn.Linear(7, 5)), 2, 0),
    "mixed tokens": (Net(
        mix_tokens, a=conv(3, 6, 4, stride=4), t1=nn.Linear(4, 7), t2=nn.Linear(7, 4), c1=nn.Linear(6, 9),
        c2=nn.Linear(9, 6), z=nn.Linear(6, 5)), 3, 1),
    "norm on data, norm on logits": (Net(
        lambda s, x: s.m(s.z(s.a(s.n(x).flatten(1)).relu())),
        n=nn.BatchNorm2d(3), a=nn.Linear(192, 6), m=nn.BatchNorm1d(5), z=nn.Linear(6, 5)), 1, 0),
}
WORDS = {
    "PyTorch's own encoder layer": (Net(
        lambda s, x: s.z(s.t(s.e(x)).mean(1)), e=nn.Embedding(11, 8),
        t=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), z=nn.Linear(8, 5)), 6, 0),
    "tied words": (tied_words(), 1, 0),
}


@pytest.mark.parametrize("name", [*CONSTRUCTS, *WORDS])
def test_constructs_are_followed(name):
    net, free, fixed = (CONSTRUCTS | WORDS)[name]
    example = torch.tensor([[1, 4, 0], [7, 10, 2]]) if name in WORDS else images(2, 3, 8, 8)
    layers = trace(net, example)
    assert (len(free_axes(layers)), len(axes(layers)) - len(free_axes(layers))) == (free, fixed)


def test_tied_weights_are_listed_once_and_permuted_once():
    net = tied_words()
    layers = trace(net, torch.tensor([[1, 4, 0]]))
    assert tied(net) == {"out.weight": "words.weight"}
    assert layers == [Layer("words", None, "words", dim=1), Layer("b", "words", "words"),
                      Layer("out", "words", None, tied="words")]
    weights, (axis,) = weights_of(net), free_axes(layers)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    moved = permute(weights, layers, {axis: order})
    assert_close(moved["words.weight"], weights["words.weight"][:, order], rtol=0, atol=0)
    assert_close(moved["b.weight"], weights["b.weight"][order][:, order], rtol=0, atol=0)


def test_the_network_is_left_alone():
    net = built("cresnet20")[0].to_empty(device="cpu").train()
    before = {name: id(p) for name, p in net.named_parameters()}
    trace(net, images(2, 3, 16, 16))
    assert net.training and before == {name: id(p) for name, p in net.named_parameters()}


# What cannot be followed -----------------------------------------------------------------------------------------------------

def doubled(s: Net, x: Tensor) -> Tensor:
    s.a.weight.mul_(2)
    return s.a(x.flatten(1))


class Cell(nn.Module):
    """A block of a user's own with an operation that mixes units in a way of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(192, 6)

    def forward(self, x):
        return torch.cumprod(self.a(x.flatten(1)), 1)


dense = {"a": nn.Linear(192, 6), "z": nn.Linear(6, 5)}
REFUSED = {
    "data in a condition": (Net(lambda s, x: s.z(s.a(x.flatten(1))) if x.sum() > 0 else x, **dense),
                            "forward depends on the values of the data: a condition in the forward of Net"),
    "data in a number": (Net(lambda s, x: s.z(s.a(x.flatten(1)) * x.max().item()), **dense),
                         "forward depends on the values of the data: item"),
    "unknown function": (nn.Sequential(Cell(), nn.Linear(6, 5)), "does not know what cumprod in '0' \\(Cell\\) does"),
    "unknown module": (Net(lambda s, x: s.z(s.a(x[:, 0])[0][:, -1]), a=nn.LSTM(8, 6), z=nn.Linear(6, 5)),
                       "does not know what module 'a' \\(LSTM\\) does to units; pass layers= by hand"),
    "weights of two factors": (Net(lambda s, x: s.z(s.a(x.flatten(1))), z=nn.Linear(6, 5),
                                   a=nn.utils.parametrizations.weight_norm(nn.Linear(192, 6))),
                               "module 'a.parametrizations.weight.0' \\(_WeightNorm\\)"),
    "computed weights": (Net(lambda s, x: s.z(F.linear(x.flatten(1), s.a.weight * 2)), **dense),
                         "linear in the forward of Net \\(weights that are computed in the forward pass\\)"),
    "a parameter changed in place": (Net(doubled, **dense), "changes the parameter 'a.weight' in place by mul_"),
    "no weights": (nn.Sequential(nn.Flatten(), nn.ReLU()), "net must have weights, got a Sequential without parameters"),
    "other channels": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 5)),
                       "module '0', Conv2d\\(4, 6, .*, cannot take inputs of shape \\(2, 3, 8, 8\\)"),
    "another width": (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "module '1', Linear\\(in_features=64.* cannot take inputs of shape \\(2, 192\\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_named(name):
    net, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        trace(net, images(2, 3, 8, 8))


def test_parameters_that_share_memory_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192))
    net[2].weight = nn.Parameter(net[1].weight.data)
    with pytest.raises(ValueError, match="'1.weight' and '2.weight' share memory but are two parameters.*same nn.Parameter"):
        trace(net, images(2, 3, 8, 8))
    net[2].weight = net[1].weight
    assert [layer.module for layer in trace(net, images(2, 3, 8, 8))] == ["1", "2"]


def test_arguments_of_other_types_are_refused():
    with pytest.raises(TypeError, match="net must be an nn.Module, got int"):
        trace(3, images(2, 3))
    with pytest.raises(TypeError, match="example must be a tensor of inputs \\(n, ...\\), got list"):
        trace(nn.Linear(3, 2), [1.0])


def test_a_mistake_of_a_rule_would_be_found(monkeypatch):
    from lossland.tracing import blocks

    monkeypatch.setitem(blocks.RULES, "cumprod", blocks.RULES["softmax"])
    net = nn.Sequential(Cell(), nn.Linear(6, 5))
    with pytest.raises(ValueError, match="permuting its units does not bear out: permuting axis '0.a' must leave .* by hand"):
        trace(net, images(2, 3, 8, 8))
