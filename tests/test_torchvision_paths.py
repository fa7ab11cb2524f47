"""Networks that are not ours, through trace and then through connect."""

import functools
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from conftest import make_task
from test_stages import METHODS
from test_tracing import TORCHVISION, vision
from torch import nn
from torch.testing import assert_close

from lossland.connect import connect
from lossland.evaluation import evaluate, predict
from lossland.layers import Layer
from lossland.legs import Swaps
from lossland.paths import Path
from lossland.tracing import trace
from lossland.weights import Weights

TASK = make_task(shape=(3, 32, 32), train=6, test=4)


class Narrow(vision.ResNet):
    """A residual network with a sixteenth of the channels."""

    def _make_layer(self, block: type, planes: int, blocks: int, **more: int) -> nn.Sequential:
        return super()._make_layer(block, planes // 16, blocks, **more)


def narrow(block: type, blocks: list[int]) -> nn.Module:
    net = Narrow(block, blocks, num_classes=3)
    net.conv1, net.bn1, net.fc = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.Linear(32 * block.expansion, 3)
    return net


def few_blocks(module: ModuleType) -> nn.Module:
    widths = [(8, 12, 1), (12, 16, 1), (16, 20, 2), (20, None, 1)]
    return module.ConvNeXt([module.CNBlockConfig(*one) for one in widths], 0.1, num_classes=3)


def few_units(module: ModuleType) -> nn.Module:
    settings, last = module._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return module.MobileNetV3(settings[:5], last // 4, num_classes=3)


class Sliced(nn.Module):
    """Two halves of one layer's units multiplied: their order matters, so that they are not matched."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3 * 1024, 8), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = self.first(images.flatten(1)).chunk(2, 1)
        return self.head(self.second(left * right).relu())


NETS = {
    **{name: make for name, (make, _, _) in TORCHVISION.items()},
    "resnet18": lambda: narrow(vision.resnet.BasicBlock, [1, 1, 2, 1]),
    "resnet50": lambda: narrow(vision.resnet.Bottleneck, [1, 1, 1, 1]),
    "convnext_tiny": lambda: few_blocks(vision.convnext),
    "mobilenet_v3_small": lambda: few_units(vision.mobilenetv3),
    "cut in two": Sliced,
}


@functools.cache
def brought(name: str) -> tuple[nn.Module, tuple[Layer, ...], Weights, Weights]:
    """A network, its traced layers and two ends."""
    net, generator = NETS[name]().eval(), torch.Generator()
    layers = tuple(trace(net, torch.zeros(2, 3, 32, 32)))

    def draw(seed: int) -> Weights:
        generator.manual_seed(seed)
        return {key: p.detach() * 0.5 + torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5 / 2
                for key, p in net.named_parameters()}

    return net, layers, draw(1), draw(2)


# Each scheme, move and matching once; what the other combinations add is in test_stages, for smaller networks.
@pytest.mark.parametrize("method", ["linear", "arc", "ot", "arc + butterfly", "ot + wa"])
@pytest.mark.parametrize("name", NETS)
def test_networks_from_elsewhere_are_connected(name, method):
    (net, layers, a, b), (matching, move, scheme) = brought(name), METHODS[method]
    path = connect(net, a, b, layers=layers, task=TASK, matching=matching, move=move, scheme=scheme, knots=2, patches=4)
    for t, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(path.point(t)[key], tensor) for key, tensor in end.items())
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for first, second in pairwise(path.legs):
        end, start = first(one), second(zero)
        assert all(end[key].data_ptr() == start[key].data_ptr() or torch.equal(end[key], start[key]) for key in end)
    check_swaps(net, path, b)
    middle = (len(path.legs) // 2 + 0.5) / len(path.legs)
    assert evaluate(net, path, TASK, points=[middle], splits=("test",)).nll.isna().sum() == 0


def test_units_whose_order_matters_are_left_in_place():
    net, layers, a, b = brought("cut in two")
    assert [layer.fixed for layer in layers] == [True, False, False]
    path = connect(net, a, b, layers=layers, task=TASK, matching="ot", scheme="adjust", knots=2)
    assert list(path.legs[-1].permutations) == ["second"]


def test_what_cannot_be_traced_is_refused_with_what_to_do_and_connected_with_a_list_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), Cumulative(), nn.Linear(6, 3))
    a, b = ({key: p.detach() + seed for key, p in net.named_parameters()} for seed in (0, 0.1))
    with pytest.raises(ValueError, match="does not know what cumprod in '2' \\(Cumulative\\) does.*pass layers= by hand"):
        connect(net, a, b, task=TASK, scheme="adjust")
    by_hand = [Layer("1", None, "hidden", fixed=True), Layer("3", "hidden", None)]
    path = connect(net, a, b, task=TASK, layers=by_hand, scheme="adjust", knots=2)
    assert all(torch.equal(path.point(1.0)[key], tensor) for key, tensor in b.items())


class Cumulative(nn.Module):
    def forward(self, units: torch.Tensor) -> torch.Tensor:
        return units.cumprod(1)


def check_swaps(net: nn.Module, path: Path, b: Weights) -> None:
    """The leg that puts B's units in order ends each swap with B's function."""
    if isinstance(leg := path.legs[-1], Swaps):
        start = {key: tensor[0] for key, tensor in leg(torch.zeros(1)).items()}
        assert_close(predict(net, start, TASK), predict(net, b, TASK), rtol=1e-3, atol=1e-4)
