import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lossland import models
from lossland.layers import (
    Layer,
    axes,
    check_cover,
    depths,
    elementwise,
    free_axes,
    gather,
    permute,
    scatter,
    tensor_name,
    unit_count,
    verify,
)
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


# Layers at large ------------------------------------------------------------------------------------------------------

class Joined(nn.Module):
    """Two branches of unequal width, joined, normalised, flattened; a depth-wise convolution in one of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.z = nn.BatchNorm2d(7), nn.Linear(7 * 4, 5)

    def forward(self, x):
        return self.z(self.norm(torch.cat([self.a(x), self.d(self.b(x).relu())], 1)).relu().flatten(1))


JOINED = [Layer("a", None, "a"), Layer("b", None, "b"), Layer("d", "b", "b"),
          Layer("z", ("a", "b"), None, pre_norm="norm", widths=(12, 16))]


def test_a_layer_may_read_a_concatenation():
    net = Joined()
    assert verify(net, JOINED, torch.randn(2, 1, 2, 2)) < 1e-9
    weights, (writers, readers) = {**dict(net.named_parameters()), **buffers_of(net)}, axes(JOINED)["b"]
    units = gather(weights, writers, readers)  # of channel 1 of b: number 4 of the norm, columns 16 to 19
    parts = [net.b.weight[1], net.b.bias[1], net.d.weight[1], net.d.bias[1], net.norm.weight[4], net.norm.bias[4],
             net.norm.running_mean[4], net.norm.running_var[4], net.z.weight[:, 16:20]]
    assert_close(units[1], torch.cat([part.reshape(-1) for part in parts]), rtol=0, atol=0)
    assert_close(scatter(weights, units, writers, readers), weights, rtol=0, atol=0)
    assert [unit_count(weights, JOINED, axis) for axis in ("a", "b")] == [3, 4]
    with pytest.raises(ValueError, match="leave the outputs unchanged"):
        verify(net, [*JOINED[:3], Layer("z", ("b", "a"), None, pre_norm="norm", widths=(16, 12))], torch.randn(2, 1, 2, 2))


@pytest.mark.parametrize("widths, message", [
    ((12, 12, 4), "one number for each axis that it reads, \\('a', 'b'\\), got \\(12, 12, 4\\)"),
    ((1, 2), "must share out .* entries among the axes \\('a', 'b'\\), got \\(1, 2\\)"),
])
def test_widths_that_do_not_fit_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        layers = [*JOINED[:3], Layer("z", ("a", "b"), None, pre_norm="norm", widths=widths)]
        verify(Joined(), layers, torch.randn(2, 1, 2, 2))


def test_a_layer_of_several_axes_must_come_from_axes():
    weights = dict(Joined().named_parameters())
    with pytest.raises(ValueError, match="'z' has several axes, .* take it from layers.axes()"):
        gather(weights, (JOINED[0],), (JOINED[3],))
    assert axes(JOINED)["a"][1][0] == JOINED[3] and axes(JOINED)["a"][1][0].axis == "a"


def test_a_depth_wise_layer_has_no_columns():
    weights = dict(Joined().named_parameters())
    assert [elementwise(weights, layer) for layer in JOINED] == [False, False, True, False]
    square = nn.Linear(3, 3)
    assert not elementwise({"q.weight": square.weight}, Layer("q", "h", "h"))


def test_fixed_axes_are_known_but_never_permuted():
    layers = [Layer("a", None, "a", fixed=True), *JOINED[1:]]
    assert free_axes(layers) == ["b"] and list(axes(layers)) == ["a", "b"]
    assert verify(Joined(), layers, torch.randn(2, 1, 2, 2)) < 1e-9
    with pytest.raises(ValueError, match="must leave out 'a': the order of its units matters"):
        permute(dict(Joined().named_parameters()), layers, {"a": torch.tensor([1, 0, 2])})


def test_readers_of_a_fixed_axis_need_not_fit_its_units():
    weights = {"a.weight": torch.ones(8, 2), "z.weight": torch.ones(5, 3)}
    fixed = [Layer("a", None, "a", fixed=True), Layer("z", "a", None)]
    assert gather(weights, *axes(fixed)["a"]).shape == (8, 2)
    free = [Layer("a", None, "a"), Layer("z", "a", None)]
    with pytest.raises(ValueError, match="'z.weight' must have a multiple of 8 entries for the 8 units of its axis, got 3"):
        gather(weights, *axes(free)["a"])


@pytest.mark.parametrize("place", range(4))
def test_a_mistake_in_any_one_of_many_axes_is_found(place):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))

        def forward(self, x):
            for i, layer in enumerate(self.linear):
                x = layer(x).relu()
                x = x * torch.arange(1, 7) if i == place else x  # gives the units of one axis an order
            return x

    names = [None, "h0", "h1", "h2", "h3", None]
    layers = [Layer(f"linear.{i}", names[i], names[i + 1]) for i in range(5)]
    with pytest.raises(ValueError, match=f"permuting axis 'h{place}' must leave"):
        verify(Deep(), layers, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))


def test_a_normalisation_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="name 'nrom' as a normalisation, which this network does not have"):
        check_cover(Joined(), [*JOINED[:3], Layer("z", ("a", "b"), None, pre_norm="nrom", widths=(12, 16))])


def test_equal_permutations_of_two_axes_do_not_hide_a_mistake():
    # Two units can only change places: were all axes permuted at once, the two norms would be permuted alike.
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 3))
    right = [Layer("0", None, "h", norm="1"), Layer("2", "h", "k", norm="3"), Layer("4", "k", None)]
    wrong = [Layer("0", None, "h", norm="3"), Layer("2", "h", "k", norm="1"), Layer("4", "k", None)]
    assert verify(net, right, torch.randn(4, 3)) < 1e-9
    with pytest.raises(ValueError, match="permuting axis 'h' must leave the outputs unchanged"):
        verify(net, wrong, torch.randn(4, 3))


def test_single_parameters_and_packed_ones_have_rows():
    weights = {"token": torch.arange(6.0).reshape(1, 1, 6), "gain": torch.tensor(2.0),
               "attention.in_proj_weight": torch.arange(24.0).reshape(12, 2), "attention.in_proj_bias": torch.arange(12.0)}
    packed = Layer("attention.in_proj", "s", ("q", "q", "v"))
    assert tensor_name(weights, packed) == "attention.in_proj_weight"
    assert tensor_name(weights, Layer("token", None, "s", dim=2), "bias") is None
    assert gather(weights, (Layer("token", None, "s", dim=2),)).tolist() == [[float(i)] for i in range(6)]
    gain = (Layer("gain", None, "s"),)
    assert scatter(weights, 3 * gather(weights, gain), gain)["gain"].tolist() == 6
    assert gather(weights, (packed,)).shape == (12, 3)  # on its own: all rows
    units = gather(weights, *[axes([packed])["q"][0]])  # queries and keys of each unit
    assert units[1].tolist() == [2.0, 3.0, 10.0, 11.0, 1.0, 5.0]
    moved = scatter(weights, units.flip(0), axes([packed])["q"][0])
    assert moved["attention.in_proj_bias"].tolist() == [3, 2, 1, 0, 7, 6, 5, 4, 8, 9, 10, 11]


def test_scatter_into_a_part_of_a_tensor_passes_gradients():
    weights = {"attention.in_proj_weight": torch.zeros(12, 2)}
    writers, _ = axes([Layer("attention.in_proj", "s", ("q", "q", "v"))])["v"]
    units = torch.ones(4, 2, requires_grad=True)
    moved = scatter(weights, units, writers)["attention.in_proj_weight"]
    (moved * torch.arange(24.0).reshape(12, 2)).sum().backward()
    assert units.grad is not None and units.grad.tolist() == [[16, 17], [18, 19], [20, 21], [22, 23]]
    assert weights["attention.in_proj_weight"].sum() == 0 and moved.sum() == 8


def test_a_layer_survives_json_and_shows_what_is_set():
    layer = axes(JOINED)["a"][1][0]
    back = Layer(**json.loads(json.dumps(asdict(layer))))
    assert back == layer and hash(back) == hash(layer) and back.axis == "a"
    assert repr(JOINED[3]) == "Layer('z', ('a', 'b'), None, pre_norm='norm', widths=(12, 16))"
    assert eval(repr(JOINED[3])) == JOINED[3]
