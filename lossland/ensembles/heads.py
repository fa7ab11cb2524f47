"""Heads of other networks on one backbone: their first layers solved, so that they give what they gave before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from lossland.ensembles.backbones import Backbone, Features
from lossland.errors import choose
from lossland.features import PATCHES, blocks, groups_of, products_dtype, rows_of
from lossland.layers import Layer
from lossland.least_squares import Moments, solve
from lossland.tasks import Task
from lossland.weights import Weights

_BLOCK = 4096  # images at a time
_BLOCK_BYTES = 128 * 2**20  # of one block of features and targets


class _System:
    """One layer at the cut: W_1, ..., W_m with W_k X_1 = W_k' X_k, one matrix X_1 X_1^T for all of them.

    A convolution with g groups consists of g such systems.
    """

    def __init__(self, module: nn.Module, layer: Layer, others: Sequence[Weights], patches: int | None) -> None:
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise TypeError(f"layer {layer.module!r} must be a linear or 2-D convolutional module to be adjusted, "
                            f"got {type(module).__name__}")
        self.module, self.layer, self.patches = module, layer, patches
        weights = [member[f"{layer.module}.weight"] for member in others]
        self.theirs = [weight.flatten(1).unflatten(0, (groups_of(module), -1)) for weight in weights]  # (g, C, D)
        self.sums: list[Moments] = []
        self.squares = torch.zeros(len(others), groups_of(module), dtype=torch.float64, device=weights[0].device)

    def rows(self, features: Features) -> Tensor:
        """Return the layer's inputs as rows (g, samples, D)."""
        return rows_of(self.module, features.inputs[self.layer.module], self.patches)

    def begin(self, base: Features, images: int) -> int:
        """Make room for the sums over so many images, from the features of one; return the bytes that one image takes.
        """
        found = self.rows(base)
        (groups, outputs, units), count = self.theirs[0].shape, len(self.theirs)
        products = products_dtype(found.shape[1] * images, units, found.dtype)
        self.sums = [Moments.zeros(units, outputs * count, products=products, device=found.device)
                     for _ in range(groups)]
        return 2 * found.nbytes + groups * found.shape[1] * outputs * count * found.itemsize

    def add(self, base: Features, others: Sequence[Features]) -> None:
        """Add a block of images."""
        targets = [self.rows(found) @ theirs.mT for found, theirs in zip(others, self.theirs, strict=True)]
        for total, x, y in zip(self.sums, self.rows(base), torch.cat(targets, 2), strict=True):
            total.add(x, y)
        self.squares += torch.stack([target.double().square().sum((1, 2)) for target in targets])

    def solve(self, ridge: float) -> tuple[Tensor, list[dict[str, float | str]]]:
        """Return the weights (m, g * C, D) float64 and what to know of each."""
        found, gaps = [solve(total, ridge=ridge) for total in self.sums], []
        for one, total in zip(found, self.sums, strict=True):
            gap = (one.weight @ total.gram - 2 * total.yx).mul(one.weight).sum(1)  # (m * C,)
            gaps.append(gap.unflatten(0, (len(self.theirs), -1)).sum(1))
        square = self.squares.sum(1)
        residual = ((square + torch.stack(gaps).sum(0)) / square.clamp(min=1e-300)).clamp(min=0).sqrt()
        condition = max(one.condition for one in found)
        facts = [{"member": k, "module": self.layer.module, "residual": value, "condition": condition}
                 for k, value in enumerate(residual.tolist(), 1)]
        weights = [one.weight.unflatten(0, (len(self.theirs), -1)) for one in found]  # each (m, C, D)
        return torch.cat(weights, 1), facts


@dataclass(frozen=True)
class Member:
    """A network on its own: parameters, and the buffers that belong to them."""

    weights: Weights
    buffers: dict[str, Tensor]


@torch.no_grad()
def adjusted_heads(net: nn.Module, backbone: Backbone, members: Sequence[Member], task: Task, *,
                   ridge: float, patches: int | None = None) -> tuple[list[Weights], pd.DataFrame]:
    """Return the weights of all members on the backbone of the first, and how well the adjusted layers fit.

    The backbone's tensors, those of the first member, are the same objects in all weights that are returned.

    Args:
        net: the network.
        backbone: where it is cut.
        members: the first is the base.
        task: its training images, as they are, give the second moments; one pass for all members and layers.
        ridge: relative to the mean eigenvalue of the moments.
        patches: of an image that a convolution's system is made of: None: all; 4: AY20's released setting.

    Returns:
        The weights, the base's own first, and a table with a row per adjusted layer of a member: member, module,
        residual |Y - W X| / |Y| [fraction], condition.

    Raises:
        TypeError: for a layer at the cut that is neither linear nor a 2-D convolution, naming it.
        ValueError: for other `patches`, or a negative ridge.

    Source: AY20 section 6, W_k^1 = W_k F_k F_1^+.
    """
    choose("patches", patches, PATCHES)
    base, others = members[0], members[1:]
    heads = [{name: base.weights[name] if backbone.owns(name) else tensor for name, tensor in member.weights.items()}
             for member in members]
    systems = [_System(net.get_submodule(layer.module), layer, [member.weights for member in others],
                       patches)
               for layer in backbone.at_cut if others and layer.reads is not None]
    facts = []
    if systems:
        _add_up(systems, backbone, members, task)
    for system in systems:
        weights, found = system.solve(ridge)
        facts += found
        name = f"{system.layer.module}.weight"
        for head, weight in zip(heads[1:], weights, strict=True):
            head[name] = weight.to(base.weights[name].dtype).reshape(base.weights[name].shape)
    return heads, pd.DataFrame(facts, columns=["member", "module", "residual", "condition"])


def _add_up(systems: Sequence[_System], backbone: Backbone, members: Sequence[Member], task: Task) -> None:
    dtype = systems[0].theirs[0].dtype

    def features(images: Tensor) -> list[Features]:
        return [backbone.features(member.weights, member.buffers, images) for member in members]

    probe = features(next(blocks(task, 1, dtype)))
    size = _BLOCK_BYTES // sum(system.begin(probe[0], len(task.train)) for system in systems)
    for images in blocks(task, max(1, min(_BLOCK, size)), dtype):
        base, *others = features(images)
        for system in systems:
            system.add(base, others)
