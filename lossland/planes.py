"""Loss and accuracy over planes through weight space, and where curves run in them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.evaluation import check_split, check_sums
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.lengths import Lengths
from lossland.evaluation.mixtures import Mixtures
from lossland.evaluation.scoring import Sums, check_task
from lossland.families import Family
from lossland.paths import Mix, Path
from lossland.tasks import Task
from lossland.training import Checkpoint
from lossland.weights import Weights, at, check_belongs, check_finite, check_match, inner

_TRIED = 1000  # training images on which the time of a plane is measured
_COLUMNS = 8  # of cells of networks with one hidden layer that are scored, and saved, together


@dataclass(frozen=True)
class _Grid:
    """The cells of a plane: corners (3, 2), spots (cells, 2) and the coefficients (cells, 3) of the networks there."""

    corners: Tensor
    spots: Tensor
    coefficients: Tensor
    column: int

    @staticmethod
    def through(three: Sequence[Weights], cells: int | tuple[int, int], margin: float | tuple[float, float]) -> _Grid:
        columns, rows = _two("cells", cells, Integral, "a whole number")
        if min(columns, rows) < 2:
            raise ValueError(f"cells must be >= 2 along x and y, got {cells}")
        margins = _two("margin", margin, Real, "a number")
        if not all(math.isfinite(one) and one > -0.5 for one in margins):
            raise ValueError(f"margin must be finite and > -0.5, where no plane is left, got {margin}")
        corners = plane_coordinates(three, three)  # (3, 2)
        low, high = corners.min(0).values, corners.max(0).values
        pad = torch.tensor(margins, dtype=torch.float64) * (high - low)
        x, y = (torch.linspace(float(low[i] - pad[i]), float(high[i] + pad[i]), count, dtype=torch.float64)
                for i, count in enumerate((columns, rows)))
        spots = torch.cartesian_prod(x, y)
        (width, _), (shift, height) = corners[1].tolist(), corners[2].tolist()
        third = spots[:, 1] / height
        second = (spots[:, 0] - third * shift) / width
        return _Grid(corners, spots, torch.stack([1 - second - third, second, third], 1), rows)


def _two(name: str, value: object, kind: type, what: str) -> tuple[Any, Any]:
    """Return a number for x and one for y."""
    two = (value, value) if isinstance(value, kind) else tuple(value) if isinstance(value, Sequence) else ()
    if len(two) != 2 or not all(isinstance(one, kind) and not isinstance(one, bool) for one in two):
        raise TypeError(f"{name} must be {what}, or two of them, one for x and one for y, got {value!r}")
    return two


def _three(points: Mapping[str, Weights]) -> list[Weights]:
    if not isinstance(points, Mapping):
        raise TypeError("points must be a dictionary of three named points, such as {'A': a, 'B': b, 'bend': "
                        f"curve.points[1]}}, got {type(points).__name__}")
    if len(points) != 3:
        raise ValueError(f"points must name three points, got {len(points)}: {sorted(points)}")
    return list(points.values())


def _checked(net: nn.Module, points: Mapping[str, Weights]) -> list[Weights]:
    three = _three(points)
    for name, point in points.items():
        check_belongs(net, point, f"points[{name!r}]")
        check_match(three[0], point, (f"points[{next(iter(points))!r}]", f"points[{name!r}]"), dtypes=True)
        check_finite(point, f"points[{name!r}]")
    return three


@torch.no_grad()
def plane(net: nn.Module, points: Mapping[str, Weights], task: Task, *, cells: int | tuple[int, int] = 21,
          margin: float | tuple[float, float] = 0.2, split: str | Sequence[str] = "train", progress: bool = False,
          checkpoint: Checkpoint | None = None) -> pd.DataFrame:
    """Return loss and accuracy over the plane through three points of weight space.

    The first point is the origin, x runs along the way to the second, y is the rest of the way to the third
    (Gram-Schmidt). Batch-norm statistics are re-estimated in every cell.

    Args:
        net: the network.
        points: three named points: independent optima, or the ends of a curve and its bend.
        task: the data.
        cells: grid points along x and y (at least 2 each).
        margin: how far the grid reaches beyond the bounding box of the points, as a fraction of its sides; or one
            number for x and one for y.
        split: of the task; or several, which share batch-norm statistics.
        progress: show a line, with an estimate of the time before the first cell (`plane_seconds`).
        checkpoint: saved to after every column of cells (after eight columns, which share their first products, of
            networks with one hidden layer); a plane that was cut off goes on where it stopped, with the numbers of one
            that was not. `Store.fetch` hands one to the function that calls `plane`.

    Returns:
        One row per cell: x, y [l2 distance in weight space], nll [nats], accuracy, ece [fractions], norm [l2 of all
        weights; nll + 1/2 * weight_decay * norm^2 is the loss of G18's planes]; one row per cell and split, with a
        column split, where several are asked for.
        `attrs["points"]`: name -> (x, y).

    Raises:
        TypeError: if the points have no names; for cells and a margin that are no numbers, or not two.
        ValueError: if there are not three points, they lie on one line, are NaN or infinite or of several dtypes; for
            cells < 2, a margin that is not finite or <= -0.5, no split, or a checkpoint of another plane.
        FloatingPointError: if the loss is NaN or infinite somewhere.

    Source: G18 Fig. 1, 7 and 8 and A.4.
    """
    check_task(net, task)
    three = _checked(net, points)
    grid = _Grid.through(three, cells, margin)
    splits = list(check_split(task, (split,) if isinstance(split, str) else split, "split"))
    mixtures, state = Mixtures(net, task, three, dense=one_hidden(net)), _State.of(grid, task, splits)
    state.restore(checkpoint)
    about = f" (about {plane_seconds(net, points, task, cells=cells, split=split):.0f} s)" if progress else ""
    count, step = len(grid.spots), grid.column * (_COLUMNS if mixtures.dense else 1)  # cells
    with tqdm(total=count, initial=state.done, desc="plane" + about, unit="cell", disable=not progress) as bar:
        while state.done < count:
            where = torch.arange(state.done, min(state.done + step, count))
            mixtures.score(state.totals, where, grid.coefficients[where], lambda n: bar.update(n / len(splits)))
            for name, sums in state.totals.items():
                check_sums(sums.rows(where), grid.spots[where], name)
            state.done += len(where)
            state.save(checkpoint)
    _, norm = Lengths(three[0]).of(three, grid.coefficients)
    tables = [pd.DataFrame({"x": grid.spots[:, 0].numpy(), "y": grid.spots[:, 1].numpy(), "split": name,
                            **sums.columns(task.split(name).labels.numel()), "norm": norm.numpy()})
              for name, sums in state.totals.items()]
    table = tables[0].drop(columns="split") if isinstance(split, str) else pd.concat(tables, ignore_index=True)
    corners = {name: tuple(xy) for name, xy in zip(points, grid.corners.tolist(), strict=True)}
    table.attrs.update(points=corners, task=task.name, split=split, way=mixtures.way)
    return table


@dataclass
class _State:
    """Cells that have been computed, and what they belong to."""

    totals: dict[str, Sums]
    of_: dict[str, object]
    done: int = 0

    @staticmethod
    def of(grid: _Grid, task: Task, splits: Sequence[str]) -> _State:
        facts = {"task": task.fingerprint, "splits": splits, "corners": grid.corners.tolist(),
                 "first": grid.spots[0].tolist(), "last": grid.spots[-1].tolist(), "cells": len(grid.spots),
                 "column": grid.column}
        return _State({name: Sums.zeros(len(grid.spots)) for name in splits}, facts)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        saved = checkpoint.load() if checkpoint else None
        if not saved:
            return
        tensors, info = saved
        if differs := [key for key, value in self.of_.items() if info.get(key) != value]:
            raise ValueError(f"checkpoint must hold cells of this plane, got one that differs in {', '.join(differs)}")
        self.done = info["done"]
        for name, sums in self.totals.items():
            for part, value in vars(sums).items():
                value.copy_(tensors[f"{name}.{part}"])

    def save(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            tensors = {f"{name}.{part}": value for name, sums in self.totals.items()
                       for part, value in vars(sums).items()}
            checkpoint.save(tensors, {**self.of_, "done": self.done})


@torch.no_grad()
def plane_seconds(net: nn.Module, points: Mapping[str, Weights], task: Task, *, cells: int | tuple[int, int] = 21,
                  split: str | Sequence[str] = "train") -> float:
    """Return about how many seconds `plane` will take, measured on a few cells and images.

    Raises:
        ValueError: as `plane`.
    """
    three = _checked(net, points)
    grid = _Grid.through(three, cells, 0.0)
    share = min(1.0, _TRIED / len(task.train))
    names = check_split(task, (split,) if isinstance(split, str) else split)
    names = ["train" if name == "train" else "test" for name in names]  # a validation split is about as large
    small = task.subset(*(max(1, round(share * len(task.split(name)))) for name in ("train", "test")))
    mixtures = Mixtures(net, small, three, dense=one_hidden(net))
    column = torch.arange(min(grid.column * _COLUMNS, len(grid.spots)) if mixtures.dense else min(grid.column, 4))
    seconds = []
    for _ in range(2):  # the first run also compiles and allocates
        sums, started = {name: Sums.zeros(len(column)) for name in set(names)}, time.perf_counter()
        mixtures.score(sums, column, grid.coefficients[column], lambda n: None)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / share * len(grid.spots) / len(column)


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


@torch.no_grad()
def in_plane(points: Mapping[str, Weights], curve: Path | Family, *, count: int = 121) -> pd.DataFrame:
    """Return where a curve runs in the plane through three points: t, x, y, and its distance from the plane.

    A Bezier curve or a chain lies in the plane through its ends and its bend, a distance of 0 apart from rounding.

    Args:
        points: three named points, as `plane` takes them.
        curve: a path, or a family over an interval.
        count: equidistant t, rounded up so that every bend of a chain is among them.

    Returns:
        Columns t, x, y, away [l2 distance in weight space].

    Raises:
        TypeError: if the points have no names.
        ValueError: if there are not three points, or they lie on one line.

    Source: G18 Fig. 1.
    """
    three = _three(points)
    path = curve.path() if isinstance(curve, Family) else curve
    t = path.grid(math.ceil((count - 1) / len(path.legs)) + 1)
    leg, s = path.locate(t)
    lengths, parts = Lengths(three[0]), []
    for number in leg.unique().tolist():
        piece, where = path.legs[number], leg == number
        if isinstance(piece, Mix):  # coordinates are mixtures as the weights are
            controls, c = piece.points, piece.basis(s[where]).double()
        else:
            controls, c = [at(piece(one[None]), 0) for one in s[where]], torch.eye(int(where.sum())).double()
        xy = c @ plane_coordinates(three, controls)
        distance, _ = lengths.of(controls, c)
        away = (distance.square() - xy.square().sum(1)).clamp(min=0).sqrt()
        parts.append(torch.cat([t[where, None], xy, away[:, None]], 1))
    return pd.DataFrame(torch.cat(parts).numpy(), columns=["t", "x", "y", "away"])
