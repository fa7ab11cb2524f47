"""Scores along a path: all points at once, or Chebyshev nodes of its legs, round after round, until they are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.evaluation import nodes
from lossland.evaluation.lengths import Lengths
from lossland.evaluation.scoring import Sums
from lossland.legs import Swaps
from lossland.paths import Path


@dataclass(frozen=True)
class Scored:
    """Scores at the points of a path.

    Attributes:
        t: (T,), increasing.
        totals: split -> sums over its images.
        away, norm: (T,) distances from the start, and norms.
        evaluated: (T,) bool; elsewhere losses are interpolated and what is counted is NaN.
        errors: split -> (T,) estimated error of the interpolated losses [nats], 0 where they are evaluated.
    """

    t: Tensor
    totals: dict[str, Sums]
    away: Tensor
    norm: Tensor
    evaluated: Tensor
    errors: dict[str, Tensor]

    @staticmethod
    def of(t: Tensor, totals: dict[str, Sums], away: Tensor, norm: Tensor) -> Scored:
        """Return the scores of points that were all evaluated."""
        return Scored(t, totals, away, norm, torch.ones(len(t), dtype=torch.bool),
                      {name: torch.zeros(len(t), dtype=torch.float64) for name in totals})

    def joined(self, other: Scored) -> Scored:
        """Return these scores and others, all of them evaluated, in the order of t."""
        order = (t := torch.cat([self.t, other.t])).argsort()
        totals = {name: _parts(sums, lambda part, one, name=name:  # noqa: B023
                               torch.cat([one, getattr(other.totals[name], part)])[order])
                  for name, sums in self.totals.items()}
        return Scored.of(t[order], totals, torch.cat([self.away, other.away])[order],
                         torch.cat([self.norm, other.norm])[order])

    def at(self, t: Tensor) -> Tensor:
        """Return the rows (T',) of points that are among these."""
        return torch.searchsorted(self.t, t)

    def error(self, t: Tensor) -> dict[str, float]:
        """Return split -> the estimated error of the polynomial through the losses at a leg's nodes t [nats]."""
        rows = self.at(t)
        return {name: float(nodes.error(sums.nll[rows] / sums.histogram[rows[0], 0].sum()))
                for name, sums in self.totals.items()}


def _parts(sums: Sums, change: Callable[[str, Tensor], Tensor]) -> Sums:
    return type(sums)(*(change(part, getattr(sums, part)) for part in sums.PARTS))


def interpolated(path: Path, t: Tensor, score: Callable[[Tensor], Scored], *, count: int, tolerance: float,
                 lengths: Lengths) -> tuple[Scored, int]:
    """Return the scores at t (T,) and at the nodes of the legs, and how many legs needed more nodes.

    A leg whose losses the polynomial through `count` nodes misses by more than the tolerance, as far as its
    coefficients tell, gets twice as many; all its own points instead of nodes when they are no more, or when doubling
    has not helped so much that doubling once more will do.

    Args:
        path: the path.
        t: increasing.
        score: evaluates points (T',).
        count: nodes of a leg.
        tolerance: [nats].
        lengths: for distances and norms.
    """
    leg, _ = path.locate(t)
    own = {i: t[leg == i] for i in leg.unique().tolist()}
    counts = {i: count if not isinstance(path.legs[i], Swaps) and count < len(own[i]) else 0 for i in own}
    known, pending, before = None, list(own), {}
    while pending:
        wanted = torch.cat([_nodes(path, i, counts[i]) if counts[i] else own[i] for i in pending]).unique()
        if known is None:
            known = score(wanted)
        elif len(more := wanted[~torch.isin(wanted, known.t)]):
            known = known.joined(score(more))
        errors = {i: max(known.error(_nodes(path, i, counts[i])).values()) for i in pending if counts[i]}
        pending = [i for i, error in errors.items() if not error <= tolerance]
        for i in pending:
            doubled, hopeful = 2 * counts[i] - 1, errors[i] ** 2 <= tolerance * before.get(i, torch.inf)
            counts[i], before[i] = doubled if doubled < len(own[i]) and hopeful else 0, errors[i]
    assert known is not None
    return _filled(path, t, counts, known, lengths), len(before)


def _nodes(path: Path, leg: int, count: int) -> Tensor:
    return (leg + nodes.positions(count)) / len(path.legs)


def _filled(path: Path, t: Tensor, counts: dict[int, int], known: Scored, lengths: Lengths) -> Scored:
    """Return the scores at the known points and, interpolated, at all other t."""
    t = torch.cat([t, known.t]).unique()
    evaluated = torch.isin(t, known.t)
    totals = {name: _parts(sums, lambda _, part: _spread(part, evaluated)) for name, sums in known.totals.items()}
    away, norm = _spread(known.away, evaluated), _spread(known.norm, evaluated)
    away[~evaluated], norm[~evaluated] = lengths.along(path, t[~evaluated])
    errors = {name: torch.zeros(len(t), dtype=torch.float64) for name in totals}
    leg, s = path.locate(t)
    for i, count in counts.items():
        where = ((leg == i) & ~evaluated).nonzero()[:, 0]
        if not len(where):
            continue
        matrix, at = nodes.interpolation(s[where], count), known.at(wanted := _nodes(path, i, count))
        for name, sums in totals.items():
            errors[name][where] = known.error(wanted)[name]
            for part in sums.SMOOTH:
                values = getattr(known.totals[name], part)[at]
                getattr(sums, part)[where] = matrix.to(values.dtype) @ values
    return Scored(t, totals, away, norm, evaluated, errors)


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """Return values in the rows that are true, NaN in the others."""
    full = values.new_full((len(rows), *values.shape[1:]), torch.nan)
    full[rows] = values
    return full
