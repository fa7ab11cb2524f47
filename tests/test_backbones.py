"""Networks cut in two, and what their halves cost."""

import pytest
import torch
from conftest import make_task
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lossland import batchnorm, models
from lossland.ensembles.backbones import Backbone, cuts
from lossland.ensembles.costs import Cost, multiply_adds
from lossland.layers import Layer
from lossland.weights import skeleton

SHAPE = (1, 8, 8)
TASK = make_task(SHAPE)
NETS = {
    "fc3": lambda: models.MLP(SHAPE, 3, widths=(9, 7), bias=False),
    "conv2fc1": lambda: models.Conv2FC1(SHAPE, 3, channels=(3, 4)),
    "vgg16": lambda: models.VGG16(SHAPE, 3, channels=2),
    "preresnet": lambda: models.ResNet(SHAPE, 3, blocks=2, channels=3, pre_activation=True, bias=True),
    "resnet": lambda: models.ResNet(SHAPE, 3, blocks=1, channels=3),
}


def images(n: int = 5) -> torch.Tensor:
    return TASK.prepare(TASK.train.images[:n], torch.float64)


def drawn(net: nn.Module, seed: int = 1) -> dict:
    return models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(net: nn.Module) -> dict[int, list[str]]:
    return {n: [layer.module for layer in at] for n, at in cuts(net.layers()).items()}


# Where a network can be cut


@pytest.mark.parametrize("name", ["fc3", "conv2fc1", "vgg16"])
def test_networks_without_skips_can_be_cut_at_every_layer(name):
    modules = [layer.module for layer in NETS[name]().layers()]
    assert names(NETS[name]()) == {n: [modules[-n]] for n in range(1, len(modules))} | {len(modules): []}


@pytest.mark.parametrize("name", ["preresnet", "resnet"])
def test_residual_networks_are_cut_where_a_stage_begins(name):
    found = names(NETS[name]())
    first = {"preresnet": "blocks.2", "resnet": "blocks.1"}[name]
    assert found[1] == ["linear"]
    assert [f"{first}.conv1", f"{first}.shortcut"] in found.values()
    layers = NETS[name]().layers()
    for n, modules in found.items():
        readers = {layer.reads for layer in layers[-n:] if layer.module in modules}
        later = {layer.writes for layer in layers[-n:]}
        assert not readers & later


def test_a_cut_through_a_concatenation_is_left_out():
    layers = [Layer("a", None, "x"), Layer("b", "x", "y"), Layer("c", ("x", "y"), None)]
    assert {n: [layer.module for layer in at] for n, at in cuts(layers).items()} == {1: ["c"], 3: []}


@pytest.mark.parametrize("n", [0, 4, -1, True, 2.0])
def test_an_impossible_n_names_the_layers(n):
    named = r"n must be one of 1 \(linear.2\), 2 \(linear.1\), 3 \(linear.0\), counted from the output; got "
    with pytest.raises(ValueError, match=named + f"{n}: no layer is there"):
        Backbone(NETS["fc3"](), NETS["fc3"]().layers(), n)


def test_a_cut_inside_a_stage_says_what_is_in_the_way():
    net = NETS["preresnet"]()
    with pytest.raises(ValueError, match="'blocks.5.conv2' or one behind it reads is written on both sides"):
        Backbone(net, net.layers(), 2)


def test_tied_weights_stay_on_one_side():
    layers = [Layer("words", None, "x", dim=1), Layer("a", "x", "y"), Layer("b", "y", "x2"),
              Layer("out", "x2", None, tied="words")]
    assert list(cuts(layers)) == [4]


def test_a_part_of_a_module_at_the_cut_is_named():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 1, bias=False)

        def forward(self, x):
            x = self.a(x)
            return self.attention(x, x, x)[0]

    layers = [Layer("a", None, "x"), Layer("attention.in_proj", "x", ("q", "k", "v"), fixed=True),
              Layer("attention.out_proj", "v", None)]
    with pytest.raises(TypeError, match="'attention.in_proj', a part of one"):
        Backbone(Attends(), layers, 2)


def test_layers_must_cover_the_network():
    net = NETS["fc3"]()
    with pytest.raises(ValueError, match="missing"):
        Backbone(net, net.layers()[1:], 1)


# The halves


@pytest.mark.parametrize("name", NETS)
def test_backbone_and_head_together_are_the_network(name):
    net, x = NETS[name](), images()
    weights = drawn(net)
    buffers = batchnorm.refresh(net, weights, x)
    whole = functional_call(skeleton(net), (weights, buffers), (x,))
    for n in cuts(net.layers()):
        backbone = Backbone(net, net.layers(), n)
        assert_close(backbone.head(weights, buffers, backbone.features(weights, buffers, x)), whole)


