"""Ensembles of networks on a curve: many points of it, or its start and one point further on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.ensembles.scores import Buffers, Scores, checked_members, outputs
from lossland.ensembles.temperature import held_out, loss_temperatures
from lossland.evaluation import check_split
from lossland.evaluation.arguments import as_path
from lossland.evaluation.scoring import Stateless, check_task
from lossland.families import Family
from lossland.paths import Path, segment
from lossland.tasks import Split, Task
from lossland.weights import Weights, check_finite, distance

POINTS = 50  # of G18's curve ensembles


class CurvePoints(Sequence[Weights]):
    """Equidistant points of a curve, both ends included, each made when it is asked for.

    Attributes:
        path: the curve.
        t: (points,) float64, where the points lie.
    """

    def __init__(self, path: Path | Family, points: int) -> None:
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points must be a number >= 2, both ends of the curve among them, got {points!r}")
        self.path = as_path(path)
        self.t = torch.linspace(0, 1, points, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: int | slice) -> Weights | list[Weights]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.path.point(float(self.t[index]))


def curve_points(path: Path | Family, points: int = POINTS) -> CurvePoints:
    """Return equidistant points of a curve as members of an ensemble, each made when it is asked for.

    Args:
        path: a path, or a family over an interval.
        points: how many, both ends included.

    Raises:
        ValueError: for fewer than two points, or a family that is no curve.

    Source: G18 section 4.3 (50 points).

    Examples:
        >>> members = curve_points(segment({"w": torch.zeros(1)}, {"w": torch.ones(1)}), 5)
        >>> [float(weights["w"]) for weights in members], members.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
        ([0.0, 0.25, 0.5, 0.75, 1.0], True)
    """
    return CurvePoints(path, points)


@torch.no_grad()
def curve_ensemble(net: nn.Module, path: Path | Family, task: Task, *, points: int = POINTS,
                   splits: Sequence[str] = ("test",), average: str = "probabilities", rescale: bool = True,
                   progress: bool = False) -> pd.DataFrame:
    """Return a table of the ensemble of points of a curve, before and after their logits are rescaled.

    Rescaling divides the logits of every point by a temperature in proportion to its loss (`point_temperatures`), with
    one factor fitted on the validation split; it costs a pass of every point over that split. Batch-norm statistics are
    estimated once per point.

    Args:
        net: the network.
        path: a path, or a family over an interval.
        task: the data, with a validation split if logits are to be rescaled.
        points: how many, both ends included.
        splits: that are scored.
        average: "probabilities" or "logits".
        rescale: whether to rescale.
        progress: show a line.

    Returns:
        The columns of `member_scores`, the points being the members in their order on the curve, and t, temperature and
        rescaled: first all rows without rescaling (temperature 1), then all with. The last row of each split is the
        ensemble of all points; single_nll against t is G18's Fig. 2, bottom right.

    Raises:
        ValueError: for fewer than two points, a task without a validation split, an unknown split or average.
        FloatingPointError: if a loss is NaN or infinite, naming split and point (member).

    Source: G18 section 4.3 and Fig. 2.
    """
    check_task(net, task)
    members, function = curve_points(path, points), Stateless(net, task)
    chosen, known, heats = check_split(task, splits), None, [1.0] * points
    if rescale:
        known, heats = _temperatures(function, members, task, progress)
    ways = (False, True) if rescale else (False,)
    scores = {(name, way): Scores(name, part, average) for name, part in chosen.items() for way in ways}
    rows = []
    bar = tqdm(checked_members(net, members), "points", points, disable=not progress)
    for t, heat, weights in zip(members.t.tolist(), heats, bar, strict=True):
        start = time.perf_counter()
        buffers = known.pop(0) if known else function.buffers(weights)
        for name, part in chosen.items():
            logits = outputs(function, weights, part, buffers)
            for way in ways:
                row = scores[name, way].add(logits / heat if way else logits)
                rows.append({"t": t, "temperature": heat if way else 1.0, "rescaled": way, **row,
                             "seconds": time.perf_counter() - start})
            start = time.perf_counter()
    table = pd.DataFrame(rows).sort_values("rescaled", kind="stable", ignore_index=True)
    table.attrs.update(task=task.name, average=average, points=points)
    return table


def _temperatures(function: Stateless, members: CurvePoints, task: Task,
                  progress: bool) -> tuple[list[Buffers], list[float]]:
    """Return the statistics of each point and its temperature."""
    part, known, logits = held_out(task, "validation"), [], []
    for weights in tqdm(checked_members(function.net, members), "fit", len(members), disable=not progress):
        known.append(function.buffers(weights))
        logits.append(outputs(function, weights, part, known[-1]))
    return known, loss_temperatures(torch.stack(logits), part.labels.flatten())


def random_direction(start: Weights, length: float, generator: torch.Generator) -> Path:
    """Return the straight line of a given l2 length from `start` in a random direction, all directions alike.

    Args:
        start: where it starts.
        length: how long it is: the distance to the other end of a curve, say.
        generator: on the CPU; the direction is drawn from it.

    Raises:
        ValueError: for a length that is not positive and finite, or weights that are not finite.

    Source: "Random segment" of G18 Fig. 4.

    Examples:
        >>> way = random_direction({"w": torch.zeros(3)}, 2.0, torch.Generator().manual_seed(0))
        >>> round(float(way.point(0.5)["w"].norm()), 5)
        1.0
    """
    check_finite(start, "start")
    if not 0 < length < float("inf"):
        raise ValueError(f"length must be positive and finite, got {length}")
    drawn = {name: torch.randn(x.shape, generator=generator, dtype=torch.float64) for name, x in start.items()}
    norm = sum(float(x.square().sum()) for x in drawn.values()) ** 0.5
    end = {name: x + (length / norm * drawn[name]).to(x) for name, x in start.items()}
    return segment(start, end)


@torch.no_grad()
def pair_ensembles(net: nn.Module, ways: Mapping[str, Path | Family], task: Task, *, points: int = 21,
                   splits: Sequence[str] = ("test",), average: str = "probabilities",
                   progress: bool = False) -> pd.DataFrame:
    """Return what the ensemble of two networks is worth: the start of a way, and the point at t on it.

    Args:
        net: the network.
        ways: name -> path or family: a trained curve, the straight segment, a random direction.
        task: the data.
        points: how many equidistant t on each way.
        splits: that are scored.
        average: "probabilities" or "logits".
        progress: show a line.

    Returns:
        One row per (way, t, split): way, t, split; distance [l2 from the start]; nll [nats], accuracy, ece of the two
        together; single_nll, single_accuracy, single_ece of the point at t alone; disagreement [fraction of the images
        on which the two name different classes]. At t = 0 the two are one.

    Raises:
        ValueError: for no ways, fewer than two points, an unknown split or average.
        FloatingPointError: if a loss is NaN or infinite.

    Source: G18 Fig. 4.
    """
    check_task(net, task)
    if not ways:
        raise ValueError("ways must name at least one path, got none")
    chosen, function, rows = check_split(task, splits), Stateless(net, task), []
    members = {name: curve_points(path, points) for name, path in ways.items()}
    with tqdm(desc="pairs", total=len(ways) * points, disable=not progress) as bar:
        for way, some in members.items():
            for row in _pairs(function, some, chosen, average):
                rows.append({"way": way, **row})
                bar.update(1 / len(chosen))
    table = pd.DataFrame(rows)
    table.attrs.update(task=task.name, average=average, points=points)
    return table


def _pairs(function: Stateless, members: CurvePoints, splits: Mapping[str, Split],
           average: str) -> Iterator[dict[str, object]]:
    start: Weights = {}
    first: dict[str, Tensor] = {}  # split -> logits at the start
    for t, weights in zip(members.t.tolist(), checked_members(function.net, members), strict=True):
        start, buffers = start or weights, function.buffers(weights)
        away = distance(start, weights)
        for name, part in splits.items():
            logits = outputs(function, weights, part, buffers)
            first.setdefault(name, logits)
            pair = Scores(name, part, average)
            pair.mean.add(first[name])
            apart = float((logits.argmax(-1) != first[name].argmax(-1)).double().mean())
            row = pair.add(logits)
            del row["members"]
            yield {"t": t, "split": name, "distance": away, **row, "disagreement": apart}
