"""Dense networks with one hidden layer, recognised in whatever form they come: they have kernels of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import gelu, linear, silu

from lossland.kernels import Activation
from lossland.models import MLP
from lossland.weights import Weights, skeleton

_ELEMENTWISE = (nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
                nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
                nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold)
_PLAIN = {nn.ReLU: None, nn.Tanh: torch.tanh, nn.Sigmoid: torch.sigmoid, nn.SiLU: silu, nn.GELU: gelu}
_IDLE = (nn.Identity, nn.Dropout, nn.AlphaDropout)  # when networks are evaluated
_TRIED = 4  # images


@dataclass(frozen=True)
class OneHidden:
    """How a network computes act(x W^T + b) V^T + c from flattened images x.

    Attributes:
        first, head: names of the two linear layers.
        activation: an elementwise function, in no place; None: ReLU.
        slope: of a leaky ReLU below zero; None for others.
        doubled: whether units of a leaky ReLU are written as pairs of ReLU units, max(z, 0) - slope max(-z, 0).
    """

    first: str
    head: str
    activation: Activation | None = None
    slope: float | None = None
    doubled: bool = False

    def layer(self, name: str, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, if there is one, of a linear layer."""
        return weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def second(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the second layer (C, n) with its bias (C,), zeros if it has none."""
        head, shift = self.layer(self.head, weights)
        return head, head.new_zeros(len(head)) if shift is None else shift

    def as_relu(self) -> OneHidden:
        """Return the same network as one of ReLUs, if it can be written so."""
        return self if self.slope is None else replace(self, activation=None, doubled=True)

    def features(self, every: Sequence[Tensor]) -> list[Tensor]:
        """Return the pre-activations (N, n) of this form."""
        return [torch.cat([z, -z], 1) for z in every] if self.doubled else list(every)

    def heads(self, every: Sequence[Tensor]) -> list[Tensor]:
        """Return the second layers (C, n) of this form."""
        return [torch.cat([head, -self.slope * head], 1) for head in every] if self.doubled else list(every)


def one_hidden(net: nn.Module) -> OneHidden | None:
    """Return how a dense network with one hidden layer computes, None for any other.

    Such are `MLP`s, and `nn.Sequential`s of a flatten, a linear layer, an elementwise activation and a linear layer,
    with layers between them that do nothing when networks are evaluated. Points on their paths share first products.
    """
    if isinstance(net, MLP):
        return OneHidden("linear.0", "linear.1") if len(net.linear) == 2 else None
    if type(net) is not nn.Sequential or _hooked(net):
        return None
    parts = [(name, part) for name, part in _leaves(net) if type(part) not in _IDLE]
    if [type(part) for _, part in parts[:2]] != [nn.Flatten, nn.Linear] or len(parts) != 4:
        return None
    (_, flatten), (first, _), (_, act), (head, last) = parts
    if (flatten.start_dim, flatten.end_dim) != (1, -1) or type(act) not in _ELEMENTWISE or type(last) is not nn.Linear:
        return None
    found = OneHidden(first, head, _aside(act), act.negative_slope if type(act) is nn.LeakyReLU else None)
    return found if _computes(net, found) else None


def _leaves(net: nn.Sequential, front: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in net.named_children():
        if type(part) is nn.Sequential:
            yield from _leaves(part, f"{front}{name}.")
        else:
            yield front + name, part


def _hooked(net: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def _aside(act: nn.Module) -> Activation | None:
    """Return an activation that leaves its input as it is, torch's own function where it has no options."""
    if type(act) in _PLAIN and getattr(act, "approximate", "none") == "none":
        return _PLAIN[type(act)]
    aside = copy.copy(act)
    if hasattr(aside, "inplace"):
        aside.inplace = False
    return aside


def _computes(net: nn.Module, how: OneHidden) -> bool:
    """Try out on random weights and images whether a network computes what its structure says."""
    g = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in net.named_parameters()}
    names = {f"{layer}.{part}" for layer in (how.first, how.head) for part in ("weight", "bias")}
    if not {f"{how.first}.weight", f"{how.head}.weight"} <= weights.keys() <= names:
        return False  # a tied layer, or parameters that nobody knows of
    images = torch.randn(_TRIED, weights[f"{how.first}.weight"].shape[1], generator=g, dtype=torch.float64)
    act = how.activation or torch.relu
    hidden = act(linear(images, *how.layer(how.first, weights)))
    wanted = linear(hidden, *how.second(weights))
    return torch.allclose(functional_call(skeleton(net), weights, (images,)), wanted, rtol=1e-9)
