"""What tells networks apart: their code and their description, the same in every process."""

import os
import subprocess
import sys

import torch
from torch import nn

from lossland.identity import described, fingerprint

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
