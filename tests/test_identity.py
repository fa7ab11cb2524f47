"""What tells networks apart: their code and their description, the same in every process."""

import hashlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from lossland.batchnorm import statistics
from lossland.identity import described, fingerprint
from lossland.models import build

MADE = """
from torch import nn
from lossland.identity import described

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, images):
        return self.layer({body})
"""


def made(body: str) -> nn.Module:
    """A network of a class of always the same name."""
    space: dict = {"__name__": "mine"}
    exec(MADE.format(body=body), space)
    return space["Net"]()


def test_another_forward_is_another_network():
    net = made("images.relu()")
    assert described(net) == described(made("images.relu()"))
    assert described(net) == described(made("images . relu( )"))
    found = [described(made(body)) for body in ("images.relu()", "images.tanh()", "images * 2", "images * 3", "images + 2",
                                                "(lambda x: x * 2)(images)", "(lambda x: x * 3)(images)")]
    assert len({one["description"] for one in found}) == len(found) and len({one["class"] for one in found}) == 1


def test_code_of_a_part_and_of_a_parent_counts():
    class Child(type(made("images.relu()"))):
        pass

    class Other(type(made("images.tanh()"))):
        pass

    Other.__qualname__, Other.__name__ = Child.__qualname__, Child.__name__
    assert described(Child())["class"] == described(Other())["class"] and described(Child()) != described(Other())
    parts = [nn.Sequential(made(body)) for body in ("images.relu()", "images.tanh()")]
    assert described(parts[0]) != described(parts[1])


def test_every_process_says_the_same():
    """The order of a set of words changes from process to process."""
    program = MADE.format(body="images if 'a' in {'a', 'b', 'c', 'd', 'e'} else -images") + "print(described(Net()))"
    said = {subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": str(seed)}, check=True,
                           capture_output=True, text=True).stdout for seed in (1, 2)}
    assert len(said) == 1 and "description" in said.pop()


def test_modules_of_torch_and_of_this_package_are_told_by_their_description():
    assert described(nn.Linear(3, 2)) == described(nn.Linear(3, 2)) != described(nn.Linear(3, 3))
    # Same shapes, another description; same description, other shapes.
    assert described(nn.Sequential(nn.ReLU())) != described(nn.Sequential(nn.Tanh()))

    class Token(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(shape))

    assert repr(Token(2, 3)) == repr(Token(3, 2)) and described(Token(2, 3)) != described(Token(3, 2))


def test_buffers_that_stay_count_and_batch_norm_statistics_do_not():
    def scaled(factor: float) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        net.register_buffer("factor", torch.tensor(factor))
        return net

    net, seen = scaled(1.0), scaled(1.0)
    seen(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    assert described(net) == described(seen) != described(scaled(2.0))


def test_fingerprints_tell_names_shapes_and_numbers_in_a_type_apart():
    weights = {"w": torch.arange(6.0).reshape(2, 3)}
    others = [{"v": weights["w"]}, {"w": weights["w"].T.contiguous().reshape(3, 2)}, {"w": weights["w"].reshape(3, 2)},
              {"w": weights["w"] * (1 + 1e-6)}]
    found = [fingerprint(each, torch.float32) for each in (weights, *others)]
    assert len(set(found)) == len(found) and {len(one) for one in found} == {16}
    assert fingerprint({"w": weights["w"].double()}, torch.float32) == found[0]


ATTRIBUTES = """
import functools, math
from types import SimpleNamespace
import torch
import torch.nn.functional as F
from torch import nn
from lossland.identity import described

{before}

class Net(nn.Module):
    rate = {rate}

    def __init__(self, what):
        super().__init__()
        self.layer, self.drop, self.what = nn.Linear(3, 2), nn.Dropout(), what
        self.again = [self, self.layer, self.layer.weight, self.forward]

    {decorator}
    def forward(self, images, by={by}):
        return self.layer({body})

net = Net({what})
"""


def said_of(before: str = "", what: str = "None", rate: str = "0", body: str = "images", by: str = "1", decorator: str = "") -> str:
    space: dict = {"__name__": "mine"}
    exec(ATTRIBUTES.format(before=before, what=what, rate=rate, body=body, by=by, decorator=decorator), space)
    return described(space["net"])["description"]


@pytest.mark.parametrize("settings", [
    [{"what": what} for what in (
        "0.5", "0.25", "1", "True", "None", "'tanh'", "[1, 2]", "[2, 1]", "(1, 2)", "{'a': 1}", "{'a': 2}", "{1, 2}", "{1, 3}",
        "torch.ones(2)", "torch.zeros(2)", "torch.ones(2).numpy()", "torch.float32", "torch.float64", "F.relu", "F.gelu", "torch.tanh",
        "torch.sin", "torch.relu", "math.sin", "lambda x: x * 2", "lambda x: x * 3", "nn.Tanh", "nn.ReLU", "SimpleNamespace(p=.5)",
        "SimpleNamespace(p=.25)", "functools.partial(F.relu, inplace=False)", "functools.partial(F.relu, inplace=True)",
        "functools.cache(lambda x: x * 2)", "functools.cache(lambda x: x * 3)")],
    [{"before": f"class Config:\n    def __init__(self):\n        self.p, self.me = {p}, self", "what": "Config()"} for p in (1, 2)],
    [{"before": f"class Config:\n    __slots__ = 'p'\n    def __init__(self):\n        self.p = {p}", "what": "Config()"} for p in (1, 2)],
    [{"before": f"class Act:\n    def __call__(self, x):\n        return x * {p}", "what": "Act()"} for p in (1, 2)],
    [{"before": f"def outer(k):\n    return lambda x: x * k\nact = outer({k})", "what": "act"} for k in (2, 3)],
    [{"before": f"scale = {k}", "body": "images * scale"} for k in ("2", "3", "'a'", "(1, 2)", "[1, 2]", "torch.ones(3)", "torch.zeros(3)")],
    [{"before": f"act = {k}", "body": "act(images)"} for k in ("torch.sin", "torch.cos", "F.relu", "F.gelu")],
    [{"before": f"def inner(x):\n    return x * {k}\ndef act(x):\n    return inner(x) if x.ndim else act(x)",
      "body": "(lambda x: act(x))(images)"} for k in (2, 3)],
    [{"before": f"class Act(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x * {k}",
      "body": "Act.apply(images)"} for k in (2, 3)],
    [{"rate": rate} for rate in "23"],
    [{"by": by} for by in "23"],
    [{"decorator": "@torch.no_grad()", "body": body} for body in ("images", "images + 1")],
    [{"before": f"def twice(f):\n    return lambda self, x: f(self, x) * {k}", "decorator": "@twice"} for k in (2, 3)],
], ids=lambda settings: next(iter(settings[0])) + "-" + str(settings[0])[:40])
def test_whatever_a_network_of_ones_own_computes_with_counts(settings):
    found = [said_of(**each) for each in settings]
    assert len(set(found)) == len(found) and found == [said_of(**each) for each in settings]


def test_a_helper_module_of_the_users_counts_as_far_as_it_is_used(monkeypatch):
    def described_with(**inside: float) -> str:
        module = ModuleType("mine_too")
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, "mine_too", module)
        return said_of("import mine_too", body="images * mine_too.scale")

    assert described_with(scale=2, other=1) == described_with(scale=2, other=5) != described_with(scale=3, other=1)


