"""The worst point of a path: what a fixed grid misses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lossland.errors import choose
from lossland.evaluation import evaluate, nodes
from lossland.evaluation.arguments import as_path, check_task, check_tolerance, check_whole
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.walks import swept
from lossland.families import Family
from lossland.paths import Mix, Path
from lossland.scalars import flag
from lossland.tasks import Task

METRICS = {"nll": 1.0, "ece": 1.0, "error": 1.0, "accuracy": -1.0}  # -1: small is bad
_DENSE = 1001  # points of a grid that costs next to nothing
_AT_ONCE = 8  # points of a round: they share work
_NARROW = 1e-5  # in t
_MAXIMA = 5  # of the grid, whose neighbourhood is looked at even where they are low
_STEEPER = 1.2  # than between the neighbours seen so far
_NODES = 13  # of a leg of a deep network: the polynomial through them misses the loss by some 1e-4
_FINE = 257  # positions at which a polynomial is looked at

Scores = Callable[..., pd.DataFrame]


@dataclass(frozen=True)
class Worst:
    """The worst point that was found on a path, beside the worst of the grid.

    Attributes:
        t, value: the worst point, in units of the metric: largest nll [nats] or ece, smallest accuracy [fractions].
        grid_t, grid_value: the same on the grid alone.
        evaluations: number of t at which the network was evaluated, the grid's included.
        settled: whether the search ended by itself, not at the most evaluations allowed.
        table: all of them as `evaluate` returns them, with a column round: 0 for the grid, then 1, 2, ...; in `attrs`
            task, way, and grid, the number of t of round 0. Left out of the repr.
    """

    t: float
    value: float
    grid_t: float
    grid_value: float
    evaluations: int
    settled: bool
    table: pd.DataFrame = field(repr=False)


def worst(net: nn.Module, path: Path | Family, task: Task, *, points: int | Sequence[float] | Tensor | None = None,
          tolerance: float = 1e-3, split: str = "test", metric: str = "nll", most: int = 200,
          exact: bool = False, progress: bool = False) -> Worst:
    """Return the worst point of a path: a grid first, then finer and finer where something worse may hide.

    On segments and curves of deep networks nll is interpolated between Chebyshev nodes (`nodes` of `evaluate`), at a
    fifth of a grid's cost: its highest maxima are evaluated, and a point between the nodes on either side of the
    highest. Where one of them is not what was interpolated, to the tolerance, the search goes on from a whole grid, and
    it does so for other metrics, and for networks that are not deep, from the start:

    Between two neighbours the metric is taken to rise a fifth more steeply than it does there and beside them. Where
    the top of the tent that this puts up is worse than the worst value so far, by more than the tolerance, the next
    point is set; and twice beside each of the five highest maxima, however low. A peak that no grid point lies on the
    flank of stays unseen: the result is a lower bound of the true worst value.

    Args:
        net: the network.
        path: a path, or a family over an interval.
        task: the data.
        points: the grid, as `evaluate` takes it. None: 1001 equidistant points where they cost little more than 61, on
            segments, arcs and quadratic Bezier curves of networks with one hidden layer on a CPU; for nll of deep
            networks on such curves 13 nodes a leg, or more; else as `evaluate`.
        tolerance: change of the metric that does not matter.
        split: of the task.
        metric: "nll", "accuracy", "error" (1 - accuracy) or "ece".
        most: evaluations after the grid.
        exact: as for `evaluate`; the grid is its default then, too.
        progress: show a line for every round.

    Returns:
        The worst point and its value, beside the worst of the grid, and the table of all points: a `Worst`.

    Raises:
        TypeError: as `evaluate`.
        ValueError: for an unknown metric or split, a tolerance that is not positive, or most < 0.
        FloatingPointError: as `evaluate`.

    Source: ours; the papers report the worst point of a fixed grid (AY20 section 5, G18 A.3).
    """
    choose("metric", metric, METRICS)
    check_tolerance(tolerance)
    check_whole("most", most, 0)
    check_task(net, task)
    exact, progress = flag("exact", exact), flag("progress", progress)
    whole = as_path(path)
    dense = one_hidden(net)
    if points is None and not exact and swept(dense, whole, _DENSE):
        points = _DENSE

    def scored(where: int | Sequence[float] | Tensor | None, number: int, **how: Any) -> pd.DataFrame:
        table = evaluate(net, path, task, points=where, splits=(split,), exact=exact, progress=progress, **how)
        ways.update(table.attrs["way"].split(" + "))
        table = table.assign(round=number)
        values = 1 - table["accuracy"] if metric == "error" else table[metric]
        return table.assign(height=METRICS[metric] * values)

    ways: set[str] = set()
    mixed = all(isinstance(leg, Mix) for leg in whole.legs)
    if points is None and metric == "nll" and mixed and not exact and dense is None:
        table, grid, tops = _smooth(scored, whole, tolerance, most)
    else:
        table = grid = scored(points, 0)
        tops = True
    if tops:
        table, grid, tops = _searched(scored, table, grid, tolerance=tolerance, most=most)
    first, last = (frame.loc[frame["height"].idxmax()] for frame in (grid, table))
    sign = METRICS[metric]
    table = table.drop(columns=["height", "evaluated", "nll_error"], errors="ignore")
    table.attrs = {"grid": len(grid), "task": task.name, "way": " + ".join(sorted(ways))}
    return Worst(float(last["t"]), float(sign * last["height"]), float(first["t"]), float(sign * first["height"]),
                 len(table), not tops, table)


def _searched(scored: Scores, table: pd.DataFrame, grid: pd.DataFrame, *, tolerance: float,
              most: int) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Return all rows, those of the grid, and whether there is more to look at."""
    number, coarse = int(table["round"].max()), float(np.diff(table["t"]).max(initial=0.0)) / 4
    while (tops := _tops(table, tolerance, coarse)) and len(table) - len(grid) < most:
        number += 1
        room = most - (len(table) - len(grid))
        table = pd.concat([table, scored(tops[:min(_AT_ONCE, room)], number)]).sort_values("t", ignore_index=True)
    return table, grid, bool(tops)


