"""Distances along legs that are linear in k points, from inner products of the points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossland.paths import Mix
from lossland.weights import Weights


class Lengths:
    """Distances from an origin and norms, both float64.

    A tensor that many points share is measured once.
    """

    def __init__(self, origin: Weights) -> None:
        self.origin = origin
        self._known: dict[tuple[str, int], tuple[Tensor, float, float]] = {}  # the tensor itself keeps its id taken

    def of(self, points: Sequence[Weights], coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances (T,) of the members with coefficients (T, k) from the origin, and their norms (T,).

        Distances are exact for coefficients that add up to one, as those of every basis here do.
        """
        moving = Mix(tuple(points), lambda s: s).moving()
        c = coefficients.double().cpu()
        total = c.sum(-1)
        squares = torch.zeros(2, len(c), dtype=torch.float64)
        for name, origin in self.origin.items():
            if name not in moving:
                squares += torch.tensor(self._fixed(name, points[0][name]))[:, None] * total**2
                continue
            tensors = [point[name].double() for point in points]
            for row, away in enumerate(([x - origin.double() for x in tensors], tensors)):
                gram = torch.tensor([[float((x * y).sum()) for y in away[: i + 1]] + [0.0] * (len(away) - i - 1)
                                     for i, x in enumerate(away)], dtype=torch.float64)
                gram = gram + gram.tril(-1).T
                squares[row] += torch.einsum("ti,ij,tj->t", c, gram, c)
        away, norm = squares.clamp(min=0).sqrt()
        return away, norm

    def _fixed(self, name: str, tensor: Tensor) -> tuple[float, float]:
        key = name, id(tensor)
        if key not in self._known:
            x = tensor.double()
            self._known[key] = tensor, float((x - self.origin[name].double()).square().sum()), float(x.square().sum())
        return self._known[key][1:]
