"""Scores and lengths of the points of a path, collected leg by leg, in the cheapest way there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lossland import kernels
from lossland.evaluation import scoring
from lossland.evaluation.arguments import naming
from lossland.evaluation.dense import OneHidden, one_hidden
from lossland.evaluation.exchanges import Exchanges
from lossland.evaluation.lengths import Lengths
from lossland.evaluation.mixtures import Mixtures, skeletons_of
from lossland.evaluation.scoring import Manner, Sums
from lossland.evaluation.subsets import Each
from lossland.paths import Leg, Mix, Path
from lossland.tasks import Task
from lossland.weights import Weights, at

Tick = Callable[[float], None]
Piece = tuple[Leg, Tensor, Tensor]  # a leg, rows of the table (T,), positions on the leg (T,)
_TOGETHER = 16  # points of a leg that is not linear, in memory at a time
_FEW = 2  # points that may share less than they could, for the sake of one group


class Walk:
    """Scores and lengths of points of a path.

    Attributes:
        totals: split -> sums over its images.
        away, norm: (T,) distances from the start, and norms.
        ways: how the points were scored.
        products: what first layers were multiplied in.
    """

    def __init__(self, net: nn.Module, task: Task, splits: Iterable[str], start: Weights, points: int, *,
                 manner: Manner = Manner()) -> None:
        self.net, self.task, self.lengths, self.manner = net, task, Lengths(start), manner
        self.away, self.norm = torch.zeros(2, points, dtype=torch.float64).unbind()
        self.totals = {name: Each.of(points, len(task.split(name))) if manner.each else Sums.zeros(points)
                       for name in splits}
        self.ways, self.products = set[str](), set[str]()
        self.skeletons, self.dense = skeletons_of(net), one_hidden(net)

    def along(self, path: Path, t: Tensor, tick: Tick) -> None:
        """Score the points of a path at t (T,)."""
        leg, s = path.locate(t)
        pieces = [(path.legs[i], where := (leg == i).nonzero()[:, 0], s[where]) for i in leg.unique().tolist()]
        for group in groups(pieces) if self.dense is None else [[piece] for piece in pieces]:
            self._score(group, tick)

    def _score(self, group: Sequence[Piece], tick: Tick) -> None:
        leg, where, s = group[0]
        if isinstance(leg, Mix):
            self._linear(group, tick)
        elif Exchanges.serves(self.dense, leg) and not self.manner.each:
            exchanges = Exchanges(self.dense, self.task, leg, self.manner,
                                  images=sum(len(self.task.split(name)) for name in self.totals))
            self.away[where] = exchanges.distances(s, self.lengths.origin)
            self.norm[where] = exchanges.distances(s, None)
            with naming(self.net, self.task):
                exchanges.score(self.totals, where, s, tick)
            self.ways.add(exchanges.way)
            self.products.add(exchanges.product)
        else:
            size = sum(tensor.nbytes for tensor in self.lengths.origin.values())
            count = max(1, min(_TOGETHER, scoring.SHARED // size))
            for rows, some in zip(where.split(count), s.split(count), strict=True):
                self._any(leg, rows, some, tick)

    def _linear(self, group: Sequence[Piece], tick: Tick) -> None:
        """Score points of legs that are linear in k points each; legs that follow each other share points."""
        points = {id(point): point for leg, _, _ in group for point in leg.points}
        places = {key: i for i, key in enumerate(points)}
        rows = torch.cat([where for _, where, _ in group])
        coefficients = torch.zeros(len(rows), len(points), dtype=torch.float64)
        start = 0
        for leg, where, s in group:
            c = leg.basis(s).double()
            for i, point in enumerate(leg.points):
                coefficients[start : start + len(s), places[id(point)]] += c[:, i]
            self.away[where], self.norm[where] = self.lengths.of(leg.points, c)
            start += len(s)
        dense = None if self.manner.each else self.dense
        mixtures = Mixtures(self.net, self.task, list(points.values()), dense=dense, manner=self.manner,
                            skeletons=self.skeletons)
        self._scored(mixtures, rows, coefficients, tick)

    def _any(self, leg: Leg, where: Tensor, s: Tensor, tick: Tick) -> None:
        """Score points of a leg that is not linear in anything: they may still agree in many tensors."""
        points = list(_interned(at(leg(one[None]), 0) for one in s))
        for row, point in zip(where.tolist(), points, strict=True):
            self.away[row], self.norm[row] = (x[0] for x in self.lengths.of([point], torch.ones(1, 1)))
        mixtures = Mixtures(self.net, self.task, points, manner=self.manner, skeletons=self.skeletons)
        self._scored(mixtures, where, torch.eye(len(points), dtype=torch.float64), tick)

    def _scored(self, mixtures: Mixtures, where: Tensor, coefficients: Tensor, tick: Tick) -> None:
        mixtures.score(self.totals, where, coefficients, tick)
        self.ways.add(mixtures.way)
        self.products.add(mixtures.product)


def swept(dense: OneHidden | None, path: Path, points: int) -> bool:
    """Say whether so many points of a path cost little more than a few: whether one compiled kernel serves all."""
    return dense is not None and all(_swept(dense.as_relu(), leg, points) or Exchanges.serves(dense, leg)
                                     for leg in path.legs)


def _swept(how: OneHidden, leg: Leg, points: int) -> bool:
    if not isinstance(leg, Mix):
        return False
    c = leg.basis(torch.linspace(0, 1, points, dtype=torch.float64))
    return kernels.path_way(c, how.heads([how.second(point)[0] for point in leg.points]), how.activation) != "fused"


def _interned(points: Iterator[Weights]) -> Iterator[Weights]:
    """Yield the points with those tensors of the first one that they are equal to."""
    first = None
    for point in points:
        first = first or point
        yield {name: first[name] if torch.equal(tensor, first[name]) else tensor for name, tensor in point.items()}


def groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return the pieces in runs that are scored together because about the same parameters move on them.

    A staged path has many legs with few points each: on the legs of a stage the same layers move, but for the first
    one, on which only the readers do. A leg on which everything moves stays alone.
    """
    found: list[list[Piece]] = []
    moving: frozenset[str] = frozenset()
    for piece in pieces:
        leg, where, _ = piece
        now = leg.moving() if isinstance(leg, Mix) else frozenset()
        one = found and isinstance(leg, Mix) and isinstance(found[-1][0][0], Mix) and now != leg.points[0].keys()
        few = one and min(len(where), sum(len(rows) for _, rows, _ in found[-1])) <= _FEW
        if one and (now == moving or (few and (now <= moving or now >= moving))):
            found[-1].append(piece)
            moving |= now
        else:
            found.append([piece])
            moving = now
    return found
