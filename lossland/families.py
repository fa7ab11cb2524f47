"""Families: control points x basis x domain.

Plain training is the family of one point. A G18 curve frees the bends and fixes the ends; a W21 line, curve or simplex
frees all control points. One training loop serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossland.errors import choose
from lossland.paths import Basis, Mix, Path, bezier_basis, chain_basis, linear_basis
from lossland.paths import chain as chain_path
from lossland.scalars import seed_of
from lossland.weights import Weights, check_finite, check_match, count, mix

_DOMAINS = ("point", "interval", "simplex")


@dataclass(frozen=True)
class Family:
    """A parametrised set of networks: every member is a fixed linear combination of k control points.

    Attributes:
        kind: what it is called in records: "point", "line", "chain", "bezier" or "simplex".
        points: k control points.
        free: k flags: whether training may move the point.
        domain: "point" (one member), "interval" (members at t in [0, 1]) or "simplex" (members at barycentric
            coordinates).
    """

    kind: str
    points: tuple[Weights, ...]
    free: tuple[bool, ...]
    domain: str

    def __post_init__(self) -> None:
        choose("domain", self.domain, _DOMAINS)
        if len(self.free) != len(self.points) or not any(self.free):
            raise ValueError(f"free must flag each of the {len(self.points)} points, at least one of them True, "
                             f"got {self.free}")
        for i, point in enumerate(self.points):
            check_match(self.points[0], point, ("points[0]", f"points[{i}]"), dtypes=True)
            check_finite(point, f"points[{i}]")

    def __repr__(self) -> str:
        size = count(self.points[0])
        return f"Family({self.kind!r}, {len(self.points)} points of {size:,} weights, free={self.free})"

    @property
    def bends(self) -> int:
        """Return the number of interior control points."""
        return max(0, len(self.points) - 2)

    def coefficients(self, position: Tensor) -> Tensor:
        """Return the coefficients (T, k) of the members at `position`: t (T,), or barycentric (T, k) on a simplex."""
        if self.domain == "simplex":
            return position
        if self.domain == "point":
            return torch.ones(len(position), 1, dtype=position.dtype)
        return self._basis()(position)

    def _basis(self) -> Basis:
        bases = {"line": linear_basis, "chain": lambda s: chain_basis(s, self.bends),
                 "bezier": lambda s: bezier_basis(s, self.bends)}
        return bases[self.kind]

    def slopes(self, t: Tensor) -> Tensor:
        """Return the derivatives (T, k) of the coefficients with respect to t, at t (T,).

        Raises:
            ValueError: unless the domain is an interval.
        """
        self._check_interval("slopes")
        with torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            parts = self._basis()(t).sum(0)  # (k,): each row depends on its own t alone
            return torch.stack([torch.autograd.grad(part, t, retain_graph=True)[0] for part in parts], dim=1)

    def draw(self, generator: torch.Generator, draws: int = 1, *, strata: bool = True) -> Tensor:
        """Return the positions of random members, as `coefficients` takes them, in float64.

        On an interval: t (draws,), stratified: one t ~ U in each of `draws` equal parts of [0, 1], in order; together
        they are uniform; without strata, each is uniform on its own. On a simplex: (draws, k), each uniform by
        normalised exponentials.

        Source: G18 Eq. (3); W21 Algorithm 1. The strata are ours.
        """
        if self.domain == "simplex":
            rows = [torch.empty(len(self.points), dtype=torch.float64).exponential_(generator=generator)
                    for _ in range(draws)]
            return torch.stack([row / row.sum() for row in rows])
        t = torch.rand(draws, generator=generator, dtype=torch.float64)
        return (torch.arange(draws) + t) / draws if strata else t

    def draw_layerwise(self, generator: torch.Generator, draws: int, modules: int, *, strata: bool = True) -> Tensor:
        """Return positions (draws, modules) float64, on a simplex (draws, modules, k): independent for every module.

        On an interval the draws of a module are stratified as those of `draw`, in an order of its own.

        Source: W21 section 3, "Layerwise".
        """
        if self.domain == "simplex":
            rows = torch.empty(draws, modules, len(self.points), dtype=torch.float64).exponential_(generator=generator)
            return rows / rows.sum(-1, keepdim=True)
        order, t = torch.rand(2, draws, modules, generator=generator, dtype=torch.float64)
        return (order.argsort(0) + t) / draws if strata else t

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return the coefficients (k,) float64 of one random member."""
        return self.coefficients(self.draw(generator))[0]

    def path(self) -> Path:
        """Return the family as a path from its first to its last control point.

        Raises:
            ValueError: unless the domain is an interval.
        """
        self._check_interval("path")
        return chain_path(self.points) if self.kind == "chain" else Path((Mix(self.points, self._basis()),))

    def __call__(self, t: Tensor) -> Weights:
        """Return stacked weights with leading axis T = len(t) at t (T,) in [0, 1], as the family's path does."""
        return self.path()(t)

    def point(self, t: float) -> Weights:
        """Return the weights at one t in [0, 1], as the family's path does.

        Raises:
            ValueError: unless the domain is an interval.
        """
        return self.path().point(t)

    def _check_interval(self, method: str) -> None:
        if self.domain != "interval":
            raise ValueError(f"{method}() needs a family over an interval, got a {self.kind}; use member() for its "
                             "points")

    def member(self, coefficients: Tensor) -> Weights:
        """Return the network with the given coefficients (k,); `members` takes positions.

        Raises:
            TypeError: for anything but a tensor.
            ValueError: for a tensor of another shape.
        """
        hint = "members([0.3]) takes positions" if self.domain == "interval" else "members takes positions"
        if not isinstance(coefficients, Tensor):
            raise TypeError(f"coefficients must be a tensor (k,), one for each of the {len(self.points)} control "
                            f"points, got {coefficients!r}; {hint}")
        if coefficients.ndim == 0:
            raise ValueError(f"coefficients must be (k,), one for each of the {len(self.points)} control points, got "
                             f"the single number {coefficients.item():g}; {hint}")
        return mix(self.points, coefficients)

    def members(self, positions: Tensor | Sequence[float] | Sequence[Sequence[float]]) -> Iterator[Weights]:
        """Yield the members at some positions, one at a time: a network at a time is in memory.

        Args:
            positions: t (T,) on an interval, where a line or Bezier curve goes on beyond [0, 1] (W21 Fig. 12: -0.05 and
                1.05); barycentric coordinates (T, k) on a simplex, whose rows add up to one.

        Raises:
            ValueError: for positions of another shape, that are not finite, or that the family does not have.

        Examples:
            >>> family = line({"w": torch.zeros(2)}, {"w": torch.ones(2)})
            >>> [member["w"][0].item() for member in family.members([0.25, 1.5])]
            [0.25, 1.5]
        """
        where = torch.as_tensor(positions, dtype=torch.float64)
        self._check_positions(where)
        return (self.member(c) for c in self.coefficients(where))

    def random_members(self, count: int, seed: int = 0) -> Iterator[Weights]:
        """Yield independent random members, uniform over the domain, one at a time.

        Args:
            count: how many.
            seed: of their positions.

        Raises:
            ValueError: for a count below 1, or a seed below 0.

        Source: W21 section 4.5: the sampling of training, without its strata.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a whole number >= 1, got {count!r}")
        generator = torch.Generator().manual_seed(seed_of(seed))
        return self.members(self.draw(generator, count, strata=False))

    def _check_positions(self, where: Tensor) -> None:
        k = len(self.points)
        if where.ndim != (2 if self.domain == "simplex" else 1) or (where.ndim == 2 and where.shape[1] != k):
            expected = f"barycentric coordinates (T, {k})" if self.domain == "simplex" else "t (T,)"
            raise ValueError(f"positions must be {expected} in a {self.kind}, got shape {tuple(where.shape)}")
        if not bool(where.isfinite().all()):
            raise ValueError(f"positions must be finite, got {where.tolist()[:5]}")
        if self.domain == "simplex" and bool(((where.sum(1) - 1).abs() > 1e-6).any()):
            raise ValueError(f"positions must be barycentric coordinates that add up to 1, got rows that add up to "
                             f"{where.sum(1).tolist()[:5]}")
        if self.kind == "chain" and bool(((where < 0) | (where > 1)).any()):
            raise ValueError(f"positions on a chain must lie in [0, 1], got {where.tolist()[:5]}")

    def midpoint(self) -> Weights:
        """Return the member at t = 1/2, or at equal barycentric coordinates."""
        k = len(self.points)
        if self.domain == "simplex":
            return self.member(torch.full((k,), 1 / k, dtype=torch.float64))
        return self.member(self.coefficients(torch.tensor([0.5], dtype=torch.float64))[0])

    def with_points(self, points: Sequence[Weights]) -> Family:
        """Return the same family with other control points."""
        return replace(self, points=tuple(points))


def point(weights: Weights) -> Family:
    """Return the family of one free point: plain training."""
    return Family("point", (weights,), (True,), "point")


def line(first: Weights, second: Weights) -> Family:
    """Return the line between two free points.

    Source: W21 section 3.
    """
    return Family("line", (first, second), (True, True), "interval")


def simplex(points: Sequence[Weights]) -> Family:
    """Return the simplex spanned by m free points.

    Raises:
        ValueError: if there are fewer than two points.

    Source: W21 section 3.
    """
    if len(points) < 2:
        raise ValueError(f"points must hold at least 2 control points, got {len(points)}")
    return Family("simplex", tuple(points), (True,) * len(points), "simplex")


def _curve(kind: str, a: Weights, b: Weights, bends: int, ends: str) -> Family:
    if isinstance(bends, bool) or not isinstance(bends, int):
        raise TypeError(f"bends must be a whole number, got {bends!r}")
    if bends < 1:
        raise ValueError(f"bends must be >= 1 (interior control points), got {bends}")
    choose("ends", ends, ("fixed", "free"))
    check_match(a, b, dtypes=True)
    for end, name in ((a, "a"), (b, "b")):
        check_finite(end, name)
    even = linear_basis(torch.linspace(0, 1, bends + 2, dtype=torch.float64)[1:-1])
    inner = [mix((a, b), c) for c in even]
    movable = ends == "free"
    return Family(kind, (a, *inner, b), (movable, *[True] * bends, movable), "interval")


def chain(a: Weights, b: Weights, *, bends: int = 1, ends: str = "fixed") -> Family:
    """Return the polygonal chain from `a` to `b`; its bends start evenly spaced on the segment.

    Args:
        a, b: the ends.
        bends: interior points.
        ends: "fixed" (G18) or "free".

    Raises:
        ValueError: if bends < 1, or the ends do not match.

    Source: G18 section 3.2.1 and A.1.
    """
    return _curve("chain", a, b, bends, ends)


def bezier(a: Weights, b: Weights, *, bends: int = 1, ends: str = "fixed") -> Family:
    """Return the Bezier curve from `a` to `b`; its bends start evenly spaced on the segment.

    Args:
        a, b: the ends.
        bends: interior control points.
        ends: "fixed" (G18) or "free" (W21's curve).

    Raises:
        ValueError: if bends < 1, or the ends do not match.

    Source: G18 section 3.2.2 and A.1; W21 section 3.
    """
    return _curve("bezier", a, b, bends, ends)
