"""Tables along a path and over planes, and predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.families import Family
from lossland.legs import Swaps
from lossland.mixtures import Mixtures
from lossland.paths import Leg, Mix, Path
from lossland.scoring import Exchanges, Stateless, Sums, add_point, logits_of
from lossland.tasks import Split, Task
from lossland.weights import Weights, at, check_belongs, check_finite, check_match, distance, inner


def _check_split(task: Task, splits: Sequence[str]) -> dict[str, Split]:
    if isinstance(splits, str):
        raise TypeError(f"splits must be a sequence of names such as ('train', 'test'), got the string {splits!r}")
    return {name: task.split(name) for name in splits}


def _check_sums(sums: Sums, t: Tensor, split: str) -> None:
    bad = (~sums.nll.isfinite()).nonzero()[:, 0]
    if len(bad):
        raise FloatingPointError(f"the loss on {split!r} is NaN or infinite at {len(bad)} of {len(t)} points, first at "
                                 f"{t[bad[0]].tolist()}")


def grid(path: Path, points: int | Sequence[float] | Tensor, *, swaps: int | None = None) -> Tensor:
    """Return the t (T,) float64 at which a path is evaluated.

    Args:
        path: the path.
        points: a number: equidistant t, rounded up so that every leg boundary is among them, and on a leg of `Swaps`
            the middles and ends of its swaps in their place; or the t themselves.
        swaps: how many swaps of such a leg, evenly spread; None: all of them.

    Raises:
        ValueError: if there are fewer than two points, or a t lies outside [0, 1].
    """
    if isinstance(points, int):
        if points < 2:
            raise ValueError(f"points must be >= 2, got {points}")
        t = path.grid(math.ceil((points - 1) / len(path.legs)) + 1)
        for number, leg in enumerate(path.legs):
            if isinstance(leg, Swaps):
                t = torch.cat([t[path.locate(t)[0] != number], (number + leg.knots(swaps)) / len(path.legs)]).unique()
        return t
    if isinstance(points, str):
        raise TypeError(f"points must be a number or the t themselves, got {points!r}")
    t = torch.as_tensor(points, dtype=torch.float64).reshape(-1)
    if not len(t):
        raise ValueError("points must hold at least one t, got none")
    path.locate(t)
    return t


@torch.no_grad()
def evaluate(net: nn.Module, path: Path | Family, task: Task, *, points: int | Sequence[float] | Tensor = 61,
             swaps: int | None = None, splits: Sequence[str] = ("train", "test"),
             progress: bool = False) -> pd.DataFrame:
    """Return a table of losses and accuracies along a path: one row per (t, split).

    Images are used without augmentation. Batch-norm statistics are re-estimated on the training split at every t, the
    ends included.

    Args:
        net: the network.
        path: a path through its weight space, or a family over an interval.
        task: the data; evaluation happens on its device.
        points: how many equidistant t (leg boundaries always included), or the t themselves.
        swaps: how many swaps of a permutation stage are evaluated, each at its middle and its end; None: all of them,
            which costs little for networks with one hidden layer and two passes per swap for all others.
        splits: of the task.
        progress: show a line.

    Returns:
        Columns t, leg, split, nll [nats], accuracy, ece [fractions; 20 bins], distance [l2 from the start of the path],
        norm [l2 of all weights; nll + 1/2 * weight_decay * norm^2 is G18's loss].
        `attrs` says how: grid (number of t), task, way ("fused", "shared prefix", "shared first layer", "rank two",
        "one by one").

    Raises:
        ValueError: if t lies outside [0, 1], or a split is unknown or empty.
        FloatingPointError: if the loss is NaN or infinite somewhere, naming split and t.

    Source: worst accuracy along a path: AY20 section 5; Min, Int, Max: G18 A.3 (`metrics.along`); ECE: W21 section 4.3.
    """
    path = path.path() if isinstance(path, Family) else path
    t = grid(path, points, swaps=swaps)
    leg, s = path.locate(t)
    chosen = _check_split(task, splits)
    check_belongs(net, path.point(0.0), "the start of path")
    walk = _Walk(net, task, chosen, path.point(0.0), len(t))
    with tqdm(total=len(t) * len(chosen), desc="path", unit="point", disable=not progress) as bar:
        for number in leg.unique().tolist():
            where = (leg == number).nonzero()[:, 0]
            walk.score(path.legs[number], where, s[where], bar.update)
    tables = []
    for name, split in chosen.items():
        _check_sums(walk.totals[name], t, name)
        columns = walk.totals[name].columns(split.labels.numel())
        tables.append(pd.DataFrame({"t": t.numpy(), "leg": leg.numpy(), "split": name, **columns,
                                    "distance": walk.away.numpy(), "norm": walk.norm.numpy()}))
    table = pd.concat(tables).sort_values("t", kind="stable", ignore_index=True)
    table.attrs.update(grid=len(t), task=task.name, way=" + ".join(sorted(walk.ways)))
    return table


class _Walk:
    """Scores and lengths of the points of a path, collected leg by leg."""

    def __init__(self, net: nn.Module, task: Task, splits: dict[str, Split], start: Weights, points: int) -> None:
        self.net, self.task, self.splits, self.start = net, task, splits, start
        self.away, self.norm = torch.zeros(2, points, dtype=torch.float64).unbind()
        self.totals = {name: Sums.zeros(points) for name in splits}
        self.ways: set[str] = set()

    def score(self, leg: Leg, where: Tensor, s: Tensor, tick: Callable[[float], None]) -> None:
        """Score the points at s (T,) of a leg in the cheapest way there is, into the rows `where` (T,)."""
        if isinstance(leg, Mix):
            shared, positions = Mixtures(self.net, self.task, leg.points), leg.basis(s)
        elif Exchanges.serves(self.net, leg):
            shared, positions = Exchanges(self.net, self.task, leg), s
        else:
            self._one_by_one(leg, where, s, tick)
            return
        self.away[where], self.norm[where] = (shared.distances(positions, origin) for origin in (self.start, None))
        shared.score(self.totals, where, positions, tick)
        self.ways.add(shared.way)

    def _one_by_one(self, leg: Leg, where: Tensor, s: Tensor, tick: Callable[[float], None]) -> None:
        self.ways.add("one by one")
        function = Stateless(self.net, self.task)
        for row, one in zip(where.tolist(), s, strict=True):
            weights = at(leg(one[None]), 0)
            self.away[row], self.norm[row] = distance(self.start, weights), inner(weights, weights) ** 0.5
            for name, split in self.splits.items():
                add_point(self.totals[name], row, function, weights, split)
            tick(len(self.splits))


@torch.no_grad()
def predict(net: nn.Module, weights: Weights, task: Task, split: str = "test") -> Tensor:
    """Return the logits (N, C) of one network on a split; batch-norm statistics are re-estimated on the training split.

    Raises:
        ValueError: for an unknown split, or weights that are NaN or infinite.
    """
    check_belongs(net, weights, "weights")
    check_finite(weights, "weights")
    return torch.cat([logits for logits, _ in logits_of(Stateless(net, task), weights, task.split(split))])


@torch.no_grad()
def plane(net: nn.Module, points: dict[str, Weights], task: Task, *, cells: int | tuple[int, int] = 21,
          margin: float = 0.2, split: str = "train", progress: bool = False) -> pd.DataFrame:
    """Return loss and accuracy over the plane through three points of weight space.

    The first point is the origin, x runs along the way to the second, y is the rest of the way to the third
    (Gram-Schmidt).

    Args:
        net: the network.
        points: three named points.
        task: the data.
        cells: grid points along x and y (at least 2 each).
        margin: how far the grid reaches beyond the bounding box of the points, as a fraction of its sides.
        split: of the task.
        progress: show a line.

    Returns:
        One row per cell: x, y [l2 distance in weight space], nll [nats], accuracy, ece [fractions], norm [l2 of all
        weights; nll + 1/2 * weight_decay * norm^2 is the loss of G18's planes].
        `attrs["points"]`: name -> (x, y).

    Raises:
        ValueError: if there are not three points, they lie on one line, or cells < 2.
        FloatingPointError: if the loss is NaN or infinite somewhere.

    Source: G18 Fig. 1 and A.4.
    """
    if len(points) != 3:
        raise ValueError(f"points must name three points, got {len(points)}: {sorted(points)}")
    columns, rows = (cells, cells) if isinstance(cells, int) else cells
    if min(columns, rows) < 2:
        raise ValueError(f"cells must be >= 2 along x and y, got {cells}")
    for name, point in points.items():
        check_belongs(net, point, f"points[{name!r}]")
    three = list(points.values())
    where = plane_coordinates(three, three)  # (3, 2)
    low, high = where.min(0).values, where.max(0).values
    pad = margin * (high - low)
    x = torch.linspace(float(low[0] - pad[0]), float(high[0] + pad[0]), columns, dtype=torch.float64)
    y = torch.linspace(float(low[1] - pad[1]), float(high[1] + pad[1]), rows, dtype=torch.float64)
    spots = torch.cartesian_prod(x, y)  # (cells, 2)
    (width, _), (shift, height) = where[1].tolist(), where[2].tolist()
    third = spots[:, 1] / height
    second = (spots[:, 0] - third * shift) / width
    c = torch.stack([1 - second - third, second, third], 1)
    mixtures, sums = Mixtures(net, task, three), Sums.zeros(len(spots))
    with tqdm(total=len(spots), desc="plane", unit="cell", disable=not progress) as bar:
        mixtures.score({split: sums}, torch.arange(len(spots)), c, bar.update)
    _check_sums(sums, spots, split)
    table = pd.DataFrame({"x": spots[:, 0].numpy(), "y": spots[:, 1].numpy(),
                          **sums.columns(task.split(split).labels.numel()),
                          "norm": mixtures.distances(c, None).numpy()})
    corners = {name: tuple(xy) for name, xy in zip(points, where.tolist(), strict=True)}
    table.attrs.update(points=corners, task=task.name, split=split, way=mixtures.way)
    return table


def plane_coordinates(points: Sequence[Weights], of: Sequence[Weights]) -> Tensor:
    """Return the coordinates (len(of), 2) float64 of weight vectors projected onto the plane through three points.

    Raises:
        ValueError: if the three points lie on one line.

    Source: G18 Fig. 1.
    """
    origin, second, third = points
    for name, other in (("points[1]", second), ("points[2]", third)):
        check_match(origin, other, ("points[0]", name))
    away = [{key: p[key].double() - origin[key].double() for key in origin} for p in (second, third)]
    width = inner(away[0], away[0]) ** 0.5
    shift = inner(away[0], away[1]) / width if width else 0.0
    height = max(0.0, inner(away[1], away[1]) - shift**2) ** 0.5
    if not width or height < 1e-6 * max(width, abs(shift)):
        raise ValueError(f"points must span a plane, got three on one line (side {width:.3g}, height {height:.3g})")
    rows = []
    for weights in of:
        out = {key: weights[key].double() - origin[key].double() for key in origin}
        along = inner(out, away[0]) / width
        rows.append([along, (inner(out, away[1]) - along * shift) / height])
    return torch.tensor(rows, dtype=torch.float64)
