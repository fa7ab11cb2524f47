"""What W21 adds to the loss so that the networks of a subspace differ: cos^2 of control points, and of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lossland.batchnorm import norm_parameters
from lossland.families import Family
from lossland.layout import within
from lossland.schedules import Recipe

_PIECE = 2**16  # numbers that are turned into float64 at a time


@dataclass(frozen=True)
class Apart:
    """The gradient of beta cos^2(w_j, w_k) at two control points, as multiples of the two.

    With c = <w_j, w_k> / (|w_j| |w_k|) it is 2 beta c^2 (w_k / <w_j, w_k> - w_j / |w_j|^2) at w_j, and likewise at w_k:
    two axpys at each, after three inner products.

    Attributes:
        pair: j and k.
        own: (2,) factors of the point itself.
        other: factor of the other point, the same for both.
        weights: stretches of the vectors that it acts on: not the normalisations (D.3).

    Source: W21 Eq. (5) and Algorithm 1.
    """

    pair: tuple[int, int]
    own: Tensor
    other: Tensor
    weights: tuple[slice, ...]

    @staticmethod
    def of(points: Tensor, pair: tuple[int, int], beta: float, weights: tuple[slice, ...]) -> Apart:
        """Return the gradient at the rows `pair` of points (k, P)."""
        j, k = pair
        inner, first, second = (_dot(points[a], points[b], weights) for a, b in ((j, k), (j, j), (k, k)))
        other = 2 * beta * inner / (first * second)
        own = -other * inner / torch.stack([first, second])
        return Apart(pair, own, other, weights)

    def add(self, velocity: Tensor, points: Tensor, i: int, piece: slice, *, decay: float) -> None:
        """Add gradient and weight decay of point i, one of the two, to its velocity; all on a piece of the vectors.

        Args:
            velocity: (n,) of point i.
            points: (k, n) all control points.
            i: number of the point.
            piece: where in the whole vectors the n numbers lie.
            decay: weight decay; it acts on the normalisations, too.
        """
        side = self.pair.index(i)
        other, own, done = points[self.pair[1 - side]], self.own[side] + decay, 0
        for stretch in self.weights:
            part = within(stretch, piece)
            if decay and part.start > done:
                velocity[done : part.start].add_(points[i, done : part.start], alpha=decay)
            velocity[part].addcmul_(points[i, part], own).addcmul_(other[part], self.other)
            done = max(done, part.stop)
        if decay and done < len(velocity):
            velocity[done:].add_(points[i, done:], alpha=decay)


def alike(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean over images of cos^2 between two networks' features, each image's numbers taken as one vector.

    Args:
        one, other: (n, ...) and (n', ...) features; the first min(n, n') images of both are compared.

    Source: W21 Eq. (13), which does not say how features of several images are put together.

    Examples:
        >>> alike(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 1.0]]))
        tensor(0.5000)
    """
    count = min(len(one), len(other))
    return cosine_similarity(one[:count].flatten(1), other[:count].flatten(1), dim=1).square().mean()


def check_suits(family: Family, recipe: Recipe) -> None:
    """Raise unless the family has what the recipe's options for subspaces need.

    Raises:
        ValueError: for beta > 0 with fewer than two free control points, layerwise positions of a point, similarity
            without an interval; saying what to do.
    """
    if recipe.beta and sum(family.free) < 2:
        raise ValueError("beta > 0 needs at least two free control points, whose angle it opens, got "
                         f"{sum(family.free)} in a {family.kind}: take a line, a simplex or bezier(a, b, ends='free'), "
                         "or beta=0")
    if recipe.layerwise and family.domain == "point":
        raise ValueError("layerwise=True needs a family of several control points, got a point: take a line, a curve "
                         "or a simplex, or layerwise=False")
    if recipe.similarity and family.domain != "interval":
        raise ValueError("similarity > 0 needs a family over an interval: Eq. (13) of W21 weighs by |t_j - t_k|, got "
                         f"a {family.kind}: take a line or a curve, or similarity=0")


def _dot(a: Tensor, b: Tensor, weights: Sequence[slice]) -> Tensor:
    parts = [torch.dot(a[stretch], b[stretch]) for stretch in weights]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def _means(count: int, parts: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """Return mean distance and mean cos^2 over the pairs of `count` vectors that come in parts of any length."""
    inner, offsets = torch.zeros(2, count, count, dtype=torch.float64)
    for vectors in parts:
        for start in range(0, len(vectors[0]), _PIECE):
            rows = torch.stack([vector[start : start + _PIECE].double() for vector in vectors])
            inner += (rows @ rows.T).cpu()
            rows -= rows[0].clone()  # what two networks have in common is not to be subtracted from sums of squares
            offsets += (rows @ rows.T).cpu()
    j, k = torch.triu_indices(count, count, 1)
    squares = offsets[j, j] + offsets[k, k] - 2 * offsets[j, k]
    sizes = inner[j, j] * inner[k, k]
    return {"distance": float(squares.clamp(min=0).sqrt().mean()),
            "cos2": float((inner[j, k].square() / sizes.clamp(min=torch.finfo(torch.float64).tiny)).mean())}


def apart(points: Sequence[Tensor], weights: Sequence[slice]) -> dict[str, float]:
    """Return what `spread` does, for k vectors (P,) and the stretches of them that count."""
    return _means(len(points), [[point[stretch] for point in points] for stretch in weights])


def spread(net: nn.Module, points: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return how far apart networks are: the l2 distance and cos^2 of two of them, as means over all pairs.

    Args:
        net: the network; the parameters of its normalisation layers are left out.
        points: k >= 2 weights of it, such as the control points of a family.

    Returns:
        "distance" and "cos2", worked out in float64; a network of zeros has no angle and counts as orthogonal.

    Raises:
        ValueError: for fewer than two.

    Source: W21 Figs. 3, 15 and 16, D.3.

    Examples:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> spread(net, [{"weight": torch.tensor([[3.0, 0.0]])}, {"weight": torch.tensor([[0.0, 4.0]])}])
        {'distance': 5.0, 'cos2': 0.0}
    """
    if len(points) < 2:
        raise ValueError(f"points must hold at least two networks, got {len(points)}")
    norms = norm_parameters(net)
    return _means(len(points), [[point[name].detach().reshape(-1) for point in points]
                                for name in points[0] if name not in norms])
