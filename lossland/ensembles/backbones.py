"""Networks cut in two: a backbone that runs once, and heads that go on from what it computed.

A cut is counted from the output: n layers belong to the head. It is possible where everything the head knows of the
data comes through layers of its own, so that no unit axis that it reads is written on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.layers import check_cover
from lossland.units import PER_UNIT, Layer, axes, named, tensor_name
from lossland.weights import Weights, skeleton


def cuts(layers: Sequence[Layer]) -> dict[int, tuple[Layer, ...]]:
    """Return every n at which a network can be cut -> the layers at the cut: first of the head, fed by the backbone.

    All inputs of a layer of the head must come from one side. Inside a stage of a residual network they do not: the
    stream behind the cut is the sum of what both sides wrote. Tied weights must lie on one side, too. With
    n = len(layers) the backbone is empty, and so are the layers at the cut: the head starts from the data.

    Args:
        layers: in forward order.

    Examples:
        >>> layers = [Layer("a", None, "x"), Layer("b", "x", "y"), Layer("c", "y", None)]
        >>> {n: [layer.module for layer in found] for n, found in cuts(layers).items()}
        {1: ['c'], 2: ['b'], 3: []}
    """
    found = {n: _at_cut(layers, n) for n in range(1, len(layers))}
    return {n: at for n, at in found.items() if at is not None} | {len(layers): ()}


def _at_cut(layers: Sequence[Layer], n: int) -> tuple[Layer, ...] | None:
    """Return the head's layers that read the backbone or the data; None where the network cannot be cut."""
    body = {layer.module for layer in layers[:-n]}
    tied = {name for layer in layers if layer.tied for name in (layer.module, layer.tied)}
    if any(layer.tied and (layer.tied in body) != (layer.module in body) for layer in layers):
        return None
    of_body = {axis: {writer.module in body for writer in writers} for axis, (writers, _) in axes(layers).items()}
    found = []
    for layer in layers[-n:]:
        sides = set().union(*(of_body.get(axis, {True}) for axis in named(layer.reads)))  # data come from the front
        if len(sides) > 1 or (True in sides and layer.module in tied):
            return None
        found += [layer] if True in sides else []
    return tuple(found)


def check_cut(layers: Sequence[Layer], n: int) -> int:
    """Return n if the network can be cut there.

    Raises:
        ValueError: if it cannot, naming the n that are possible and the layer of each.
    """
    possible = cuts(layers)
    if type(n) is not int or n not in possible:
        named = ", ".join(f"{m} ({layers[-m].module})" for m in possible)
        there = type(n) is int and 1 <= n <= len(layers)
        why = (f"what layer {layers[-n].module!r} or one behind it reads is written on both sides of the cut" if there
               else "no layer is there")
        raise ValueError(f"n must be one of {named}, counted from the output; got {n}: {why}")
    return n


@dataclass(frozen=True)
class Features:
    """What a backbone made of some images.

    Attributes:
        images: (b, ...) the inputs, of which a head with a backbone uses the shape alone.
        inputs: module name -> (b, ...) inputs of the layers at the cut.
    """

    images: Tensor
    inputs: dict[str, Tensor]


def _owned(state: Sequence[str], body: Sequence[Layer], at_cut: Sequence[Layer]) -> frozenset[str]:
    """Return the names of the backbone's parameters and buffers."""
    norms = {name for layer in body for name in (layer.norm, layer.pre_norm) if name}
    norms |= {layer.pre_norm for layer in at_cut if layer.pre_norm}
    own = {tensor_name(state, layer, part) for layer in body for part in PER_UNIT}
    return frozenset(name for name in state if name in own or name.rpartition(".")[0] in norms)


class _Reached(Exception):
    """Everything at the cut is known: the rest of the forward pass is not needed."""


class Backbone:
    """A network cut in two, without weights of its own.

    Heads run on the module as it is: its backbone computes on the `meta` device, shapes only, and the layers at the cut
    find the stored features in place of their inputs.

    Args:
        net: the network; its modules are not touched, private copies are.
        layers: in forward order; they must cover every parameter.
        n: layers of the head, counted from the output.

    Attributes:
        at_cut: the layers at the cut.

    Raises:
        ValueError: if the network cannot be cut there, or `layers` does not cover it.
        TypeError: if a layer at the cut is no module of its own (a packed part of an attention, say), naming it.
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer], n: int) -> None:
        check_cover(net, layers)
        check_cut(layers, n)
        state = [*dict(net.named_parameters()), *dict(net.named_buffers())]
        # A bare parameter (a class token, say) reads nothing: there is no call to go on from.
        self.at_cut = tuple(layer for layer in cuts(layers)[n] if layer.module not in state)
        self._names = _owned(state, layers[:-n], self.at_cut)
        self._front, self._rest = skeleton(net), skeleton(net)
        self._dtype = next(net.parameters()).dtype
        self._seen: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}
        modules = dict(net.named_modules())
        for layer in self.at_cut:
            if layer.module not in modules:
                raise TypeError(f"a layer at the cut must be a module of its own, got {layer.module!r}, a part of one")
            self._front.get_submodule(layer.module).register_forward_pre_hook(self._keep(layer.module))
            self._rest.get_submodule(layer.module).register_forward_pre_hook(self._give(layer.module))

    def owns(self, name: str) -> bool:
        """Return whether a parameter or buffer belongs to the backbone.

        It has its layers with their normalisations, and the normalisations in front of the layers at the cut.
        """
        return name in self._names

    def _keep(self, name: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self._seen[name] = inputs[0]
            if len(self._seen) == len(self.at_cut):
                raise _Reached
            return self._shape_of(inputs[0]), *inputs[1:]  # until the others are reached, no number behind the cut

        return hook

    def _shape_of(self, tensor: Tensor) -> Tensor:
        """Return a tensor without storage, in the dtype of the skeleton's own weights."""
        return tensor.to("meta", self._dtype)

    def _give(self, name: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if name not in self._given:
                raise ValueError(f"layer {name!r} at the cut must be called once in a forward pass, "
                                 "but it was called again")
            return self._given.pop(name), *inputs[1:]

        return hook

    def features(self, weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> Features:
        """Return the inputs of the layers at the cut; what lies behind them is not computed.

        Args:
            weights: at least the backbone's.
            buffers: at least the backbone's.
            images: (b, C, H, W) prepared.

        Raises:
            ValueError: if a layer at the cut is not reached.
        """
        if not self.at_cut:
            return Features(images, {})
        self._seen = {}
        try:
            functional_call(self._front, (self._of(weights, True), self._of(buffers, True)), (images,))
        except _Reached:
            return Features(images, dict(self._seen))
        missed = [layer.module for layer in self.at_cut if layer.module not in self._seen]
        raise ValueError(f"layers at the cut must be reached by a forward pass, but {missed} were not called")

    def head(self, weights: Weights, buffers: dict[str, Tensor], features: Features) -> Tensor:
        """Return the logits (b, C) of a head on the backbone's features.

        Args:
            weights: at least the head's.
            buffers: at least the head's.
            features: from `features`, of this cut.
        """
        self._given = dict(features.inputs)
        images = self._shape_of(features.images) if self.at_cut else features.images
        return functional_call(self._rest, (self._of(weights, False), self._of(buffers, False)), (images,))

    def _of(self, tensors: dict[str, Tensor], backbone: bool) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if self.owns(name) == backbone}