def _smooth(scored: Scores, path: Path, tolerance: float, most: int) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Return the rows that were evaluated, those of the grid, and whether the polynomials were wrong."""
    curve = scored(None, 0, nodes=_NODES, tolerance=tolerance)
    known = curve[curve["evaluated"]].reset_index(drop=True)
    rough = len(known) == len(curve)
    tries = [] if rough else _maxima(path, curve)[:most]
    table = known
    if tries:
        more = scored([t for t, _ in tries], 1)
        wanted = pd.Series(dict(tries))
        rough = bool((more.set_index("t")["height"] - wanted).abs().max() > tolerance)
        table = pd.concat([known, more]).sort_values("t", ignore_index=True)
    if not rough:
        return table, known, False
    missing = curve["t"][~curve["t"].isin(table["t"])]
    if len(missing):
        known = pd.concat([known, scored(missing.tolist(), 0)]).sort_values("t", ignore_index=True)
        table = pd.concat([known, table[table["round"] > 0]]).sort_values("t", ignore_index=True)
    return table, known, True


def _maxima(path: Path, curve: pd.DataFrame) -> list[tuple[float, float]]:
    """Return (t, nll) of the polynomials' maxima that may be the worst point, and of two points beside the highest."""
    legs, found = len(path.legs), []
    t, nll = (torch.tensor(curve[name].to_numpy()) for name in ("t", "nll"))
    evaluated = torch.tensor(curve["evaluated"].to_numpy())
    for i in curve["leg"][~curve["evaluated"]].unique().tolist():
        own = evaluated & _on(t, i, legs)
        count, s = int(own.sum()), torch.linspace(0, 1, _FINE, dtype=torch.float64)
        fine = nodes.interpolation(s, count) @ nll[own]
        inside = (fine[1:-1] >= fine[:-2]) & (fine[1:-1] >= fine[2:])
        found += [(float(fine[j]), i, float(s[j]), count) for j in (inside.nonzero()[:, 0] + 1).tolist()]
    best = float(nll[evaluated].max())
    found = sorted((one for one in found if one[0] > best - float(curve["nll_error"].max())), reverse=True)[:_MAXIMA]
    if not found:  # the worst point is a node, an end most likely
        return []
    _, i, s, count = found[0]
    places = nodes.positions(count)
    cell = int((places[1:-1] <= s).sum())
    beside = [float(places[j] + places[j + 1]) / 2 for j in (cell - 1, cell + 1) if 0 <= j < count - 1]
    values = nodes.interpolation(torch.tensor(beside, dtype=torch.float64), count) @ nll[_on(t, i, legs) & evaluated]
    tries = [((i + s) / legs, top) for top, i, s, _ in found]
    return [*tries, *(((i + s) / legs, float(value)) for s, value in zip(beside, values, strict=True))]


def _on(t: Tensor, leg: int, legs: int) -> Tensor:
    return (t >= leg / legs) & (t <= (leg + 1) / legs)


def _tops(table: pd.DataFrame, tolerance: float, coarse: float) -> list[float]:
    """Return where the next points belong, the most promising first.

    Args:
        table: t and height, sorted.
        tolerance: by which a tent has to stand out.
        coarse: intervals beside one of the highest maxima are halved down to this width whatever their tents say.
    """
    t, height = table["t"].to_numpy(), table["height"].to_numpy()
    if len(t) < 3:
        return []
    width, rise = np.diff(t), np.abs(np.diff(height))
    left, right = np.concatenate([[rise[1]], rise[:-1]]), np.concatenate([rise[1:], [rise[-2]]])
    near = np.concatenate([[width[1]], width[:-1]]), np.concatenate([width[1:], [width[-2]]])
    # A steep neighbour says something about its own surroundings only: twice its rise at most.
    outer = [np.minimum(other * width / wide, 2 * other) for other, wide in zip((left, right), near, strict=True)]
    climb = _STEEPER * np.maximum.reduce([rise, *outer])  # how much the metric may rise over the interval
    top = (height[1:] + height[:-1] + climb) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.nan_to_num(0.5 + (height[1:] - height[:-1]) / (2 * climb), nan=0.5)
    beside = np.zeros(len(width), dtype=bool)
    padded = np.concatenate([[-np.inf], height, [-np.inf]])
    before, after = padded[:-2], padded[2:]
    peaks = np.flatnonzero((height >= np.maximum(before, after)) & (height > np.minimum(before, after)))
    for peak in sorted(peaks, key=lambda i: -height[i])[:_MAXIMA]:
        beside[max(peak - 1, 0) : peak + 1] = True
    wanted = ((top > height.max() + tolerance) | (beside & (width > coarse))) & (width > _NARROW) & (climb > 0)
    order = sorted(np.flatnonzero(wanted), key=lambda i: -top[i])
    return [float(t[i] + width[i] * np.clip(x[i], 0.1, 0.9)) for i in order]