@pytest.mark.parametrize("name", NETS)
def test_features_come_from_the_backbone_alone_and_heads_from_the_rest(name):
    net, x = NETS[name](), images()
    weights = drawn(net)
    buffers = batchnorm.refresh(net, weights, x)
    for n in list(cuts(net.layers()))[:-1]:
        backbone = Backbone(net, net.layers(), n)
        front = {key: tensor if backbone.owns(key) else tensor * torch.nan for key, tensor in weights.items()}
        rest = {key: tensor * torch.nan if backbone.owns(key) else tensor for key, tensor in weights.items()}
        features = backbone.features(front, buffers, x)
        assert all(found.isfinite().all() for found in features.inputs.values())
        assert backbone.head(rest, buffers, features).isfinite().all()
        assert any(map(backbone.owns, weights)) and not all(map(backbone.owns, weights))


def test_a_head_computes_no_layer_of_the_backbone():
    net, x = NETS["vgg16"](), images(2)
    weights, backbone = drawn(net), Backbone(net, net.layers(), 2)
    features = backbone.features(weights, {}, x)
    with FlopCounterMode(display=False) as counter:
        backbone.head(weights, {}, features)
    work = multiply_adds(net, net.layers(), SHAPE)
    real = sum(work[layer.module] for layer in net.layers()[-2:])
    on_meta = sum(work[layer.module] for layer in net.layers()[:-2])  # shapes, which cost nothing, are counted too
    assert counter.get_total_flops() == 2 * 2 * (real + on_meta)
    assert features.inputs["head.1"].shape == (2, 16)


def test_normalisations_in_front_of_the_cut_belong_to_the_backbone():
    net = NETS["preresnet"]()
    backbone = Backbone(net, net.layers(), 1)
    assert backbone.owns("norm.weight") and backbone.owns("norm.running_mean")
    assert not backbone.owns("linear.bias")


def test_a_layer_that_is_called_twice_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.b(self.a(x)).relu())

    net = Twice()
    layers = [Layer("a", None, "x"), Layer("b", "x", None)]
    weights, backbone = drawn(net), Backbone(net, layers, 1)
    features = backbone.features(weights, {}, torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="'b' at the cut must be called once"):
        backbone.head(weights, {}, features)


def test_the_network_itself_is_not_touched():
    net = NETS["fc3"]()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weights, backbone = drawn(net), Backbone(net, net.layers(), 1)
    backbone.head(weights, {}, backbone.features(weights, {}, images()))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


# Costs


def test_costs_of_a_small_network_by_hand():
    net = models.Conv2FC1((1, 8, 8), 10, channels=(2, 3))  # maps of 8 x 8, pooled to 3 x 3, then to 1 x 1
    expected = {"convs.0": 64 * 2 * 25, "convs.1": 9 * 3 * 2 * 25, "head.0": 10 * 3}
    assert multiply_adds(net, net.layers(), (1, 8, 8)) == expected


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_torchs_counter(name):
    net = NETS[name]()
    with FlopCounterMode(display=False) as counter:
        skeleton(net)(torch.empty(1, *SHAPE, device="meta"))
    assert 2 * sum(multiply_adds(net, net.layers(), SHAPE).values()) == counter.get_total_flops()


def test_normalisations_and_bare_parameters_count_nothing():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)
            self.scale = nn.Parameter(torch.ones(3, 1))

        def forward(self, x):
            return self.b(self.norm(self.a(x)) * self.scale[:, 0])

    layers = [Layer("a", None, "x"), Layer("norm", "x", "x"), Layer("scale", "x", "x"), Layer("b", "x", None)]
    assert multiply_adds(Scaled(), layers, (4,)) == {"a": 12, "norm": 0, "scale": 0, "b": 6}
    assert list(cuts(layers)) == [1, 4]


def test_an_uncounted_kind_of_layer_is_named():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    with pytest.raises(TypeError, match="'0' must be linear or a convolution to be counted, got Embedding"):
        multiply_adds(net, [Layer("0", None, "x"), Layer("1", "x", None)], (3,))


def test_a_layer_that_is_not_called_as_a_module_is_named():
    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x) @ self.b.weight.T + self.b.bias

    with pytest.raises(ValueError, match=r"called as modules to be counted, but \['b'\] were not"):
        multiply_adds(Borrows(), [Layer("a", None, "x"), Layer("b", "x", None)], (4,))


def test_without_a_backbone_m_members_cost_m_networks():
    cost = Cost(5, backbone=0, head=70, backbone_parameters=0, head_parameters=11)
    assert (cost.in_networks, cost.stored_networks) == (5, 5)
