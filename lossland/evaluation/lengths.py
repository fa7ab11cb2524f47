"""Distances along legs that are linear in k points, from inner products of the points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossland.paths import Mix, Path
from lossland.weights import Weights, at


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
        gram = torch.zeros(len(points) + 1, len(points) + 1, dtype=torch.float64)
        for name, origin in self.origin.items():
            if name not in moving:
                fixed = torch.tensor(self._fixed(name, points[0][name]), dtype=torch.float64)
                squares += fixed[:, None] * total**2
                continue
            rows = torch.stack([*(point[name].double().flatten() for point in points), origin.double().flatten()])
            rows[:-1] -= rows[-1:]
            gram += (rows @ rows.T).cpu()
        # A member is sum of c_i (w_i - o) + total * o; its distance from the origin is the length of the first part.
        for square, last in zip(squares, (torch.zeros_like(total), total), strict=True):
            every = torch.cat([c, last[:, None]], 1)
            square += torch.einsum("ti,ij,tj->t", every, gram, every)
        away, norm = squares.clamp(min=0).sqrt()
        return away, norm

    def along(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances (T,) of the points of a path at t (T,) from the origin, and their norms (T,)."""
        (leg, s), found = path.locate(t), torch.zeros(2, len(t), dtype=torch.float64)
        for i in leg.unique().tolist():
            where, piece = (leg == i).nonzero()[:, 0], path.legs[i]
            if isinstance(piece, Mix):
                found[:, where] = torch.stack(self.of(piece.points, piece.basis(s[where]).double()))
                continue
            for row in where.tolist():
                found[:, row] = torch.cat(self.of([at(piece(s[row, None]), 0)], torch.ones(1, 1)))
        return found[0], found[1]

    def _fixed(self, name: str, tensor: Tensor) -> tuple[float, float]:
        key = name, id(tensor)
        if key not in self._known:
            x = tensor.double()
            self._known[key] = tensor, float((x - self.origin[name].double()).square().sum()), float(x.square().sum())
        return self._known[key][1:]
