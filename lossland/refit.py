"""Refitting readers: give the layers that read moved units the outputs that they have in network A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.features import Target
from lossland.layers import Layer, elementwise, named, tensor_name
from lossland.least_squares import Moments, Solution, solve
from lossland.patches import is_linear_map
from lossland.weights import Weights

_KNOT_BYTES = 512 * 2**20  # of the moments that one pass over the data adds up


def names_of(layer: Layer, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of all parameters of a layer, its normalisations' included."""
    own = [tensor_name(weights, layer, part) for part in ("weight", "bias")]
    norms = [f"{module}.{part}" for module in (layer.norm, layer.pre_norm) if module for part in ("weight", "bias")]
    return [name for name in (*own, *norms) if name in weights]


def reads_any(layer: Layer, axes: set[str | None]) -> bool:
    """Say whether a layer reads one of some unit axes."""
    return bool((set(named(layer.reads)) - {None}) & axes)


def independent(readers: Sequence[Layer], layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield the readers in order, in runs in which no reader's inputs depend on another one's outputs."""
    run: list[Layer] = []
    for reader in readers:
        if any(_feeds(other, reader, layers) for other in run):
            yield run
            run = []
        run.append(reader)
    if run:
        yield run


def _feeds(first: Layer, second: Layer, layers: Sequence[Layer]) -> bool:
    reached = set(named(first.writes))
    for layer in layers[layers.index(first) + 1 : layers.index(second)]:
        if reads_any(layer, reached):
            reached |= set(named(layer.writes))
    return reads_any(second, reached)


@dataclass(frozen=True)
class Refit:
    """How the readers of moved units are solved for.

    Attributes:
        target: network A.
        layers: the network's layers.
        ridge: relative to the mean eigenvalue of X X^T.
    """

    target: Target
    layers: tuple[Layer, ...]
    ridge: float

    def readers(self, k: int) -> list[Layer]:
        """Return the later layers to be refit when layer k has changed, in forward order.

        They are those that read its units. A reader that is no linear map of its own (a depth-wise convolution, whose
        units are taken one by one; attention; a weight that two modules share) passes the change on to its readers.
        """
        reached, found = set(named(self.layers[k].writes)), self._beside(k)
        for layer in self.layers[k + 1 :]:
            if reads_any(layer, reached):
                if self._can_be_fitted(layer):
                    found.append(layer)
                else:
                    reached |= set(named(layer.writes))
        return sorted(set(found), key=self.layers.index)

    def _beside(self, k: int) -> list[Layer]:
        """Return the later layers that read what the normalisation in front of layer k gives."""
        layer = self.layers[k]
        shared = {axis for axis in named(layer.reads) if layer.pre_norm and axis is not None}
        beside = [other for other in self.layers[k + 1 :] if reads_any(other, shared)
                  and not _feeds(layer, other, self.layers) and self._can_be_fitted(other)]
        if not beside:
            return []
        front = {name for name in names_of(layer, self.target.weights) if name.rpartition(".")[0] == layer.pre_norm}
        reached = self.target.reached(sorted(front)) if front else set()
        return [other for other in beside if other.module in reached]

    def _can_be_fitted(self, layer: Layer) -> bool:
        weights, name = self.target.weights, f"{layer.module}.weight"
        own = tensor_name(weights, layer) == name and not any(other.tied == layer.module for other in self.layers)
        if not own or elementwise(weights, layer):
            return False
        return is_linear_map(self.target.net.get_submodule(layer.module)) and layer.module in self.target.called

    def solve(self, points: list[Weights], readers: Sequence[Layer]) -> list[list[tuple[str, Solution]]]:
        """Fit the readers to A's outputs at each point, in order, and put their weights into the points.

        Args:
            points: changed in place: a reader's weight is replaced, its bias is A's before and after.
            readers: in forward order; a later one sees what the earlier ones have become.

        Returns:
            For every point (module, solution) of each reader.
        """
        found: list[list[tuple[str, Solution]]] = [[] for _ in points]
        for together in independent(readers, self.layers):
            names = [reader.module for reader in together]
            units = [self.target.weights[f"{name}.weight"][0].numel() for name in names]
            count = max(1, _KNOT_BYTES // (8 * sum(n * n for n in units)))
            for start in range(0, len(points), count):
                sums = self.target.moments(points[start : start + count], names)
                for i, moments in enumerate(sums, start):
                    found[i] += [(name, self._put(points[i], name, moments[name])) for name in names]
        return found

    def _put(self, point: Weights, name: str, groups: Sequence[Moments]) -> Solution:
        solutions = [solve(moments, ridge=self.ridge) for moments in groups]
        like = point[f"{name}.weight"]
        weight = torch.cat([one.weight for one in solutions])  # (C, D)
        point[f"{name}.weight"] = weight.to(like.dtype).reshape(like.shape)
        squares = [float(moments.yy) for moments in groups]
        errors = sum(square * one.residual**2 for square, one in zip(squares, solutions, strict=True))
        return Solution(weight, (errors / max(sum(squares), 1e-300)) ** 0.5, max(one.condition for one in solutions),
                        sum(one.rank for one in solutions))
