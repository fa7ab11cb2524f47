"""What tells networks apart: their code and their description, the same in every process."""

import os
import subprocess
import sys

from torch import nn

from lossland.identity import described

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
    found = [described(made(body)) for body in ("images.relu()", "images.tanh()", "images * 2", "images * 3",
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
