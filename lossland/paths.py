"""Paths: continuous, piecewise maps from t in [0, 1] to weights.

A path is made of legs that share [0, 1] equally. A leg that is linear in k fixed points (`Mix`) exposes the points and
their coefficients, so that whoever evaluates the path can share work between points; any other callable leg works too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.bases import Basis, arc_basis, bezier_basis, chain_basis, linear_basis
from lossland.weights import Weights, at, check_finite, check_match, distance, mix

__all__ = ["Basis", "Leg", "Mix", "Path", "adds_up", "arc", "arc_basis", "bezier", "bezier_basis", "chain",
           "chain_basis", "join", "linear_basis", "segment"]

Leg = Callable[[Tensor], Weights]


@dataclass(frozen=True)
class Mix:
    """A leg that is linear in k fixed points: weights(s) = sum_i basis(s)_i points_i.

    Attributes:
        points: k weights of equal names and shapes (referred to, not copied).
        basis: s (T,) in [0, 1] -> coefficients (T, k).
    """

    points: tuple[Weights, ...]
    basis: Basis

    def __call__(self, s: Tensor) -> Weights:
        """Return stacked weights with leading axis T at the positions s (T,)."""
        return self.mixed(self.basis(s))

    def steps(self, start: Tensor, end: Tensor) -> Tensor:
        """Return the l2 distances (T,) float64 between the members at `start` and those at `end`, positions (T,)."""
        c, c_end = self.basis(start.double()), self.basis(end.double())
        names = self.moving() if adds_up(c) and adds_up(c_end) else self.points[0].keys()
        gram = torch.zeros(len(self.points), len(self.points), dtype=torch.float64)
        for name in names:
            rows = torch.stack([point[name].double().flatten() for point in self.points])  # (k, n)
            rows[:-1] -= rows[1:].clone()
            gram += (rows @ rows.T).cpu()
        # By parts: sum of c_i w_i = sum of (c_0 + ... + c_i)(w_i - w_{i+1}) + (c_0 + ... + c_k) w_k, the last one 0.
        c = (c_end - c).cumsum(-1)
        return torch.einsum("ti,ij,tj->t", c, gram, c).clamp(min=0).sqrt()

    def moving(self) -> frozenset[str]:
        """Return the names of the parameters that move: those that are not one and the same tensor in all points."""
        first = self.points[0]
        return frozenset(name for name in first if any(point[name] is not first[name] for point in self.points))

    def mixed(self, coefficients: Tensor) -> Weights:
        """Return the members with coefficients (T, k), stacked, or (k,); what does not move keeps every bit.

        Where coefficients do not add up to one, all parameters are scaled.
        """
        moving = self.moving() if adds_up(coefficients) else frozenset(self.points[0])
        moved = mix([{name: point[name] for name in moving} for point in self.points], coefficients)
        count = coefficients.shape[:-1]
        return {name: moved[name] if name in moving else tensor.expand((*count, *tensor.shape))
                for name, tensor in self.points[0].items()}


def adds_up(coefficients: Tensor) -> bool:
    """Say whether every row of coefficients (..., k) adds up to one, so that what all points share stays as it is."""
    return bool(((coefficients.sum(-1) - 1).abs() <= 1e-6).all())


@dataclass(frozen=True)
class Path:
    """A continuous path through weight space.

    Attributes:
        legs: callables s (T,) in [0, 1] -> stacked weights; each has an equal share of t.

    Examples:
        >>> a, b = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
        >>> segment(a, b)(torch.tensor([0.0, 0.5]))["w"]
        tensor([[0.0000, 0.0000],
                [0.5000, 0.5000]])
    """

    legs: tuple[Leg, ...]

    def __post_init__(self) -> None:
        if not self.legs:
            raise ValueError("legs must hold at least one leg, got none")

    def __repr__(self) -> str:
        kinds = dict.fromkeys(getattr(leg, "__name__", type(leg).__name__) for leg in self.legs)
        return f"Path({len(self.legs)} leg{'s' * (len(self.legs) > 1)}: {', '.join(kinds)})"

    def locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leg number (T,) int64 and the position s in [0, 1] (T,) on that leg.

        A boundary belongs to the leg that it starts; t = 1 to the last leg.

        Raises:
            ValueError: if an entry of t lies outside [0, 1].
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        outside = t[~((t >= 0) & (t <= 1))]
        if outside.numel():
            raise ValueError(f"t must lie in [0, 1], got {outside.flatten()[0].item()}")
        # A grid point such as 2/3 * 3 may fall an ulp short of its boundary.
        scaled = t * len(self.legs)
        scaled = torch.where((scaled - scaled.round()).abs() < 1e-12, scaled.round(), scaled)
        leg = scaled.floor().long().clamp(max=len(self.legs) - 1)
        return leg, scaled - leg

    def __call__(self, t: Tensor) -> Weights:
        """Return stacked weights with leading axis T = len(t) at t (T,) in [0, 1].

        Raises:
            TypeError: for a number, which has no axis.
        """
        if isinstance(t, (int, float)):
            raise TypeError(f"t must be a tensor (T,), got {t!r}; one network: path.point({t!r})")
        leg, s = self.locate(torch.as_tensor(t).reshape(-1))
        places = [(number, (leg == number).nonzero()[:, 0]) for number in leg.unique().tolist()]
        pieces = [(where, self.legs[number](s[where])) for number, where in places]
        order = torch.cat([where for where, _ in pieces]).argsort()
        return {name: torch.cat([piece[name] for _, piece in pieces])[order.to(pieces[0][1][name].device)]
                for name in pieces[0][1]}

    def point(self, t: float) -> Weights:
        """Return the weights at one t, without a leading axis."""
        leg, s = self.locate(torch.tensor([t], dtype=torch.float64))
        return at(self.legs[int(leg)](s), 0)

    def grid(self, per_leg: int) -> Tensor:
        """Return equidistant t (legs * (per_leg - 1) + 1,), float64, that contain every leg boundary.

        Args:
            per_leg: points on one leg, both of its ends included.

        Raises:
            ValueError: if per_leg < 2.
        """
        if per_leg < 2:
            raise ValueError(f"per_leg must be >= 2 (both ends of a leg), got {per_leg}")
        steps = len(self.legs) * (per_leg - 1)
        return torch.arange(steps + 1, dtype=torch.float64) / steps

    def steps(self, t: Tensor) -> Tensor:
        """Return the l2 distances (T - 1,) float64 between neighbours among the points at t (T,), increasing.

        On legs that are linear in fixed points they follow from inner products, without making a point.

        Raises:
            ValueError: for fewer than two t, or t that decrease.
        """
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        if len(t) < 2 or (t.diff() < 0).any():
            raise ValueError(f"t must hold at least two increasing positions, got {t.tolist()[:5]}")
        leg, s = self.locate(t)
        found = torch.zeros(len(t) - 1, dtype=torch.float64)
        for number in range(len(self.legs)):
            # The end of a leg is where the next one starts.
            inside = (leg[:-1] == number) & ((leg[1:] == number) | ((leg[1:] == number + 1) & (s[1:] == 0)))
            places = inside.nonzero()[:, 0]
            if isinstance(self.legs[number], Mix) and len(places):
                ends = torch.where(leg[places + 1] == number, s[places + 1], 1.0)
                found[places] = self.legs[number].steps(s[places], ends)
                leg[places] = -1  # done
        before: tuple[int, Weights] | None = None
        for i in (leg[:-1] >= 0).nonzero()[:, 0].tolist():
            start = before[1] if before and before[0] == i else self.point(float(t[i]))
            before = i + 1, self.point(float(t[i + 1]))
            found[i] = distance(start, before[1])
        return found

    def length(self, per_leg: int = 61) -> float:
        """Return the arc length of the polygon through `per_leg` points of each leg, l2 over all parameters.

        Source: the numerator of G18 Table 2's length ratio.
        """
        return float(self.steps(self.grid(per_leg)).sum())


def _checked(points: Sequence[Weights], names: Sequence[str]) -> tuple[Weights, ...]:
    for point, name in zip(points, names, strict=True):
        check_match(points[0], point, (names[0], name), dtypes=True)
        check_finite(point, name)
    return tuple(points)


def segment(a: Weights, b: Weights) -> Path:
    """Return the straight segment from `a` to `b`.

    Raises:
        ValueError: if names, shapes or dtypes differ, or a number is NaN or infinite.

    Source: AY20 Eq. (5).
    """
    return Path((Mix(_checked((a, b), ("a", "b")), linear_basis),))


def arc(a: Weights, b: Weights, centre: Weights) -> Path:
    """Return the arc mu + cos(pi t / 2) (a - mu) + sin(pi t / 2) (b - mu) about `centre` = mu.

    Raises:
        ValueError: if names, shapes or dtypes differ, or a number is NaN or infinite.

    Source: AY20 Eq. (6). `neurons.pooled_centre` gives the centre.
    """
    return Path((Mix(_checked((a, b, centre), ("a", "b", "centre")), arc_basis),))


def _several(points: Sequence[Weights]) -> tuple[Weights, ...]:
    if len(points) < 2:
        raise ValueError(f"points must hold at least the two ends, got {len(points)}")
    return _checked(points, [f"points[{i}]" for i in range(len(points))])


def chain(points: Sequence[Weights]) -> Path:
    """Return the polygonal chain through `points`: one straight leg between neighbours.

    Raises:
        ValueError: if there are fewer than two points, or they do not match.

    Source: G18 section 3.2.1 and A.1.
    """
    points = _several(points)
    return Path(tuple(Mix((p, q), linear_basis) for p, q in zip(points[:-1], points[1:], strict=True)))


def bezier(points: Sequence[Weights]) -> Path:
    """Return the Bezier curve with the given control points, ends included.

    Raises:
        ValueError: if there are fewer than two points, or they do not match.

    Source: G18 section 3.2.2 and A.1.
    """
    points = _several(points)
    return Path((Mix(points, lambda s: bezier_basis(s, len(points) - 2)),))


def join(*paths: Path) -> Path:
    """Return the paths one after the other; every leg has an equal share of t.

    Raises:
        TypeError: for anything but paths.
        ValueError: if a path does not start where the one before it ends, to 1e-6 of the point's norm.
    """
    if strange := [path for path in paths if not isinstance(path, Path)]:
        raise TypeError("paths must be given one by one, as in join(p, q), and a family as family.path(), "
                        f"got a {type(strange[0]).__name__}")
    for i, (first, second) in enumerate(zip(paths[:-1], paths[1:], strict=True)):
        end, start = first.point(1.0), second.point(0.0)
        gap, size = distance(end, start), distance(end, {k: torch.zeros_like(v) for k, v in end.items()})
        if gap > 1e-6 * max(size, 1e-30):
            raise ValueError(f"paths[{i + 1}] must start where paths[{i}] ends, got a jump of {gap:.2g} "
                             f"(norm {size:.2g})")
    return Path(tuple(leg for path in paths for leg in path.legs))