def test_hooks_and_what_torch_does_not_show_count_in_networks_of_ones_own():
    class Net(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(4, heads)

    assert repr(Net(1)) == repr(Net(2)) and described(Net(1)) == described(Net(1)) != described(Net(2))
    nets = [nn.Sequential(nn.Linear(3, 3)) for _ in range(3)]
    nets[0][0].register_forward_hook(lambda module, given, out: out * 2)
    nets[1][0].register_forward_hook(lambda module, given, out: out * 3)
    assert len({described(net)["description"] for net in nets}) == 3


def test_weights_and_unused_globals_do_not_count():
    assert said_of() == said_of()  # the weights of each are drawn anew
    assert said_of("relu = 1", body="images.relu()") == said_of("relu = 2", body="images.relu()")
    assert said_of("import logging; log = logging.getLogger('a')", body="log.info(images)")


@pytest.mark.parametrize("model, shape, sizes", [("mlp", (1, 4, 4), {"width": 3}), ("cresnet20", (3, 8, 8), {}), ("resnet50", (3, 32, 32), {}),
                                                 ("lstm", (7,), {"hidden": 3})])
def test_named_networks_keep_the_place_in_the_store_that_they_had(model, shape, sizes):
    """As before attributes counted."""
    net = build(model, shape, 7, **sizes)
    shapes = [(key, tuple(parameter.shape)) for key, parameter in net.named_parameters()]
    assert not [key for key, _ in net.named_buffers() if key not in statistics(net)]
    assert described(net)["description"] == hashlib.sha256(repr((repr(net), shapes)).encode()).hexdigest()[:16]
    assert described(net)["class"] == f"{type(net).__module__}.{type(net).__qualname__}"


def test_every_process_says_the_same_of_attributes_and_globals():
    program = ATTRIBUTES.format(before="words, act = {'a', 'b', 'c', 'd'}, object()\nclass A: pass\na = A(); a.b = a",
                                what="[{'x', 'y', 'z'}, frozenset({'p', 'q'}), object(), F.relu, torch.sin, lambda x: x, a]",
                                rate="0", body="images if 'a' in words else act", by="(1, object())", decorator="")
    said = {subprocess.run([sys.executable, "-c", program + "\nprint(described(net))"], env=os.environ | {"PYTHONHASHSEED": str(seed)},
                           check=True, capture_output=True, text=True).stdout for seed in (1, 2)}
    assert len(said) == 1 and "description" in said.pop()
