"""What networks cost: multiply-adds and stored parameters, of one network and of ensembles with a shared backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossland.units import Layer, tensor_name
from lossland.weights import skeleton

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def multiply_adds(net: nn.Module, layers: Sequence[Layer], shape: tuple[int, ...]) -> dict[str, int]:
    """Return module name -> multiply-adds of one image, for each layer: its outputs times the weights behind each.

    Biases, normalisations, activations, pooling and bare parameters are left out: they cost one operation per number,
    not one per weight.

    Args:
        net: the network, of linear and convolutional layers.
        layers: in forward order.
        shape: (C, H, W) of one image.

    Raises:
        TypeError: for a layer of another kind, naming it.
        ValueError: for a layer that is not called as a module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> multiply_adds(net, [Layer("0", None, "hidden"), Layer("2", "hidden", None)], (4,))
        {'0': 12, '2': 6}
    """
    bare, counts = skeleton(net), dict.fromkeys((layer.module for layer in layers), 0)
    waiting = set()  # for a call; a module whose weights another one reads for it (an attention) is never called

    def counter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            counts[name] += output.numel() * module.weight[0].numel()
            waiting.discard(name)

        return hook

    modules, parameters = dict(bare.named_modules()), dict(bare.named_parameters())
    for layer in layers:
        module, weight = modules.get(layer.module), parameters[str(tensor_name(parameters, layer))]
        if isinstance(module, _COUNTED):
            module.register_forward_hook(counter(layer.module))
            waiting.add(layer.module)
        elif weight.ndim > 1 and layer.module not in parameters:
            raise TypeError(f"layer {layer.module!r} must be linear or a convolution to be counted, "
                            f"got {type(module).__name__ if module else 'a part of a module'}")
    bare(torch.empty(1, *shape, device="meta"))
    if waiting:
        raise ValueError(f"layers must be called as modules to be counted, but {sorted(waiting)} were not")
    return counts


@dataclass(frozen=True)
class Cost:
    """What an ensemble costs: multiply-adds of one image, and stored parameters (statistics of batch norm left out).

    Attributes:
        members: m, the number of heads.
        backbone, head: multiply-adds of the shared layers, and of one head.
        backbone_parameters, head_parameters: numbers stored for them.

    Examples:
        >>> cost = Cost(3, backbone=80, head=20, backbone_parameters=60, head_parameters=40)
        >>> cost.multiply_adds, cost.parameters, cost.in_networks, cost.stored_networks
        (140, 180, 1.4, 1.8)
    """

    members: int
    backbone: int
    head: int
    backbone_parameters: int
    head_parameters: int

    @property
    def multiply_adds(self) -> int:
        """Return those of the backbone and of m heads."""
        return self.backbone + self.members * self.head

    @property
    def parameters(self) -> int:
        """Return those of the backbone and of m heads."""
        return self.backbone_parameters + self.members * self.head_parameters

    @property
    def in_networks(self) -> float:
        """Return the multiply-adds in units of one network: between 1 and m."""
        return self.multiply_adds / (self.backbone + self.head)

    @property
    def stored_networks(self) -> float:
        """Return the stored parameters in units of one network: between 1 and m."""
        return self.parameters / (self.backbone_parameters + self.head_parameters)
