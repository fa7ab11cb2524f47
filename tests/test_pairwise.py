"""All pairs at once against one path after the other."""

import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import nn

from conftest import make_task
from lossland import models
from lossland.evaluation import evaluate, sharing
from lossland.legs import Powers
from lossland.neurons import pooled_centre
from lossland.pairwise import pairs
from lossland.paths import Path, arc, chain, segment
from lossland.weights import Weights

TASK = make_task(shape=(1, 8, 8), train=40, test=17)
NET = models.build("mlp", TASK.input_shape, 3, width=9)


def networks(count: int = 4, net: nn.Module = NET, dtype: torch.dtype = torch.float64) -> list[Weights]:
    draws = (torch.Generator().manual_seed(seed) for seed in range(count))
    return [{name: 3 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype) / p[0].numel() ** 0.5
             for name, p in net.named_parameters()} for g in draws]


def permuted(weights: Weights) -> Weights:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    return {name: tensor[:, order] if name == "linear.1.weight" else tensor[order] if name.startswith("linear.0")
            else tensor + 0 for name, tensor in weights.items()}


def arc_to_permuted(a: Weights, b: Weights) -> Path:
    b = permuted(b)
    return arc(a, b, pooled_centre(a, b, NET.layers()))


def over_a_permuted_point(a: Weights, b: Weights) -> Path:
    return chain([a, permuted(a), b])


def with_units_of_two(a: Weights, b: Weights) -> Path:
    """The end has three units of `a`, five of `b` and one of its own."""
    end = {name: tensor.clone() for name, tensor in b.items()}
    for name in ("linear.0.weight", "linear.0.bias"):
        end[name][:3] = a[name][6:]
        end[name][4] *= 2
    return segment(a, end)


def one_by_one(net: nn.Module, every: list[Weights], path, **kwargs):
    return {(i, j): evaluate(net, path(every[i], every[j]), TASK, **kwargs)
            for i in range(len(every)) for j in range(i + 1, len(every))}


def assert_equal_tables(table, wanted, rtol: float = 1e-9) -> None:
    assert list(table.columns[:2]) == ["first", "second"]
    assert [*table.groupby(["first", "second"]).groups] == [*wanted]
    for pair, one in wanted.items():
        part = table[(table["first"] == pair[0]) & (table["second"] == pair[1])].drop(columns=["first", "second"])
        assert_frame_equal(part.reset_index(drop=True), one, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("path", [segment, arc_to_permuted, over_a_permuted_point, with_units_of_two])
@pytest.mark.parametrize("points", [5, 31])
def test_all_pairs_together_equal_one_path_after_the_other(path, points, monkeypatch):
    monkeypatch.setattr("lossland.evaluation.sharing._SEVERAL", 7 * 5 * 9 * 8)  # some images at a time
    every = networks()
    table = pairs(NET, every, TASK, path=path, points=points)
    assert_equal_tables(table, one_by_one(NET, every, path, points=points))
    assert table.attrs == {"grid": points, "task": "blobs", "pairs": 6, "shared": 6, "product": "float64",
                           "way": "sweep" if points == 31 else "fused"}


def test_first_layers_are_multiplied_once_for_each_network_and_once_for_all_centres(monkeypatch):
    sizes = []

    class Counted(sharing.FirstLayers):
        def __init__(self, task, layers, precision=None, **kwargs):
            sizes.append([len(weight) for weight, _ in layers])
            super().__init__(task, layers, precision, **kwargs)

    monkeypatch.setattr("lossland.pairwise.FirstLayers", Counted)
    pairs(NET, networks(), TASK, path=arc_to_permuted, points=3)
    assert sizes == [[9, 9, 9, 9, 6]]


def adjusted(a: Weights, b: Weights) -> Path:
    return segment(a, {name: tensor * 0.9 for name, tensor in b.items()})


def by_powers(a: Weights, b: Weights) -> Path:
    return Path((Powers(a, {name: 1 for name in a}, lambda s: 1 - s / 2),))


@pytest.mark.parametrize("path", [adjusted, by_powers])
def test_paths_with_other_units_and_other_legs_are_evaluated_alone(path):
    every = networks(9)
    table = pairs(NET, every, TASK, path=lambda a, b: path(a, b) if a is every[0] else segment(a, b), points=4,
                  splits=("test",))
    wanted = one_by_one(NET, every, lambda a, b: path(a, b) if a is every[0] else segment(a, b), points=4, splits=("test",))
    assert_equal_tables(table, wanted)
    assert table.attrs["shared"] == 28 and table.attrs["pairs"] == 36


def test_other_networks_work_too(monkeypatch):
    monkeypatch.setattr("lossland.evaluation.mixtures._WORTH", 0)
    net = models.build("conv2fc1", TASK.input_shape, 3, channels=(2, 3))
    every = networks(3, net)
    table = pairs(net, every, TASK, points=3)
    assert_equal_tables(table, one_by_one(net, every, segment, points=3))
    assert table.attrs["shared"] == 0 and table.attrs["way"] == "shared first layer"


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.1), nn.Tanh()])
def test_users_own_dense_networks_share_products_too(act):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9, bias=False), act, nn.Linear(9, 3))
    every = networks(3, net)
    table = pairs(net, every, TASK, points=17)
    assert_equal_tables(table, one_by_one(net, every, segment, points=17))
    assert table.attrs["shared"] == 3


def test_exact_pairs_are_the_references_and_precision_is_passed_on():
    every = networks(3, dtype=torch.float32)
    exact = pairs(NET, every, TASK, points=9, exact=True)
    assert exact.attrs["way"] == "reference" and exact.attrs["shared"] == 0 and exact.attrs["product"] == "float32"
    assert_equal_tables(pairs(NET, every, TASK, points=9, precision="float32"),
                        one_by_one(NET, every, segment, points=9, exact=True), rtol=1e-5)
    low = pairs(NET, every, TASK, points=9, precision="bfloat16")
    assert low.attrs["product"] == "bfloat16"
    assert 1e-6 < (low.nll - exact.nll).abs().max() < 0.1


def test_bad_pairs_are_named():
    every = networks(3)
    with pytest.raises(ValueError, match="networks must be at least two, got 1"):
        pairs(NET, every[:1], TASK)
    with pytest.raises(ValueError, match=r"networks\[1\]"):
        pairs(NET, [every[0], {}], TASK)
    every[2]["linear.1.weight"][0] = 1e308
    with pytest.raises(FloatingPointError, match="'train'") as error:
        pairs(NET, every, TASK, points=9)
    assert error.value.__notes__ == ["on the path from networks[0] to networks[2]"]
