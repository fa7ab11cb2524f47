"""Networks with one hidden layer, in whatever form they come, go the fast ways, and others do not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from conftest import make_task
from lossland import evaluation as ev
from lossland import models, paths
from lossland.connect import connect
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.walks import swept
from lossland.weights import Weights

TASK = make_task(shape=(1, 8, 8))
ACTS = [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.SiLU(inplace=True), nn.ELU(inplace=True),
        nn.Softplus(), nn.Hardtanh()]


def dense(act: nn.Module, **options: bool) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9, **options), act, nn.Dropout(0.5), nn.Linear(9, 3, **options)).double()


def drawn(net: nn.Module, seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=g, dtype=torch.float64) / 3 for name, p in net.named_parameters()}


class Plain(nn.Module):
    """The same computation where nobody recognises it."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        for name, part in net.named_children():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_users_own_network_is_evaluated_as_fast_as_ours_and_as_right(act, bias):
    net = dense(act, bias=bias)
    a, b, c = (drawn(net, seed) for seed in range(3))
    way = "sweep" if isinstance(act, (nn.ReLU, nn.LeakyReLU)) else "fused"
    for path in (paths.segment(a, b), paths.arc(a, b, c)):
        found, wanted = ev.evaluate(net, path, TASK, points=21), ev.evaluate(Plain(net), path, TASK, points=21)
        assert found.attrs["way"] == way and wanted.attrs["way"] not in ("sweep", "fused")
        exact = ev.evaluate(net, path, TASK, points=21, exact=True)
        for column in ("nll", "accuracy", "ece"):
            assert (found[column] - wanted[column]).abs().max() < 1e-10
            assert (exact[column] - wanted[column]).abs().max() < 1e-10
        assert swept(one_hidden(net), path, 21) == (way == "sweep")


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.ELU(inplace=True)], ids=str)
def test_permutation_stages_of_a_users_own_network(act):
    net = dense(act)
    path = connect(net, drawn(net, 1), drawn(net, 2), task=TASK, matching="ot")
    ts = (1 + path.legs[1].knots()) / 2
    found, exact = (ev.evaluate(net, path, TASK, points=ts, exact=exact) for exact in (False, True))
    assert found.attrs["way"] == ("swap sweep" if isinstance(act, nn.ReLU) else "rank two") and exact.attrs["way"] == "rank two"
    wanted = ev.evaluate(Plain(net), path, TASK, points=ts)
    for table in (found, exact):
        for column in ("nll", "accuracy", "ece", "distance", "norm"):
            assert (table[column] - wanted[column]).abs().max() < 1e-10


FEW = 10  # images, of which others compute what their structure says, so that trying them out does not help


def hooked() -> nn.Module:
    net = dense(nn.ReLU())
    net[2].register_forward_hook(lambda module, images, out: 2 * out if len(out) > FEW else None)
    return net


class Twice(nn.Sequential):
    """A sequence that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + (len(x) > FEW))


class Shifted(nn.Linear):
    """No plain linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (len(x) > FEW)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    net[3].weight = net[1].weight
    return net


OTHERS = {
    "hook": hooked(), "subclass": Twice(*dense(nn.ReLU())), "tied": tied(),
    "own layer": nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), Shifted(9, 3)),
    "parametrised": nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 9)), nn.ReLU(), nn.Linear(9, 3)),
    "no flatten": nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)),
    "other flatten": nn.Sequential(nn.Flatten(2), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3)),
    "no activation": nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, 3)),
    "softmax": dense(nn.Softmax(1)), "own slope": dense(nn.PReLU()), "norm": dense(nn.LayerNorm(9)),
    "deep": models.MLP((1, 8, 8), 3, widths=(9, 9)),
    "deep sequence": nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)),
    "convolution": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(72, 3)),
    "norm at the end": nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.LayerNorm(9)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_not_taken_for_such(name):
    assert one_hidden(OTHERS[name]) is None


def test_what_computes_something_else_behind_a_known_structure_is_found_out(monkeypatch):
    net = dense(nn.ReLU())
    assert one_hidden(nn.Sequential(nn.Flatten(), nn.Sequential(*net[1:]))) is not None
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * nn.functional.linear(x, self.weight, self.bias))
    assert one_hidden(net) is None


def test_recognising_leaves_a_network_as_it_is():
    net = dense(nn.ELU(inplace=True)).train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    assert one_hidden(net) and net.training and net[2].inplace
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
