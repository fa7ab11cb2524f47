import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lossland import models
from lossland.layers import Layer, axes, check_cover, depths, gather, permute, scatter, verify
from lossland.weights import buffers_of, skeleton

NETWORKS = {
    "mlp": ((1, 8, 8), {"width": 7}),
    "fc3": ((1, 8, 8), {"first": 9, "second": 8}),
    "fc5": ((1, 8, 8), {"first": 9, "second": 8, "rest": 7}),
    "fc7": ((1, 8, 8), {"first": 9, "second": 8, "rest": 7}),
    "conv2fc1": ((3, 16, 16), {"channels": (4, 5)}),
    "vgg16": ((3, 32, 32), {"channels": 2}),
    "cresnet20": ((3, 16, 16), {"channels": 3}),
    "preresnet20": ((3, 16, 16), {"channels": 3}),
    "preresnet110": ((3, 8, 8), {"channels": 2, "blocks": 2}),
    "3conv3fc": ((1, 8, 8), {"channels": (4, 5, 6), "width": 10, "factor": 0.5}),
    "resnet158": ((3, 8, 8), {"channels": 3, "blocks": 2}),
    "resnet164": ((3, 8, 8), {"channels": 2, "blocks": 2}),
    "wrn28x10": ((3, 8, 8), {"channels": 3, "blocks": 2, "widen": 2}),
}


def built(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    shape, sizes = NETWORKS[name]
    net = models.build(name, shape, 10, **sizes)
    return net, models.initial_weights(net, torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_units_keeps_outputs(name):
    net, _ = built(name)
    assert verify(net, net.layers(), torch.randn(3, *NETWORKS[name][0], generator=torch.Generator().manual_seed(1))) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_belongs_to_exactly_one_layer(name):
    net, weights = built(name)
    check_cover(net, net.layers())
    with pytest.raises(ValueError, match="missing \\["):
        check_cover(net, net.layers()[:-1])
    with pytest.raises(ValueError, match="listed twice \\["):
        check_cover(net, [*net.layers(), net.layers()[0]])


@pytest.mark.parametrize("name", NETWORKS)
def test_scatter_is_the_exact_inverse_of_gather(name):
    net, weights = built(name)
    for axis, (writers, readers) in axes(net.layers()).items():
        units = gather(weights, writers, readers)
        assert_close(scatter(weights, units, writers, readers), weights, rtol=0, atol=0)
        doubled = scatter(weights, 2 * units, writers, readers)
        assert_close(gather(doubled, writers, readers), 2 * units)


def test_a_butterfly_is_row_bias_and_column():
    net, weights = built("mlp")
    (writers, readers), = axes(net.layers()).values()
    units = gather(weights, writers, readers)
    i = 4
    expected = torch.cat([weights["linear.0.weight"][i], weights["linear.0.bias"][i : i + 1], weights["linear.1.weight"][:, i]])
    assert units.shape == (7, 64 + 1 + 10)
    assert_close(units[i], expected, rtol=0, atol=0)


def test_a_channel_behind_a_flatten_owns_all_its_pixels_weights():
    net, weights = built("conv2fc1")
    writers, readers = axes(net.layers())["hidden1"]
    units = gather(weights, writers, readers)  # 5 channels, 3 x 3 pixels each
    outgoing = weights["head.0.weight"].reshape(10, 5, 9)[:, 2].reshape(-1)
    assert_close(units[2, -90:], outgoing, rtol=0, atol=0)


def test_permuting_and_permuting_back_is_the_identity():
    net, weights = built("cresnet20")
    for axis in axes(net.layers()):
        n = gather(weights, axes(net.layers())[axis][0]).shape[0]
        p = torch.randperm(n, generator=torch.Generator().manual_seed(3))
        there = permute(weights, net.layers(), {axis: p})
        assert_close(permute(there, net.layers(), {axis: p.argsort()}), weights, rtol=0, atol=0)


def test_gathered_units_move_with_the_permutation():
    net, weights = built("preresnet20")
    writers, readers = axes(net.layers())["stream1"]
    p = torch.tensor([2, 0, 1, 5, 4, 3])
    moved = permute(weights, net.layers(), {"stream1": p})
    assert_close(gather(moved, writers, readers), gather(weights, writers, readers)[p], rtol=0, atol=0)


def test_a_wrong_layer_list_is_found():
    net, _ = built("cresnet20")
    layers = net.layers()
    wrong = [Layer(l.module, l.reads, "elsewhere" if l.module == "blocks.0.conv2" else l.writes, l.norm) for l in layers]
    with pytest.raises(ValueError, match="axis 'elsewhere' must have layers that write it and layers that read it"):
        verify(net, wrong, torch.randn(2, 3, 16, 16))
    swapped = [Layer(l.module, l.reads, l.writes, {"norm": "blocks.0.norm2", "blocks.0.norm2": "norm"}.get(l.norm, l.norm))
               for l in layers]
    assert verify(net, swapped, torch.randn(2, 3, 16, 16)) < 1e-9  # both belong to stream0: an equivalent list
    norm_lost = [Layer(l.module, l.reads, l.writes, {"blocks.0.norm1": "blocks.0.norm2", "blocks.0.norm2": "blocks.0.norm1"}
                       .get(l.norm, l.norm)) for l in layers]
    with pytest.raises(ValueError, match="permuting axis .* must leave the outputs unchanged"):
        verify(net, norm_lost, torch.randn(2, 3, 16, 16))


def test_verify_leaves_the_network_alone():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    before = buffers_of(net)
    layers = [Layer("0", None, "h", norm="1"), Layer("2", "h", None)]
    assert verify(net, layers, torch.randn(5, 4)) < 1e-9
    assert net.training
    assert_close(buffers_of(net), before, rtol=0, atol=0)
    assert skeleton(net)[0].weight.is_meta


def test_depths_count_layers_and_refuse_skip_connections():
    net, _ = built("fc3")
    assert depths(net.layers()) == {"linear.0": 1, "linear.1": 2, "linear.2": 3}
    with pytest.raises(ValueError, match="skip connections"):
        depths(built("cresnet20")[0].layers())


@pytest.mark.parametrize("permutations, message", [
    ({"nowhere": torch.arange(3)}, "unit axes \\['hidden0'\\], got 'nowhere'"),
    ({"hidden0": torch.tensor([0, 0, 1, 2, 3, 4, 5])}, "each of 0..6 once"),
    ({"hidden0": torch.arange(3)}, "each of 0..6 once"),
])
def test_bad_permutations_are_refused(permutations, message):
    net, weights = built("mlp")
    with pytest.raises(ValueError, match=message):
        permute(weights, net.layers(), permutations)


def test_scatter_refuses_units_of_another_shape():
    net, weights = built("mlp")
    (writers, readers), = axes(net.layers()).values()
    with pytest.raises(ValueError, match="shape \\(7, 75\\), got \\(7, 74\\)"):
        scatter(weights, torch.zeros(7, 74), writers, readers)
